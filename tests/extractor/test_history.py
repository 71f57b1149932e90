from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractor.history import add_behaviors, count_items
from infra.behaviors import BEHAVIOR
from infra.store import Behaviors
from models.features import EMPTY_HISTORY, History
from tests.extractor.items import START_MS, behaviors_on


def history_of(behaviors: Behaviors) -> History:
    """Counted from a whole sequence."""
    return next(count_items(behaviors["item"].copy(), behaviors["time"].copy()).histories())


@pytest.fixture
def history() -> History:
    return history_of(behaviors_on([3, 1, 2, 3]))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 6) | st.integers(0, 2**64 - 1),
            st.integers(-(2**40), 2**45),
        ),
        max_size=80,
    )
)
def test_counting_counts_every_item(events: list[tuple[int, int]]) -> None:
    behaviors = np.zeros(len(events), BEHAVIOR)
    for i, event in enumerate(events):
        behaviors["item"][i], behaviors["time"][i] = event
    keys, times = behaviors["item"].copy(), behaviors["time"].copy()
    found = count_items(keys, times)
    items = list(dict.fromkeys(key for key, _ in events))
    assert found.items.tolist() == items
    assert found.counts.tolist() == [sum(k == key for k, _ in events) for key in items]
    assert found.item_keys.tolist() == sorted(items)
    assert found.item_counts.tolist() == [sum(k == key for k, _ in events) for key in sorted(items)]
    latest = [max(time for k, time in events if k == key) for key in sorted(items)]
    assert found.item_last.tolist() == [min(max(t // 1000, 0), 2**32 - 1) for t in latest]


def test_a_count_stops_at_what_its_field_can_hold() -> None:
    keys = np.full(70_000, 9, np.uint64)
    found = count_items(keys, np.zeros(70_000, np.int64))
    assert found.item_counts.tolist() == [65_535]
    assert found.counts.tolist() == [70_000]


# --- what came after ---


@settings(max_examples=60, deadline=None)
@given(old=st.lists(st.integers(1, 30), max_size=60), new=st.lists(st.integers(1, 40), max_size=60))
def test_newer_behaviors_give_the_history_of_the_whole_sequence(
    old: list[int], new: list[int]
) -> None:
    whole = behaviors_on(old + new)
    continued = add_behaviors(history_of(whole[: len(old)]), whole[len(old) :])
    complete = history_of(whole)
    for name in History._fields:
        found, expected = getattr(continued, name), getattr(complete, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_a_history_may_begin_with_newer_behaviors() -> None:
    behaviors = behaviors_on([5, 4, 5])
    assert add_behaviors(EMPTY_HISTORY, behaviors).counts.tolist() == [1, 2]


def test_nothing_newer_changes_nothing(history: History) -> None:
    assert add_behaviors(history, behaviors_on([])) is history


def test_a_late_event_does_not_turn_the_clock_back(history: History) -> None:
    late = behaviors_on([1], start_ms=START_MS - 10**9)
    continued = add_behaviors(history, late)
    assert continued.last[0] == history.last[0]
    assert continued.counts[0] == history.counts[0] + 1


def test_times_and_counts_stop_at_what_their_fields_can_hold(history: History) -> None:
    full = history._replace(counts=np.full(3, 65_535, np.uint16))
    continued = add_behaviors(full, behaviors_on([1], start_ms=2**50))
    assert continued.counts[0] == 65_535
    assert continued.last[0] == 2**32 - 1
    before_1970 = behaviors_on([2**60], start_ms=-(10**9))
    assert add_behaviors(full, before_1970).last[-1] == 0
