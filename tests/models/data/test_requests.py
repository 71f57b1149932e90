from __future__ import annotations

import numpy as np

from models.data.requests import Requests, Sequences
from tests.models.generated import numbered


def test_sequences_hold_users_and_baskets_apart() -> None:
    interactions = numbered([0, 1, 0, 0, 1], [1, 2, 3, 4, 5], [10, 10, 10, 20, 30])
    sequences = Sequences.of(interactions)
    assert sequences.position.tolist() == [0, 2, 3, 1, 4]
    assert sequences.start.tolist() == [0, 0, 0, 3, 3]
    assert sequences.basket.tolist() == [0, 0, 2, 3, 4]
    assert sequences.basket_end.tolist() == [2, 2, 3, 4, 5]


def test_no_behavior_is_no_sequence() -> None:
    assert all(len(part) == 0 for part in vars(Sequences.of(numbered([], [], []))).values())


def test_some_of_the_requests_keep_all_that_belongs_to_them() -> None:
    rows = np.arange(6)
    small, floats = rows.astype(np.int32)[:, None], rows.astype(np.float32)[:, None]
    requests = Requests(rows, rows, rows, small, floats, floats)
    for kept in (np.array([4, 1]), slice(2, 3)):
        part = requests.part(kept)
        for mine, whole in zip(part, requests, strict=True):
            assert (mine is None) == (whole is None)
            if mine is not None and whole is not None:
                np.testing.assert_array_equal(mine, whole[kept])
