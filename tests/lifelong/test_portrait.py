from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from extractor.state import InterestState
from infra.behaviors import BEHAVIOR, item_key
from infra.store import StoredSequence, Version
from lifelong.portrait import TYPICAL, name_interests, title_of
from models.bundle import Bundle
from tests.bundles import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))


def sequence_of(items: Sequence[str]) -> StoredSequence:
    behaviors = np.zeros(len(items), BEHAVIOR)
    behaviors["item"] = [item_key(item) for item in items]
    return StoredSequence(Version(1, len(items)), behaviors, {})


def state_around(bundle: Bundle, sizes: dict[int, int]) -> InterestState:
    """A state whose clusters are centered on the items of these rows and have these sizes; the
    other clusters are empty."""
    manifest = bundle.manifest
    centers = np.zeros((manifest.K, manifest.m), np.float32)
    for cluster, row in enumerate(sizes):
        centers[cluster] = bundle.projected[row] / np.linalg.norm(bundle.projected[row])
    return InterestState(
        bundle=bundle.digest,
        epoch=1,
        count=sum(sizes.values()),
        centers=centers,
        sizes=np.array([*sizes.values(), *[0] * (manifest.K - len(sizes))], np.uint32),
        interests=np.zeros((manifest.K, manifest.d), np.float32),
        recent=np.empty(0, np.uint64),
        item_keys=np.empty(0, np.uint64),
        item_counts=np.empty(0, np.uint16),
        item_last=np.empty(0, np.uint32),
        last_time_ms=0,
    )


def test_the_largest_interest_comes_first_with_its_share(bundle: Bundle) -> None:
    state = state_around(bundle, {1: 1, 2: 3})

    named = name_interests(bundle, sequence_of(["item-1", "item-2"]), state, 5)

    assert [(one.share, one.items) for one in named] == [(0.75, ["Item 2"]), (0.25, ["Item 1"])]


def test_an_interest_is_named_by_the_items_nearest_to_its_center(bundle: Bundle) -> None:
    rows = np.arange(1, 21)
    unit = bundle.projected[rows] / np.linalg.norm(bundle.projected[rows], axis=1, keepdims=True)
    nearest = rows[np.argsort(-(unit @ unit[6]))][:TYPICAL]

    [only] = name_interests(
        bundle, sequence_of([f"item-{row}" for row in rows]), state_around(bundle, {7: 20}), 5
    )

    assert only.items == [f"Item {row}" for row in nearest]
    assert only.items[0] == "Item 7"


def test_an_item_names_only_the_interest_that_it_belongs_to(bundle: Bundle) -> None:
    items = [f"item-{i}" for i in range(1, 40)]

    named = name_interests(bundle, sequence_of(items), state_around(bundle, {1: 20, 2: 19}), 5)

    first, second = (set(one.items) for one in named)
    assert first.isdisjoint(second)


def test_no_more_interests_are_named_than_asked_for(bundle: Bundle) -> None:
    state = state_around(bundle, {1: 1, 2: 3})

    assert len(name_interests(bundle, sequence_of(["item-1", "item-2"]), state, 1)) == 1


def test_an_item_bought_often_is_named_once(bundle: Bundle) -> None:
    [only] = name_interests(bundle, sequence_of(["item-3"] * 4), state_around(bundle, {3: 4}), 5)

    assert only.items == ["Item 3"]


def test_items_unknown_to_the_bundle_name_nothing(bundle: Bundle) -> None:
    state = state_around(bundle, {1: 2})

    assert name_interests(bundle, sequence_of(["new-1", "new-2"]), state, 5) == []


def test_a_user_without_behaviors_has_no_interests(bundle: Bundle) -> None:
    assert name_interests(bundle, sequence_of([]), state_around(bundle, {}), 5) == []


def test_an_item_without_a_title_is_called_by_its_id() -> None:
    class Untitled:
        titles = ("", "")
        item_ids = ("", "item-1")

    assert title_of(Untitled(), 1) == "item-1"  # type: ignore[arg-type]
