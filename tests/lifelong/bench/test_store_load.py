"""What a store takes, measured on few events."""

from __future__ import annotations

import pytest

from lifelong.bench.store_load import Cell, cells, measure


@pytest.mark.parametrize("store", ["memory", "lmdb"])
def test_a_store_is_measured_in_all_that_is_asked_of_it(store: str) -> None:
    taken = measure(Cell(store, 100, "light", events=2_000, interests=50, reads=50))

    assert taken.events_per_second > 0
    assert taken.interests_per_second > 0
    assert 0 < taken.read_p50_ms <= taken.read_p99_ms
    if store == "lmdb":
        assert taken.bytes_written_per_event > 25
        assert taken.bytes_kept_per_user > 2_000 / 100 * 25


def test_both_kinds_of_users_are_measured_in_every_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AEROSPIKE_HOST", raising=False)

    assert {(cell.store, cell.load) for cell in cells(quick=True)} == {
        (store, load) for store in ("memory", "lmdb") for load in ("uniform", "light")
    }
    assert max(cell.users for cell in cells(quick=False)) == 1_000_000
