from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.batches import Gatherer
from models.config import RunConfig, read_config
from models.data import Requests
from models.protocols import LastOfUser, NextItem, Split, split_requests
from models.relevance import (
    Watched,
    behavior_weights,
    compare,
    retrieved_behaviors,
    searches,
    weighs,
)
from models.schema import Inputs
from models.training import make_gatherer, make_network
from tests.models.generated import planted_interactions

METHODS = ("avg-pooling", "din-l", "encode", "eta", "mimn", "sdim", "sim", "twin", "ubr4ctr")
SEARCHING = {"eta", "sim", "twin", "ubr4ctr"}


@pytest.fixture(scope="module")
def split() -> Split:
    interactions = planted_interactions(users=12, items=40, baskets=8)
    return split_requests(interactions, NextItem(1, 4), LastOfUser(2, 2))


def watched(split: Split, method: str, L: int = 24, **long_term: Any) -> Watched:
    """An untrained network of a method, which has weights to compare like any other."""
    config: RunConfig = read_config(
        {
            "network": {"d": 8, "M": 4, "hidden": (8, 4)},
            "long_term": {"network": method, "L": L, **long_term},
        }
    )
    inputs = Inputs.of(split.interactions, config.schema)
    return Watched(make_network(config, inputs).eval(), make_gatherer(config, split, inputs))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_held_against_din_l(split: Split, method: str) -> None:
    found = compare(watched(split, method), watched(split, "din-l"), split.test, top=5)

    assert found.pairs == split.test.candidates.size
    assert found.least <= found.indicator < np.log(24) + 5
    assert np.isnan(found.hit_rate) == (method not in SEARCHING)


def test_din_l_itself_is_the_least(split: Split) -> None:
    din_l = watched(split, "din-l")
    found = compare(din_l, din_l, split.test)

    assert found.indicator == found.least < found.uniform


def test_average_pooling_weighs_uniformly(split: Split) -> None:
    found = compare(watched(split, "avg-pooling"), watched(split, "din-l"), split.test)

    assert found.indicator == pytest.approx(found.uniform, abs=1e-6)


def test_a_search_for_as_many_as_there_are_misses_none(split: Split) -> None:
    found = compare(watched(split, "eta", k=24), watched(split, "din-l"), split.test, top=5)

    assert found.hit_rate == pytest.approx(1)
    assert found.long_pairs == found.pairs


def test_a_search_by_the_reference_s_own_attention_misses_none(split: Split) -> None:
    reference = watched(split, "din-l")
    search = watched(split, "eta", retrieval="attention", k=5)
    search.network.load_state_dict(reference.network.state_dict(), strict=False)
    found = compare(search, reference, split.test, top=5)

    assert found.hit_rate > 0.95  # behaviors alike tie for the last place


def test_sequences_that_all_see_few_behaviors_have_no_hit_rate(split: Split) -> None:
    found = compare(watched(split, "eta", k=5), watched(split, "din-l"), split.test, top=24)

    assert np.isnan(found.hit_rate)
    assert found.long_pairs == 0


def test_what_only_the_reference_sees_has_no_weight(split: Split) -> None:
    short, long = watched(split, "avg-pooling", L=6), watched(split, "avg-pooling")
    reference = watched(split, "din-l")

    assert (
        compare(short, reference, split.test).indicator
        > compare(long, reference, split.test).indicator
    )


def test_din_answers_nothing(split: Split) -> None:
    din = watched(split, "din", L=0)
    found = compare(din, watched(split, "din-l"), split.test)

    assert not weighs(din.network.long)
    assert not searches(din.network.long)
    assert np.isnan(found.indicator)


def test_batches_do_not_matter(split: Split) -> None:
    """A hundred requests at once, or one by one as a gatherer of huge sequences makes them."""
    method, reference = watched(split, "sdim"), watched(split, "din-l")
    slow = Watched(method.network, _Longer(method.gatherer))  # type: ignore[arg-type]
    whole, single = (compare(each, reference, split.test) for each in (method, slow))

    assert single.pairs == whole.pairs
    assert single.indicator == pytest.approx(whole.indicator, rel=1e-5)


class _Longer:
    """A gatherer that says that its sequences are long."""

    def __init__(self, gatherer: Gatherer) -> None:
        self.gatherer = gatherer
        self.L = 1 << 20

    def batches(self, requests: Requests, size: int) -> Any:
        assert size == 1
        return self.gatherer.batches(requests, size)


def test_only_so_many_pairs_are_compared(split: Split) -> None:
    found = compare(watched(split, "eta"), watched(split, "din-l"), split.test, pairs=10)

    assert found.pairs == 10


def test_candidates_that_do_not_count_are_not_compared(split: Split) -> None:
    weights = split.test.weights.copy()
    weights[:, 1:] = 0
    requests = split.test._replace(weights=weights)
    found = compare(watched(split, "encode"), watched(split, "din-l"), requests)

    assert found.pairs == len(requests.cut)


def test_weights_and_retrieved_have_a_place_for_each_behavior(split: Split) -> None:
    method = watched(split, "twin", k=3)
    batch = method.gatherer(split.test)
    weights = behavior_weights(method.network, batch)
    found = retrieved_behaviors(method.network, batch)

    assert weights.shape == found.shape == (*split.test.candidates.shape, batch.mask.shape[1])
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert (found.sum(-1) <= 3).all()


def test_a_network_in_training_stays_so(split: Split) -> None:
    method = watched(split, "avg-pooling")
    method.network.train()
    compare(method, watched(split, "din-l"), split.test)

    assert method.network.training
