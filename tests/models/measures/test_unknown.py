from __future__ import annotations

import numpy as np

from models.data.requests import Requests
from models.measures.unknown import (
    AMONG,
    Earnings,
    most_popular,
    unknown_ranks,
    unknown_requests,
)


def requests_of(users: int, each: int) -> Requests:
    cut = np.arange(users * each)
    small = np.zeros((len(cut), 2), np.int32)
    floats = np.ones((len(cut), 2), np.float32)
    return Requests(cut, cut, cut, small, floats, floats)


def test_each_user_is_asked_once_about_the_unknown_and_the_popular() -> None:
    popularity = np.array([0, 5, 0, 9, 7], np.float32)
    asked = unknown_requests(requests_of(6, 4), np.arange(24, dtype=np.int32) // 4, popularity)
    assert (np.sort(asked.cut) // 4).tolist() == list(range(6))
    assert asked.candidates.tolist() == [[0, 3, 4, 1]] * 6
    assert asked.weights.shape == asked.labels.shape == (6, 4)


def test_no_more_than_so_many_are_popular() -> None:
    popularity = np.arange(300, dtype=np.float32)
    assert most_popular(popularity).tolist() == list(range(299, 299 - AMONG, -1))


def test_ranks_are_counted_from_the_first() -> None:
    ranks = unknown_ranks(np.array([[3, 1, 2], [1, 2, 3], [2, 3, 1], [2, 2, 2]], np.float32))
    assert ranks.counts == [2, 1, 1]
    assert (ranks.users, ranks.among) == (4, 2)
    assert ranks.first == 0.5
    assert ranks.median == 1.5
    assert ranks.quantiles["p95"] <= 3


def test_what_is_earned_is_of_the_chosen_alone() -> None:
    ctrs = np.array([[0.5, 0.25, 0.9]])
    labels = np.array([[1, 0, 0]])
    earned = Earnings.of(ctrs, labels, np.array([[True, True, False]]))
    assert (earned.candidates, earned.positives) == (2, 1)
    assert (earned.predicted, earned.observed) == (0.375, 0.5)
    assert earned.predicted_over_observed == 0.75


def test_nothing_is_earned_by_nobody() -> None:
    earned = Earnings.of(np.ones((1, 2)), np.ones((1, 2)), np.zeros((1, 2), bool))
    assert earned.candidates == 0
    assert np.isnan([earned.predicted, earned.observed, earned.predicted_over_observed]).all()
