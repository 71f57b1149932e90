from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from infra.errors import TrainingError
from models.config import RunConfig, read_config
from models.data.batches import Batch, Gatherer
from models.data.divisions import LastOfUser
from models.data.protocols import NextItem
from models.data.requests import Requests
from models.data.schema import Inputs
from models.data.splits import Split, split_requests
from models.measures.relevance import (
    Oracle,
    Watched,
    behavior_weights,
    compare,
    compare_all,
    oracle_of,
    retrieved_behaviors,
    searches,
    weighs,
)
from models.prediction import make_gatherer, make_network
from tests.models.generated import planted_interactions

METHODS = (
    "avg-pooling",
    "din-l",
    "encode",
    "eta",
    "mimn",
    "sdim",
    "sdim-expected",
    "sim",
    "twin",
    "ubr4ctr",
)
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


def test_all_smoothings_at_once_are_each_alone(split: Split) -> None:
    eta, reference = watched(split, "eta", k=5), watched(split, "din-l")
    smoothings = (0.01, 0.1)
    found = compare_all(eta, reference, split.test, smoothings)

    assert found == [
        compare(eta, reference, split.test, smoothing=smoothing) for smoothing in smoothings
    ]
    assert found[0].indicator > found[1].indicator


def test_what_only_the_reference_sees_has_no_weight(split: Split) -> None:
    short, long = watched(split, "avg-pooling", L=6), watched(split, "avg-pooling")
    reference = watched(split, "din-l")

    assert (
        compare(short, reference, split.test).indicator
        > compare(long, reference, split.test).indicator
    )


def test_pairs_for_which_a_search_finds_nothing_are_told(split: Split) -> None:
    hard, reference = watched(split, "sim", search="hard", k=24), watched(split, "din-l")
    found = compare(hard, reference, split.test)
    batch = hard.gatherer(split.test)
    nothing = ~retrieved_behaviors(hard.network, batch).any(-1)

    assert 0 < found.unweighted < 1
    assert found.unweighted == pytest.approx(nothing.mean())
    assert compare(watched(split, "avg-pooling"), reference, split.test).unweighted == 0


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


@pytest.mark.parametrize(
    ("method", "own"),
    [("eta", {}), ("sim", {"search": "soft"}), ("twin", {"heads": 2}), ("twin", {"heads": 4})],
)
def test_an_oracle_attends_as_if_all_had_been_found(
    split: Split, method: str, own: dict[str, Any]
) -> None:
    everything = watched(split, method, k=24, **own)
    network, batch = everything.network, everything.gatherer(split.test)
    oracle = oracle_for(everything, batch, 5)

    np.testing.assert_allclose(oracle.weights.detach(), behavior_weights(network, batch), atol=1e-6)


@pytest.mark.parametrize(("method", "metric"), [("sim", "attention.metric"), ("ubr4ctr", "metric")])
def test_an_oracle_attends_to_what_its_search_would_never_find(
    split: Split, method: str, metric: str
) -> None:
    """Whatever the search, a single head of attention is that of DIN-L."""
    hard: dict[str, Any] = {"search": "hard"} if method == "sim" else {}
    search, reference = watched(split, method, k=3, **hard), watched(split, "din-l")
    with torch.no_grad():
        learned = reference.network.long.get_parameter("attention.metric").normal_()
        search.network.long.get_parameter(metric).copy_(learned)
        search.network.embedding.weight.copy_(reference.network.embedding.weight)
    batch = search.gatherer(split.test)

    np.testing.assert_allclose(
        oracle_for(search, batch, 5).weights.detach(),
        behavior_weights(reference.network, batch),
        atol=1e-6,
    )


def test_twin_s_oracle_chooses_as_its_search_does(split: Split) -> None:
    twin = watched(split, "twin", heads=4, k=5)
    batch = twin.gatherer(split.test)

    chosen = oracle_for(twin, batch, 5).relevance.numpy() > 0
    np.testing.assert_array_equal(chosen, retrieved_behaviors(twin.network, batch))


def test_a_method_of_one_stage_has_no_oracle(split: Split) -> None:
    sdim = watched(split, "sdim")
    with pytest.raises(TrainingError, match="SDIM has no attention"):
        oracle_for(sdim, sdim.gatherer(split.test), 5)


def oracle_for(method: Watched, batch: Batch, top: int) -> Oracle:
    network = method.network
    table = network.item_table()
    sequence, target = network.sequence(batch, table), network.target(batch, table)
    return oracle_of(network.long, sequence, target, top)
