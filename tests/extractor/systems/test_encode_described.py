"""What ENCODE's interests are called."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from extractor.state import InterestState
from extractor.systems import open_system
from extractor.systems.encode import TYPICAL
from infra.behaviors import BEHAVIOR, item_key
from infra.store import StoredSequence, Version
from models.bundle import Bundle
from models.features import EMPTY_HISTORY
from tests.bundles import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))


def sequence_of(items: Sequence[str]) -> StoredSequence:
    behaviors = np.zeros(len(items), BEHAVIOR)
    behaviors["item"] = [item_key(item) for item in items]
    return StoredSequence(Version(1, len(items)), behaviors, {})


def state_around(bundle: Bundle, sizes: dict[int, int]) -> InterestState:
    """A state whose clusters are centered on the items of these rows and have these sizes."""
    rows = np.array([*sizes], int)
    norms = np.linalg.norm(bundle.tables["projected"][rows], axis=1, keepdims=True)
    return InterestState(
        bundle=bundle.digest,
        version=Version(1, sum(sizes.values())),
        last_time_ms=0,
        recent=np.empty(0, np.uint64),
        history=EMPTY_HISTORY,
        tensors={
            "centers": bundle.tables["projected"][rows] / norms,
            "interests": np.zeros((len(rows), bundle.manifest.d), np.float32),
            "sizes": np.array([*sizes.values()], np.uint32),
        },
    )


def describe(
    bundle: Bundle, sequence: StoredSequence, state: InterestState, most: int
) -> list[tuple[float, list[str]]]:
    """Shares, and the titles of the typical items."""
    parts = open_system(bundle).describe(state, sequence, most)
    return [(part.share, [bundle.titles[row] for row in part.rows]) for part in parts]


def test_the_largest_interest_comes_first_with_its_share(bundle: Bundle) -> None:
    state = state_around(bundle, {1: 1, 2: 3})

    named = describe(bundle, sequence_of(["item-1", "item-2"]), state, 5)

    assert named == [(0.75, ["Item 2"]), (0.25, ["Item 1"])]


def test_an_interest_is_named_by_the_items_nearest_to_its_center(bundle: Bundle) -> None:
    rows = np.arange(1, 21)
    unit = bundle.tables["projected"][rows] / np.linalg.norm(
        bundle.tables["projected"][rows], axis=1, keepdims=True
    )
    nearest = rows[np.argsort(-(unit @ unit[6]))][:TYPICAL]

    [only] = describe(
        bundle, sequence_of([f"item-{row}" for row in rows]), state_around(bundle, {7: 20}), 5
    )

    assert only[1] == [f"Item {row}" for row in nearest]
    assert only[1][0] == "Item 7"


def test_an_item_names_only_the_interest_that_it_belongs_to(bundle: Bundle) -> None:
    items = [f"item-{i}" for i in range(1, 40)]

    named = describe(bundle, sequence_of(items), state_around(bundle, {1: 20, 2: 19}), 5)

    first, second = (set(items) for _, items in named)
    assert first.isdisjoint(second)


def test_no_more_interests_are_named_than_asked_for(bundle: Bundle) -> None:
    state = state_around(bundle, {1: 1, 2: 3})

    assert len(describe(bundle, sequence_of(["item-1", "item-2"]), state, 1)) == 1


def test_an_item_bought_often_is_named_once(bundle: Bundle) -> None:
    [only] = describe(bundle, sequence_of(["item-3"] * 4), state_around(bundle, {3: 4}), 5)

    assert only[1] == ["Item 3"]


def test_items_unknown_to_the_bundle_name_nothing(bundle: Bundle) -> None:
    state = state_around(bundle, {1: 2})

    assert describe(bundle, sequence_of(["new-1", "new-2"]), state, 5) == []


def test_a_user_without_behaviors_has_no_interests_to_name(bundle: Bundle) -> None:
    assert describe(bundle, sequence_of([]), state_around(bundle, {}), 5) == []
