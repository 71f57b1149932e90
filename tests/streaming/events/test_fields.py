"""Fields: where they are, and what it means that one is not there."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from infra.settings import EventSettings
from streaming.events.fields import Fields
from streaming.events.paths import ABSENT
from streaming.events.rejects import Reason, Rejected

NESTED = Fields(EventSettings(fields={"user_id": "payload.user.id", "category_id": "payload.cat"}))


def finder(fields: Fields, event: bytes) -> Any:
    return functools.partial(fields.find, fields.decode(event))


@pytest.mark.parametrize(
    ("event", "value"),
    [
        (b'{"payload": {"user": {"id": 5}}}', 5),
        (b'{"payload": {"user": {"id": null}}}', None),
        (b'{"payload": {"user": {}}}', ABSENT),
        (b'{"payload": {"user": null}}', None),
        (b'{"payload": null}', None),
        (b"{}", ABSENT),
    ],
)
def test_a_dotted_path_steps_into_objects(event: bytes, value: object) -> None:
    assert finder(NESTED, event)("user_id") == value


def test_a_path_through_what_is_no_object_is_refused_for_optional_fields_too() -> None:
    with pytest.raises(Rejected, match=r"category_id \(payload.cat\): .* 'cat' is an array"):
        finder(NESTED, b'{"payload": []}')("category_id")


@pytest.mark.parametrize(
    ("event", "reason", "wrong"),
    [
        (b"{}", Reason.MISSING_FIELD, "is missing"),
        (b'{"user_id": null}', Reason.NULL_FIELD, "is null"),
        (b'{"user_id": ""}', Reason.EMPTY, "is empty"),
    ],
)
def test_a_required_field_must_be_there(event: bytes, reason: Reason, wrong: str) -> None:
    fields = Fields(EventSettings())
    with pytest.raises(Rejected, match=f"user_id {wrong}") as caught:
        fields.required(finder(fields, event), "user_id")
    assert caught.value.reason is reason


@pytest.mark.parametrize("event", [b"{}", b'{"user_id": null}', b'{"user_id": ""}'])
def test_a_constant_stands_for_what_is_not_there(event: bytes) -> None:
    fields = Fields(EventSettings(constants={"user_id": 5}))
    assert fields.required(finder(fields, event), "user_id") == 5


@pytest.mark.parametrize("event", [b"{}", b'{"dwell_ms": null}', b'{"dwell_ms": ""}'])
def test_an_optional_field_may_be_absent(event: bytes) -> None:
    fields = Fields(EventSettings())
    assert fields.optional(finder(fields, event), "dwell_ms") is None


def test_bytes_are_a_text_that_could_not_be_decoded() -> None:
    with pytest.raises(Rejected, match=r"user_id b'\\xff' is not UTF-8") as caught:
        Fields(EventSettings()).required({"user_id": b"\xff"}.get, "user_id")
    assert caught.value.reason is Reason.BAD_TEXT


def test_lines_are_decoded_together_only_if_each_is_an_object() -> None:
    fields = Fields(EventSettings())
    good = b'{"user_id": 1}'
    found = fields.decode_lines([good, good])
    assert found is not None
    assert [fields.find(event, "user_id") for event in found] == [1, 1]
    for lines in ([good, b"[1]"], [good[:-1], b', "x": 1} {}'], [b"{", good], []):
        assert fields.decode_lines(lines) is None


def test_an_event_without_extra_fields_can_be_adopted() -> None:
    fewer = Fields(EventSettings())
    more = Fields(EventSettings(), extra=("source",))
    event = more.adopt(fewer.decode(b'{"user_id": 1, "source": "web"}'))
    assert (more.find(event, "user_id"), more.find(event, "source")) == (1, ABSENT)
