from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lifelong
from infra.behaviors import DEFAULT_ACTIONS, item_key
from lifelong.shipped import (
    BUNDLES,
    HISTORY_SHARE,
    ITEMS,
    MAPPING,
    PURCHASES,
    Purchases,
    write_purchases,
)
from models.bundle import Bundle
from streaming.files.reader import read_events

MOST_BYTES = 8_000_000


@pytest.fixture(scope="module")
def purchases() -> Purchases:
    return Purchases.load()


@pytest.fixture(scope="module", params=BUNDLES)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return Bundle.load(BUNDLES[request.param])


def test_all_purchases_are_there(purchases: Purchases) -> None:
    assert len(purchases) == 791_044 == len(purchases.item) == len(purchases.time_ms)


def test_purchases_are_ordered_by_time(purchases: Purchases) -> None:
    assert (np.diff(purchases.time_ms) >= 0).all()


def test_the_last_fifth_is_live(purchases: Purchases) -> None:
    first = purchases.history_rows
    assert int(len(purchases) * 0.8) <= first < int(len(purchases) * 0.8) + 200
    assert purchases.time_ms[first - 1] < purchases.time_ms[first]
    assert len(purchases) - first == 158_061


def test_every_item_has_a_title(purchases: Purchases) -> None:
    assert all(purchases.titles.get(item) for item in purchases.items)


def test_a_behavior_is_made_of_each_purchase(purchases: Purchases) -> None:
    behaviors = purchases.behaviors()
    last = behaviors[-1]

    assert len(behaviors) == len(purchases)
    assert last["item"] == item_key(purchases.items[purchases.item[-1]])
    assert last["time"] == purchases.time_ms[-1]
    assert last["action"] == DEFAULT_ACTIONS.codes["purchase"]


def test_written_purchases_are_read_as_events(purchases: Purchases, tmp_path: Path) -> None:
    write_purchases(10, 15, tmp_path / "some.parquet")

    [batch] = read_events(tmp_path / "some.parquet", MAPPING)

    assert batch.items.to_pylist() == [purchases.items[code] for code in purchases.item[10:15]]
    assert batch.users.to_pylist() == [purchases.users[code] for code in purchases.user[10:15]]
    np.testing.assert_array_equal(batch.times, purchases.time_ms[10:15])
    assert set(batch.actions.tolist()) == {DEFAULT_ACTIONS.codes["purchase"]}


def test_what_is_shipped_is_small() -> None:
    shipped = Path(lifelong.__file__).parent / "data"
    sizes = [file.stat().st_size for file in shipped.rglob("*") if file.is_file()]

    assert sum(sizes) < MOST_BYTES


def test_where_the_purchases_are_from_is_told_beside_them() -> None:
    attribution = (PURCHASES.parent / "ATTRIBUTION.md").read_text()

    assert ITEMS.parent == PURCHASES.parent
    assert "CC BY 4.0" in attribution or "Creative Commons Attribution 4.0" in attribution


def test_a_shipped_bundle_is_of_its_system() -> None:
    for system, path in BUNDLES.items():
        assert Bundle.load(path, verify=False).manifest.system == system


def test_the_shipped_bundle_loads_with_its_checksums(bundle: Bundle) -> None:
    assert len(bundle.golden) > 0
    assert len(bundle.item_ids) == bundle.manifest.n_items + 1


def test_the_shipped_model_has_seen_the_history_only(bundle: Bundle, purchases: Purchases) -> None:
    assert bundle.manifest.data["share"] == HISTORY_SHARE == 0.8
    assert bundle.manifest.data["behaviors"] <= purchases.history_rows
    assert bundle.manifest.data["until"] * 1000 <= purchases.time_ms[purchases.history_rows - 1]


def test_the_shipped_model_knows_no_item_that_history_does_not(
    bundle: Bundle, purchases: Purchases
) -> None:
    seen = np.unique(purchases.item[: purchases.history_rows])

    assert set(bundle.item_ids[1:]) <= {purchases.items[code] for code in seen}
