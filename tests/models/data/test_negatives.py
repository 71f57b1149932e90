from __future__ import annotations

import numpy as np
import pytest

from infra.errors import TrainingError
from models.data.protocols import NextItem
from models.data.splits import split_requests
from tests.models.data.splitting import FEW, LAST, once_each, parts, seen
from tests.models.generated import numbered, planted_interactions


def test_negatives_are_what_the_user_has_never_chosen_where_nobody_repeats() -> None:
    split = split_requests(once_each(), FEW, LAST)
    chosen: dict[int, set[int]] = {}
    interactions = split.interactions
    for user, item in zip(interactions.users.tolist(), interactions.items.tolist(), strict=True):
        chosen.setdefault(user, set()).add(item)
    for _, requests in parts(split):
        for user, row in zip(split.users(requests), requests.candidates[:, 1:], strict=True):
            assert not chosen[int(user)] & set(row.tolist())


def test_where_items_are_repeated_negatives_may_stand_in_the_history() -> None:
    split = split_requests(planted_interactions(), NextItem(4, 5), LAST)
    sequences, hits = split.sequences, 0
    for r, row in enumerate(split.train.candidates):
        cut = split.train.cut[r]
        basket = sequences.items[sequences.basket[cut] : sequences.basket_end[cut]]
        assert not set(basket.tolist()) & set(row[1:].tolist())
        hits += bool(set(seen(split, split.train, r)) & set(row[1:].tolist()))
    assert hits > len(split.train.cut) / 2


def test_no_candidate_stands_twice() -> None:
    split = split_requests(planted_interactions(), NextItem(evaluation_negatives=30), LAST)
    for row in split.test.candidates:
        assert len(set(row.tolist())) == 31


def test_a_user_who_leaves_few_items_gets_candidates_of_weight_zero() -> None:
    interactions = once_each(users=6, items=24, each=20)
    split = split_requests(interactions, NextItem(negatives=6, evaluation_negatives=6), LAST)
    assert (split.train.weights.sum(1) == 5).all()
    assert ((split.train.candidates > 0) == (split.train.weights > 0)).all()


def test_popular_items_are_popular_negatives() -> None:
    """Items 1 and 2 are chosen by others in nine of ten behaviors."""
    rng = np.random.default_rng(0)
    items = np.where(rng.random(4000) < 0.9, rng.integers(0, 2, 4000), rng.integers(2, 50, 4000))
    interactions = numbered(np.arange(4000) % 40, items, np.arange(4000))
    share = {}
    for sampling in ("popularity", "uniform"):
        protocol = NextItem(sampling=sampling, exclude="basket", evaluation_negatives=9)
        split = split_requests(interactions, protocol, LAST)
        popular = np.argsort(-split.popularity)[:2]
        # Where the positive is popular itself, it cannot be a negative.
        rare = ~np.isin(split.train.candidates[:, 0], popular)
        share[sampling] = np.isin(split.train.candidates[rare, 1], popular).mean()
    assert share["popularity"] == pytest.approx(0.9, abs=0.05)
    assert share["uniform"] == pytest.approx(2 / 50, abs=0.03)


def test_too_few_items_for_the_negatives_are_told() -> None:
    with pytest.raises(TrainingError, match="40 items, too few for 99 negatives"):
        split_requests(planted_interactions(), NextItem(), LAST)
