"""Ids, numbers, dwell times and actions: what is taken and what it becomes."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest

from infra.behaviors import ActionNames
from streaming.events import values
from streaming.events.rejects import Reason, Rejected
from streaming.events.values import Actions, as_number, read_dwell, read_id


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("u1", "u1"),
        (" ", " "),
        ("007", "007"),
        ("7.0", "7.0"),
        (42, "42"),
        (-7, "-7"),
        (2**70, str(2**70)),
        (7.0, "7"),
        (-0.0, "0"),
        (2.0**53, str(2**53)),
        (Decimal("12.00"), "12"),
        ("ü" * 128, "ü" * 128),
    ],
)
def test_an_id_is_a_text_or_a_whole_number(value: object, text: str) -> None:
    assert read_id(value, "user_id", 256) == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", Reason.EMPTY),
        (True, Reason.WRONG_TYPE),
        (1.5, Reason.WRONG_TYPE),
        (2.0**53 + 2, Reason.WRONG_TYPE),
        (math.nan, Reason.WRONG_TYPE),
        (math.inf, Reason.WRONG_TYPE),
        (Decimal("1.5"), Reason.WRONG_TYPE),
        ([1], Reason.WRONG_TYPE),
        ({"id": 1}, Reason.WRONG_TYPE),
        ("u\0x", Reason.BAD_TEXT),
        ("ü" * 129, Reason.TOO_LONG),
        (10**256, Reason.TOO_LONG),
    ],
)
def test_what_is_no_id_is_refused(value: object, reason: Reason) -> None:
    with pytest.raises(Rejected, match="user_id") as caught:
        read_id(value, "user_id", 256)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (5, 5),
        (1.5, 1.5),
        ("12", 12),
        (" -12 ", -12),
        ("+5", 5),
        ("0012", 12),
        ("1.", 1.0),
        (".5", 0.5),
        ("1.5e3", 1500.0),
        ("9007199254740993", 9007199254740993),
        (Decimal(9007199254740993), 9007199254740993),
        (Decimal("1.5"), 1.5),
        *[(no, None) for no in ("", " ", "abc", "nan", "inf", "1_0", "0x1F", "٣", "1e", "--1")],
        (math.nan, None),
        (math.inf, None),
    ],
)
def test_a_text_that_says_a_number_is_that_number(value: object, number: float | None) -> None:
    found = as_number(value, "dwell_ms")
    assert found == number
    assert type(found) is type(number)


@pytest.mark.parametrize("value", ["1e999", "-1e999", "9" * 5000])
def test_a_number_beyond_all_is_refused(value: str) -> None:
    with pytest.raises(Rejected) as caught:
        as_number(value, "dwell_ms")
    assert caught.value.reason is Reason.TOO_LONG


@pytest.mark.parametrize(
    ("value", "dwell"),
    [(0, 0), (250, 250), (1.9, 1), ("1.9", 1), (-0.0, 0), (2**32 - 1, 2**32 - 1)],
)
def test_a_dwell_time_is_rounded_down(value: object, dwell: int) -> None:
    assert read_dwell(value, "dwell_ms") == dwell


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-1, Reason.NEGATIVE),
        (-0.1, Reason.NEGATIVE),
        (2**32, Reason.TOO_LONG),
        (10**3000, Reason.TOO_LONG),
        ("long", Reason.WRONG_TYPE),
        (math.nan, Reason.WRONG_TYPE),
        (False, Reason.WRONG_TYPE),
        ([], Reason.WRONG_TYPE),
    ],
)
def test_what_is_no_dwell_time_is_refused(value: object, reason: Reason) -> None:
    with pytest.raises(Rejected, match="dwell_ms") as caught:
        read_dwell(value, "dwell_ms")
    assert caught.value.reason is reason


DECLARED = ActionNames(("view", "click", "purchase", "like"))


def test_actions_are_those_declared_and_those_mapped_onto_them() -> None:
    actions = Actions(DECLARED, {"buy": "purchase"}, 256)
    assert actions.read("buy", "action") == actions.read("purchase", "action") == 3
    assert actions.read("click", "action") == 2


def test_an_event_may_spell_an_action_as_another_one_is_declared() -> None:
    assert Actions(DECLARED, {"view": "click"}, 256).read("view", "action") == 2


def test_an_action_that_no_event_could_carry_is_not_known() -> None:
    odd = {"": "like", "a\0b": "like", "x" * 257: "like"}
    assert Actions(DECLARED, odd, 256).codes == DECLARED.codes


def test_an_unknown_action_is_told_with_its_nearest_and_the_settings_to_extend() -> None:
    actions = Actions(DECLARED, {}, 256)
    with pytest.raises(Rejected) as caught:
        actions.read("clik", "action (kind)")
    assert caught.value.reason is Reason.UNKNOWN_ACTION
    assert caught.value.detail == (
        "action (kind) 'clik' is not known (did you mean click?); add it to events.action_names,"
        " or map it in events.actions"
    )


def test_unknown_actions_without_end_are_refused_without_looking_for_the_nearest() -> None:
    actions = Actions(DECLARED, {}, 256)
    for number in range(values.HINTS + 2):
        near = r" \(did you mean click.*" if number < values.HINTS else ";"
        with pytest.raises(Rejected, match=f"action 'clic{number}' is not known{near}"):
            actions.read(f"clic{number}", "action")
    with pytest.raises(Rejected, match="did you mean click"):  # which was found before
        actions.read("clic0", "action")
