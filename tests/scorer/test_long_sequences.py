"""TWIN's 10,000 behaviors, from events through each store to CTRs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from extractor.systems import load_system
from infra.behaviors import BEHAVIOR, Source
from infra.metrics import ScorerMetrics
from infra.settings import Settings, load_settings
from infra.store import Append, Group, Store, StoreOptions
from infra.stores.lmdb import LmdbStore
from models.reference.serving import extract_plainly, score_stored
from scorer.ids import item_keys
from scorer.ranking import Ranker
from tests.aerospike_double import aerospike_server, open_aerospike  # noqa: F401  (a fixture)
from tests.bundles import tiny_bundle

LENGTH = 10_000
NOW_MS = 1_700_000_000_000
CANDIDATES = [f"item-{i}" for i in range(1, 61)]


@pytest.fixture(params=["lmdb", "aerospike"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    options = StoreOptions(length=LENGTH)
    opened: Store
    if request.param == "lmdb":
        opened = LmdbStore(tmp_path / "store", options)
    else:
        opened = open_aerospike(request.getfixturevalue("aerospike_server"), options)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = tmp_path_factory.mktemp("bundles") / "twin"
    tiny_bundle(path, L=LENGTH, K=100, system="twin")
    return load_settings({"bundle": {"path": str(path)}, "store": {"length": LENGTH}}, environ={})


def test_the_last_10_000_behaviors_are_searched(store: Store, settings: Settings) -> None:
    bundle, system = load_system(settings)
    length = LENGTH + 100
    behaviors = np.zeros(length, BEHAVIOR)
    numbers = np.random.default_rng(0).integers(1, 70, length)  # beyond 50 they are unknown
    behaviors["item"] = item_keys([f"item-{number}" for number in numbers])
    behaviors["time"] = NOW_MS - 60_000 * np.arange(length, 0, -1, dtype=np.int64)
    packed = behaviors.view(f"V{BEHAVIOR.itemsize}").tolist()
    for start in range(0, length, 1000):
        offsets = list(range(start, min(start + 1000, length)))
        some = Append("u", [packed[i] for i in offsets], [0] * len(offsets), offsets)
        store.append([Group(Source(1, 1), [some])], NOW_MS)

    ranker = Ranker(store, bundle, system, ScorerMetrics(CollectorRegistry()))
    ranking = ranker.rank("u", CANDIDATES, NOW_MS)

    keys, times = behaviors["item"].copy(), behaviors["time"].copy()
    plain = extract_plainly(bundle, keys, times)
    expected = score_stored(bundle, bundle.scorer_session(), plain, item_keys(CANDIDATES), NOW_MS)
    assert (ranking.history, ranking.newer) == ("sequence", LENGTH)
    np.testing.assert_allclose(ranking.ctrs, expected, rtol=0, atol=1e-5)
