from __future__ import annotations

import numpy as np
import pytest

from models.kernels.lookup import FULLEST, SLOT, fill, find


@pytest.mark.parametrize("n", [0, 1, 2, 9, 10_000])
@pytest.mark.parametrize("spread", [1, 2**40, 0x9E3779B97F4A7C15])
def test_every_key_is_found_and_no_other(n: int, spread: int) -> None:
    keys = np.arange(2 * n + 2, dtype=np.uint64) * np.uint64(spread)
    keys, strangers = keys[: n + 1][1:], keys[n + 1 :]
    slots, twice = fill(keys)
    assert twice == (0, 0)
    assert find(slots, keys).tolist() == list(range(1, n + 1))
    assert not find(slots, strangers).any()


def test_the_extreme_keys_are_keys_like_any_other() -> None:
    keys = np.array([0, 2**64 - 1, 2**63], np.uint64)
    assert find(fill(keys)[0], keys[::-1].copy()).tolist() == [3, 2, 1]
    assert find(fill(keys[1:])[0], keys).tolist() == [0, 1, 2]


def test_slots_are_free_enough() -> None:
    for n in (1, 614, 615, 10_066_328):
        size = len(fill(np.arange(n, dtype=np.uint64))[0])
        assert n < FULLEST * size
        assert size & (size - 1) == 0


def test_a_key_that_is_there_twice_is_told_by_its_rows() -> None:
    assert fill(np.array([7, 8, 9, 8], np.uint64))[1] == (2, 4)


def test_keys_may_be_read_only_and_out_of_line() -> None:
    records = np.zeros(3, [("time", "u1"), ("item", "<u8")])
    records["item"] = [5, 6, 7]
    records.flags.writeable = False
    slots, _ = fill(np.array([7, 5], np.uint64))
    assert slots.dtype == SLOT
    assert find(slots, records["item"]).tolist() == [2, 0, 1]
