from __future__ import annotations

from typing import Any

import pytest

from infra.settings import EventSettings
from tests.streaming.events.formats.events import brief, outcomes

SEGMENT = EventSettings(format="segment")


def track(event: str = "Product Viewed", **changes: Any) -> dict[str, Any]:
    return {
        "type": "track",
        "event": event,
        "messageId": "m",
        "userId": "u",
        "anonymousId": "a",
        "timestamp": "2026-10-05T14:48:00.120Z",
        "properties": {"product_id": "p"},
    } | changes


def test_a_track_call_is_a_behavior() -> None:
    [event] = outcomes(SEGMENT, track())
    assert event[:2] == ("u", "p")
    assert event[3] == 1_791_211_680_120


@pytest.mark.parametrize("nobody", [{"userId": None}, {"userId": ""}])
def test_who_is_not_known_is_known_by_the_anonymous_id(nobody: dict[str, Any]) -> None:
    assert brief(SEGMENT, track(**nobody), key=b"a") == [("a", "p", "m")]


@pytest.mark.parametrize("call", ["identify", "page", "screen", "group", "alias"])
def test_other_calls_are_ignored(call: str) -> None:
    assert brief(SEGMENT, track(type=call)) == ["type"]


def test_each_product_of_an_order_is_an_event() -> None:
    order = track("Order Completed", properties={"products": [{"product_id": n} for n in "abc"]})
    assert brief(SEGMENT, order) == [("u", n, f"m/{i}") for i, n in enumerate("abc")]


def test_calls_may_come_as_an_array() -> None:
    assert brief(SEGMENT, [track(), track(messageId="n")]) == [("u", "p", "m"), ("u", "p", "n")]
