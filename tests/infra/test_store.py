"""Appends as columns, against the appends that they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.behaviors import pack_behavior
from infra.store import Append, Appends


def append(user: str, events: int) -> Append:
    return Append(
        user,
        [pack_behavior(place, 1_000 + place, 0, 0, 0) for place in range(events)],
        [place + 1 for place in range(events)],
        [10 * place for place in range(events)],
    )


many = st.lists(st.builds(append, st.sampled_from("abcdef"), st.integers(0, 4)), max_size=6)


@settings(deadline=None)
@given(many)
def test_columns_are_the_appends_that_they_are_of(appends: Sequence[Append]) -> None:
    columns = Appends.of(appends)
    assert list(columns) == appends
    assert [columns[place] for place in range(len(appends))] == appends
    assert columns.longest == max((len(new.offsets) for new in appends), default=0)


@settings(deadline=None)
@given(many, many)
def test_joined_are_those_of_all(first: list[Append], second: list[Append]) -> None:
    assert list(Appends.joined([Appends.of(first), Appends.of(second)])) == first + second


@settings(deadline=None)
@given(many, st.randoms())
def test_an_order_moves_users_with_their_events(
    appends: list[Append], random: st.DataObject
) -> None:
    order = list(range(len(appends)))
    random.shuffle(order)  # type: ignore[attr-defined]
    ordered = Appends.of(appends).ordered(np.array(order, np.int64))
    assert list(ordered) == [appends[place] for place in order]


@settings(deadline=None)
@given(many, st.integers(0, 7), st.integers(0, 7))
def test_a_part_is_a_slice(appends: list[Append], start: int, stop: int) -> None:
    columns = Appends.of(appends)
    assert list(columns.part(start, max(start, stop))) == appends[start : max(start, stop)]
    assert columns[start:stop] == appends[start:stop]


def test_there_is_none_behind_the_last() -> None:
    columns = Appends.of([append("a", 2), append("b", 1)])
    assert columns[-1].user == "b"
    with pytest.raises(IndexError):
        columns[2]
