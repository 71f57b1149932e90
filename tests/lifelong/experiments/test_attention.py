from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifelong.experiments import extra_tables
from lifelong.experiments.attention import (
    measure_consistency,
    measure_relevance,
    measure_weights,
    searching,
    weight_curves,
)
from models.config import RunConfig, read_config
from models.data.divisions import LastOfUser
from models.data.protocols import NextItem
from models.data.splits import Split, split_requests
from models.runs import load_run
from models.training import train
from tests.models.generated import planted_interactions

L = 30
TOP = 5
METHODS: Mapping[str, Mapping[str, Any]] = {
    "DIN": {"network": "din", "L": 0},
    "DIN-L": {"network": "din-l"},
    "DIN-L, another seed": {"network": "din-l", "seed": 1},
    "AvgPooling": {"network": "avg-pooling"},
    "ENCODE": {"network": "encode", "K": 4},
    "SDIM": {"network": "sdim", "m": 12},
    "one bucket": {"network": "sdim", "m": 12, "tau": 0},
    "SIM hard": {"network": "sim", "search": "hard", "k": TOP},
    "SIM soft": {"network": "sim", "search": "soft", "k": TOP},
    "SIM cluster": {"network": "sim", "search": "cluster", "clusters": 6, "k": TOP},
    "ETA": {"network": "eta", "k": TOP},
    "ETA-TA": {"network": "eta", "retrieval": "attention", "k": TOP},
    "TWIN": {"network": "twin", "heads": 2, "k": TOP},
    "TWIN w/o Para-Con": {"network": "twin", "heads": 2, "consistent": False, "k": TOP},
    "UBR4CTR": {"network": "ubr4ctr", "k": TOP},
}
SEARCHING = tuple(label for label, method in METHODS.items() if "k" in method)
BY_TERMS = ("SIM hard", "SIM cluster", "UBR4CTR")
"""Searches that find what has something in common, and no other behavior."""

Measured = dict[str, Any]


@pytest.fixture(scope="module")
def samples() -> Split:
    interactions = planted_interactions(users=12, items=40, baskets=8)
    return split_requests(interactions, NextItem(1, 6), LastOfUser(2, 2))


@pytest.fixture(scope="module")
def runs(samples: Split, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("runs")
    found = {}
    for number, (label, method) in enumerate(METHODS.items()):
        found[label] = directory / str(number)
        train(config_of(method), samples, found[label])
    return found


def config_of(method: Mapping[str, Any]) -> RunConfig:
    long_term = {"L": L} | dict(method)
    return read_config(
        {
            "seed": long_term.pop("seed", 0),
            "network": {"d": 8, "M": 4, "hidden": (8, 4)},
            "long_term": long_term,
            "training": {"learning_rate": 0.02, "batch": 128, "threads": 1},
        }
    )


@pytest.fixture(scope="module")
def relevance(runs: dict[str, Path], samples: Split) -> Measured:
    return measure_relevance(runs, samples, {})


@pytest.fixture(scope="module")
def consistency(runs: dict[str, Path], samples: Split) -> Measured:
    return measure_consistency(runs, samples, {})


@pytest.fixture(scope="module")
def weights(runs: dict[str, Path], samples: Split) -> Measured:
    return measure_weights(runs, samples, {"bins": 8, "draws": 3})


def test_what_is_measured_is_plain(
    relevance: Measured, consistency: Measured, weights: Measured
) -> None:
    for found in (relevance, consistency, weights, weight_curves({})):
        assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_what_is_measured_can_be_told(
    relevance: Measured, consistency: Measured, weights: Measured
) -> None:
    told = extra_tables.parts(
        {"relevance": [relevance] * 2, "consistency": [consistency] * 2, "weights": weights}
    )
    assert all(label in "\n".join(told) for label in ("DIN-L itself", "TWIN", "SDIM"))


def test_what_is_measured_is_the_same_again(
    runs: dict[str, Path],
    samples: Split,
    relevance: Measured,
    consistency: Measured,
    weights: Measured,
) -> None:
    again = {label: runs[label] for label in ("DIN-L", "SDIM", "TWIN")}
    for found, measured in (
        (relevance, measure_relevance(again, samples, {})),
        (consistency, measure_consistency(again, samples, {})),
        (weights, measure_weights(again, samples, {"bins": 8, "draws": 3})),
    ):
        for label in again:
            assert found["methods"][label] == measured["methods"][label]


# Relevance.


def test_ri_of_din_l_itself_is_the_least(relevance: Measured) -> None:
    assert relevance["methods"]["DIN-L"]["ri"] == relevance["least"]
    found = {label: each["ri"] for label, each in relevance["methods"].items() if each["ri"]}
    assert found.keys() == METHODS.keys() - {"DIN"}
    assert all(ri >= relevance["least"] for ri in found.values())


def test_another_seed_of_din_l_is_not_the_same(relevance: Measured) -> None:
    assert relevance["methods"]["DIN-L, another seed"]["ri"] > relevance["least"]


def test_ri_of_equal_weights_is_the_uniform_one(relevance: Measured) -> None:
    assert relevance["methods"]["AvgPooling"]["ri"] == pytest.approx(relevance["uniform"])


def test_smoothing_matters_to_searches_alone(relevance: Measured) -> None:
    assert [bounds["smoothing"] for bounds in relevance["by_smoothing"]] == [0.01, 0.1, 0.001]
    methods = relevance["methods"]
    assert np.ptp(methods["ETA"]["ri_by_smoothing"]) > 1
    assert np.ptp(methods["DIN-L"]["ri_by_smoothing"]) < 0.01


def test_pairs_without_a_find_are_told(relevance: Measured) -> None:
    assert 0 < relevance["methods"]["SIM hard"]["unweighted"] < 1
    assert relevance["methods"]["SIM soft"]["unweighted"] == 0


def test_a_method_without_weights_has_a_reason(relevance: Measured, weights: Measured) -> None:
    assert relevance["methods"]["DIN"] == {"ri": None, "reason": "it weighs no behaviors"}
    assert weights["methods"]["DIN"] == {"weight": None, "reason": "it weighs no behaviors"}


# Consistency.


def test_the_top_is_as_many_as_the_searches_let_through(consistency: Measured) -> None:
    assert consistency["top"] == TOP


@pytest.mark.parametrize("label", ["TWIN", "ETA-TA"])
def test_a_consistent_search_finds_the_whole_top(consistency: Measured, label: str) -> None:
    found = consistency["methods"][label]
    assert found["hits_at_top"] == TOP
    assert found["hits"] == [min(size, TOP) for size in found["sizes"]]


@pytest.mark.parametrize("label", ["SIM soft", "ETA", "TWIN w/o Para-Con", *BY_TERMS])
def test_another_search_misses_some(consistency: Measured, label: str) -> None:
    assert 0 < consistency["methods"][label]["hits_at_top"] < TOP


@pytest.mark.parametrize("label", SEARCHING)
def test_all_behaviors_hold_the_whole_top(consistency: Measured, label: str) -> None:
    found = consistency["methods"][label]
    assert found["sizes"][-1] == L
    assert found["filled"][-1] == found["chance"][-1] == TOP
    assert (found["hits"][-1] == TOP) == (label not in BY_TERMS)


@pytest.mark.parametrize("label", SEARCHING)
def test_more_is_never_worse(consistency: Measured, label: str) -> None:
    found = consistency["methods"][label]
    for name in ("hits", "returned", "filled", "chance"):
        assert (np.diff(found[name]) >= 0).all()
    assert (np.array(found["hits"]) <= found["filled"]).all()
    assert (np.array(found["hits"]) <= found["returned"]).all()


@pytest.mark.parametrize("label", SEARCHING)
def test_no_choice_has_more_attention_than_the_best(consistency: Measured, label: str) -> None:
    found = consistency["methods"][label]
    assert 0 < found["weight_at_top"] <= found["weight_best"] + 1e-6
    assert found["weight_best"] < 1


def test_without_a_search_there_is_a_reason(consistency: Measured) -> None:
    for label in METHODS.keys() - set(SEARCHING):
        assert consistency["methods"][label] == {"hits": None, "reason": "it has no search stage"}


def test_requests_with_few_behaviors_are_left_out(runs: dict[str, Path], samples: Split) -> None:
    eta = {"ETA": runs["ETA"]}
    own = replace(samples, test=samples.validation)
    lengths = np.minimum(own.history(own.test), L)
    assert lengths.min() < lengths.max() < L
    for top in (lengths.min(), lengths.max()):
        found = measure_consistency(eta, own, {"top": int(top)})["methods"]["ETA"]
        expected = own.test.candidates.shape[1] * int((lengths > top).sum())
        assert found.get("pairs", 0) == expected
        assert ("reason" in found) == (not expected)


def test_sizes_may_be_told(runs: dict[str, Path], samples: Split) -> None:
    twin = {"TWIN": runs["TWIN"]}
    found = measure_consistency(twin, samples, {"top": 4, "sizes": [2, 8]})["methods"]["TWIN"]
    assert found["sizes"] == [2, 8]
    assert found["hits"] == [2, 4]
    assert found["hits_at_top"] == 4


def test_only_so_many_pairs_are_looked_at(runs: dict[str, Path], samples: Split) -> None:
    eta = {"ETA": runs["ETA"]}
    found = measure_consistency(eta, samples, {"pairs": 21})["methods"]["ETA"]
    assert found["pairs"] == 21


def test_another_size_of_search_has_the_learned_weights(runs: dict[str, Path]) -> None:
    run = load_run(runs["TWIN w/o Para-Con"])
    other = searching(run, 9).state_dict()
    learned = run.network.long.state_dict()
    assert other.keys() == learned.keys()
    assert all(other[name].equal(part) for name, part in learned.items())


# Weights.


def test_curves_are_those_of_the_papers() -> None:
    found = weight_curves({"points": 5})
    curves = found["curves"]
    assert found["cosine"] == [-1, -0.5, 0, 0.5, 1]
    assert len(curves) == 8
    assert all(curve[-1] == pytest.approx(1) for curve in curves.values())
    assert curves["SDIM, τ = 3"] == pytest.approx([0, 1 / 27, 1 / 8, 8 / 27, 1])
    assert curves["target attention"][2] == pytest.approx(np.exp(-2))
    assert curves["ENCODE, ÷ 20"][2] == pytest.approx(np.exp(-0.05))


@pytest.mark.parametrize("label", sorted(METHODS.keys() - {"DIN"}))
def test_weights_have_a_mean_of_1(weights: Measured, label: str) -> None:
    found = weights["methods"][label]
    assert len(weights["edges"]) == 9
    assert sum(found["behaviors"]) == pytest.approx(1)
    for name in {"weight", "expected"} & found.keys():
        assert [mean is None for mean in found[name]] == [not part for part in found["behaviors"]]
        means = [mean or 0 for mean in found[name]]
        # Where a search finds nothing there are no weights.
        most = pytest.approx(1, abs=1e-4) if label not in BY_TERMS else pytest.approx(0.5, abs=0.5)
        assert np.dot(means, found["behaviors"]) == most


def test_equal_weights_do_not_depend_on_the_cosine(weights: Measured) -> None:
    found = weights["methods"]["AvgPooling"]["weight"]
    assert [mean for mean in found if mean is not None] == pytest.approx(
        [1] * (len(found) - found.count(None)), abs=1e-5
    )


def test_collisions_favor_the_similar(weights: Measured) -> None:
    sdim = weights["methods"]["SDIM"]
    known = [(found, told) for found, told in zip(sdim["weight"], sdim["expected"], strict=True)]
    first, *_, last = [pair for pair in known if pair[0] is not None]
    assert first[0] < 1 < last[0]
    assert first[1] < 1 < last[1]


def test_more_hashes_come_closer_to_the_expectation(weights: Measured) -> None:
    sampling = weights["methods"]["SDIM"]["sampling"]
    assert sampling["tau"] == 3
    assert sampling["m"] == [24, 36, 48, 60, 72, 90, 120]
    for name in ("probability", "weight"):
        errors = sampling[name]
        assert errors == sorted(errors, reverse=True)
        # Five times as many independent groups: the error falls by the root of it.
        assert errors[0] / errors[-1] == pytest.approx(5**0.5, rel=0.3)


def test_one_bucket_samples_nothing(weights: Measured) -> None:
    assert weights["methods"]["one bucket"].keys() == {"weight", "behaviors"}
