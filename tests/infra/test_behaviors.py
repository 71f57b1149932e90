"""The actions of a platform: which lists are taken, and what their names are stored as."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.behaviors import (
    BEHAVIOR,
    DEFAULT_ACTIONS,
    MAX_ACTION_BYTES,
    MAX_ACTIONS,
    ActionNames,
)

NAMES = st.lists(st.text("abcé ñ'-", min_size=1, max_size=8), min_size=1, max_size=20, unique=True)


def lists(names: list[str]) -> ActionNames | None:
    """None: no list, since a name is only spaces."""
    return ActionNames(tuple(names)) if all(map(str.strip, names)) else None


@given(names=NAMES)
def test_a_code_leads_back_to_its_name(names: list[str]) -> None:
    actions = lists(names)
    if actions is not None:
        assert [actions.name(actions.codes[name]) for name in names] == names


@given(names=NAMES, kept=st.integers(1, 20))
def test_a_list_extends_every_beginning_of_itself_and_no_other_order(
    names: list[str], kept: int
) -> None:
    actions, before = lists(names), lists(names[:kept])
    if actions is None or before is None:
        return
    assert actions.extends(before)
    assert before.extends(actions) == (before == actions)
    assert lists(names[::-1]).extends(actions) == (len(names) == 1)  # type: ignore[union-attr]


def test_what_a_list_extends_it_reads_alike() -> None:
    longer = ActionNames(("view", "buy", "return"))
    shorter = ActionNames(("view", "buy"))
    assert longer.extends(shorter)
    assert shorter.codes.items() <= longer.codes.items()


def test_a_code_that_no_name_has_is_none() -> None:
    actions = ActionNames(("view", "buy"))
    assert [actions.name(code) for code in (0, 3, 255)] == [None] * 3


def test_as_many_actions_as_a_stored_byte_tells_apart() -> None:
    actions = ActionNames(tuple(f"action {code}" for code in range(1, MAX_ACTIONS + 1)))
    assert actions.codes[f"action {MAX_ACTIONS}"] == 2 ** (8 * BEHAVIOR["action"].itemsize) - 1


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "names 0 actions; name 1 to 255"),
        (tuple(map(str, range(256))), "names 256 actions; name 1 to 255"),
        (("view", ""), "name 2 is empty"),
        (("  ",), "name 1 is empty"),
        (("view", "buy", "view"), "'view' stands twice, as names 1 and 3"),
        (("vi\new",), r"'vi\\new' holds a control character"),
        (("vi\0ew",), r"'vi\\x00ew' holds a control character"),
        (("vi\u2028ew",), "holds a control character"),
        (("vi\ud800ew",), "holds a control character"),
        (("view", "é" * (MAX_ACTION_BYTES // 2) + "e"), "name 2 has more than 64 bytes"),
    ],
)
def test_a_list_that_cannot_be_stored_is_refused(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        ActionNames(names)
    assert "\n" not in str(caught.value)


def test_a_list_is_immutable_and_equal_to_its_copies() -> None:
    copy = pickle.loads(pickle.dumps(DEFAULT_ACTIONS))  # noqa: S301  # our own bytes
    assert copy == DEFAULT_ACTIONS
    assert hash(copy) == hash(DEFAULT_ACTIONS)
    assert copy.codes == DEFAULT_ACTIONS.codes
    with pytest.raises(AttributeError):
        copy.names = ("view",)


def test_the_codes_of_the_default_actions_stay_what_they_are() -> None:
    assert DEFAULT_ACTIONS.codes == {
        "view": 1,
        "click": 2,
        "cart": 3,
        "purchase": 4,
        "favorite": 5,
        "like": 6,
        "share": 7,
        "rate": 8,
        "play": 9,
        "search": 10,
    }
