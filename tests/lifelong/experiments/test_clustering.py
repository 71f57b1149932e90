"""All four clusterings are timed on the same users, and k-means makes the tightest clusters."""

import json
from typing import Any, get_args

import pytest

from lifelong.experiments.clustering import measure_clusterings
from models.modules.clusterings import Clustering


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return measure_clusterings(behaviors=120, K=8, T=5, users=4, rounds=3)


def test_every_clustering_is_there_with_its_rounds(measured: dict[str, Any]) -> None:
    assert measured["methods"].keys() == set(get_args(Clustering))
    for method in measured["methods"].values():
        assert len(method["ms_all"]) == 3
        assert min(method["ms_all"]) <= method["ms"] <= max(method["ms_all"])
        assert method["ms"] > 0
        assert method["ratio"] > 0


def test_times_are_relative_to_k_means(measured: dict[str, Any]) -> None:
    assert measured["methods"]["k-means"]["ratio"] == 1.0


def test_what_clusters_is_tighter_than_chance(measured: dict[str, Any]) -> None:
    cosines = {name: method["cosine"] for name, method in measured["methods"].items()}
    assert all(-1 <= cosine <= 1 for cosine in cosines.values())
    assert min(cosines["k-means"], cosines["agglomerative"]) > 0.8
    assert cosines["random"] < 0.6


def test_tightness_is_the_same_every_time(measured: dict[str, Any]) -> None:
    again = measure_clusterings(behaviors=120, K=8, T=5, users=4, rounds=1)
    for name, method in measured["methods"].items():
        assert again["methods"][name]["cosine"] == method["cosine"]


def test_the_result_says_the_sizes_and_is_plain_json(measured: dict[str, Any]) -> None:
    assert {name: measured[name] for name in ("L", "m", "K", "T")} == {
        "L": 120,
        "m": 4,
        "K": 8,
        "T": 5,
    }
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
