from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from extractor.systems import load_system
from infra.behaviors import item_key
from infra.errors import LifelongError
from infra.settings import load_settings
from lifelong.bench.catalog import OURS, PEER, Load, grown, measure_lookups
from lifelong.shipped import BUNDLE
from models.bundle import Bundle, save_bundle

ITEMS = 6000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "grown"
    save_bundle(grown(Bundle.load(BUNDLE), ITEMS), path)
    return path


def test_a_grown_bundle_is_served_like_the_one_it_grew_from(path: Path) -> None:
    bundle, _ = load_system(load_settings({"bundle": {"path": str(path)}}, environ={}))
    shipped = Bundle.load(BUNDLE, verify=False)
    more = ITEMS - shipped.manifest.n_items
    assert bundle.manifest.n_items == ITEMS
    assert bundle.item_ids[1] == shipped.item_ids[1]
    assert bundle.item_ids[-1] == f"made-{more - 1}"
    assert bundle.titles[-1] == f"An item that was made up, {more - 1}"
    keys = np.array([item_key(bundle.item_ids[row]) for row in (1, ITEMS, 5000)], np.uint64)
    assert bundle.rows(keys).tolist() == [1, ITEMS, 5000]


def test_both_ways_are_measured_in_every_round(path: Path) -> None:
    rounds = measure_lookups(path, Load(items=ITEMS, rounds=2, requests=1))
    assert [len(rounds[name]) for name in (OURS, PEER)] == [2, 2]
    assert all(value > 0 for values in rounds.values() for value in values)


def test_a_bundle_does_not_shrink() -> None:
    with pytest.raises(LifelongError, match="name more"):
        grown(Bundle.load(BUNDLE), 100)
