from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.kernels.relevance import hit_rate_of_retrieval, relevance_indicator


def weights_of(*rows: list[float]) -> np.ndarray:
    return np.array(rows)


def test_the_relevance_indicator_is_a_cross_entropy() -> None:
    truth, guess = weights_of([0.7, 0.2, 0.1]), weights_of([0.5, 0.25, 0.25])
    by_hand = -(0.7 * np.log(0.5) + 0.3 * np.log(0.25))
    assert relevance_indicator(guess, truth, smoothing=0) == pytest.approx(by_hand)
    assert relevance_indicator(4 * guess, 9 * truth, smoothing=0) == pytest.approx(by_hand)


def test_the_reference_itself_has_the_least_relevance_indicator() -> None:
    rng = np.random.default_rng(7)
    truth = rng.dirichlet(np.ones(20), 30)
    least = relevance_indicator(truth, truth, smoothing=0)
    assert least == pytest.approx(-(truth * np.log(truth)).sum(1).mean())
    assert relevance_indicator(rng.dirichlet(np.ones(20), 30), truth, smoothing=0) > least


def test_what_was_not_retrieved_costs_a_finite_amount() -> None:
    truth, guess = weights_of([0.5, 0.5]), weights_of([1.0, 0.0])
    assert relevance_indicator(guess, truth, smoothing=0) == np.inf
    assert relevance_indicator(guess, truth) == pytest.approx(-(np.log(0.995) + np.log(0.005)) / 2)


def test_padding_and_empty_rows_do_not_count_for_relevance() -> None:
    truth = weights_of([0.5, 0.5, 9.0], [0.0, 0.0, 9.0])
    guess = weights_of([0.9, 0.1, 9.0], [0.0, 0.0, 9.0])
    mask = np.array([[True, True, False], [True, True, False]])
    assert relevance_indicator(guess, truth, mask, smoothing=0) == pytest.approx(
        -(np.log(0.9) + np.log(0.1)) / 2
    )
    assert np.isnan(relevance_indicator(guess[1:], truth[1:], mask[1:]))


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_a_gsu_that_asks_the_oracle_hits_all(k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    relevance = rng.normal(size=(4, 2, 10))
    best = np.argsort(-relevance, axis=-1)[..., :k]
    retrieved = np.zeros(relevance.shape, bool)
    np.put_along_axis(retrieved, best, True, axis=-1)
    assert hit_rate_of_retrieval(retrieved, relevance, k) == pytest.approx(1)
    assert hit_rate_of_retrieval(~retrieved, relevance, k) == pytest.approx(0)


def test_a_random_gsu_hits_its_share() -> None:
    rng = np.random.default_rng(8)
    retrieved = rng.random((200, 100)) < 0.3
    for relevance in (rng.normal(size=(200, 100)), np.zeros((200, 100))):  # and one of ties alone
        assert hit_rate_of_retrieval(retrieved, relevance, 10) == pytest.approx(0.3, abs=0.03)


def test_short_sequences_say_nothing_about_a_gsu() -> None:
    relevance, mask = np.zeros((1, 5)), np.array([[False, False, True, True, True]])
    assert np.isnan(hit_rate_of_retrieval(np.ones((1, 5), bool), relevance, 3, mask))
    assert hit_rate_of_retrieval(mask, relevance, 2, mask) == 1
