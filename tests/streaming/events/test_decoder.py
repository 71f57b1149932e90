"""Events: what is accepted, what is refused and why, and that the two paths agree."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from infra.behaviors import BEHAVIOR, DEFAULT_ACTIONS, category_key, event_key, item_key
from infra.errors import SettingsError
from infra.settings import EventSettings
from streaming.events.conversion import Event
from streaming.events.decoder import Decoded, EventDecoder
from streaming.events.formats.format import MOST_EVENTS
from streaming.events.rejects import Reason, Reject

NOW = 1_700_000_000_000
EVENT: dict[str, Any] = {
    "event_id": "e1",
    "user_id": "u1",
    "item_id": "i1",
    "action": "click",
    "event_time": NOW - 5,
    "category_id": "c1",
    "dwell_ms": 250,
    "source": "web",
}


def payload(**changes: Any) -> bytes:
    event = EVENT | changes
    return json.dumps({k: v for k, v in event.items() if v is not ...}).encode()


def decode(
    value: bytes | None, key: bytes | None = b"u1", settings: EventSettings | None = None
) -> Decoded:
    return EventDecoder(settings or EventSettings()).decode_batch([(7, key, value)], NOW)


def behavior(decoded: Decoded) -> np.void:
    assert decoded.rejects == []
    (append,) = decoded.appends
    (packed,) = append.behaviors
    record: np.void = np.frombuffer(packed, BEHAVIOR)[0]
    return record


def rejection(decoded: Decoded) -> Reject:
    assert decoded.appends == []
    (reject,) = decoded.rejects
    return reject


def test_an_event_becomes_a_behavior() -> None:
    decoded = decode(payload())

    stored = behavior(decoded)
    assert stored["item"] == item_key("i1")
    assert stored["time"] == NOW - 5
    assert stored["category"] == category_key("c1")
    assert stored["dwell"] == 250
    assert stored["action"] == DEFAULT_ACTIONS.codes["click"]
    assert decoded.appends[0].user == "u1"
    assert decoded.appends[0].event_keys == [event_key("e1")]
    assert decoded.appends[0].offsets == [7]


@pytest.mark.parametrize("absent", [..., None, ""])
def test_optional_fields_may_be_absent(absent: object) -> None:
    decoded = decode(payload(event_id=absent, category_id=absent, dwell_ms=absent, source=absent))

    stored = behavior(decoded)
    assert (stored["category"], stored["dwell"]) == (0, 0)
    assert decoded.appends[0].event_keys == [0]


def test_a_whole_number_is_the_same_id_as_its_decimal_text() -> None:
    number = decode(payload(user_id=42, item_id=17), b"42")

    assert number.appends[0].user == "42"
    assert behavior(number)["item"] == item_key("17")


def test_events_are_grouped_by_user_in_the_order_of_offsets() -> None:
    users = ["a", "b", "a", "c", "b", "a"]
    records = [(10 + n, u.encode(), payload(user_id=u)) for n, u in enumerate(users)]

    decoded = EventDecoder(EventSettings()).decode_batch(records, NOW)

    assert {a.user: a.offsets for a in decoded.appends} == {
        "a": [10, 12, 15],
        "b": [11, 14],
        "c": [13],
    }


DEEP = b'{"user_id":"u1","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

BAD: list[tuple[str, bytes | None, Reason, str]] = [
    ("tombstone", None, Reason.EMPTY, "no payload"),
    ("nothing", b"", Reason.EMPTY, "no payload"),
    ("blank", b"  ", Reason.NOT_JSON, ""),
    ("text", b"click", Reason.NOT_JSON, ""),
    ("cut", payload()[:-5], Reason.NOT_JSON, ""),
    ("two", payload() + payload(), Reason.NOT_JSON, ""),
    ("binary", b"\x00\xff\xfe", Reason.NOT_JSON, ""),
    ("not UTF-8", b'{"user_id": "\xff"}', Reason.NOT_JSON, ""),
    ("lone surrogate", b'{"user_id": "\\ud800x"}', Reason.NOT_JSON, ""),
    ("deep", DEEP[:60_000], Reason.NOT_JSON, "nested"),
    ("array", b"[[1, 2]]", Reason.WRONG_SHAPE, "an array"),
    ("empty array", b" [ ] ", Reason.EMPTY, "without events"),
    ("number", b"5", Reason.WRONG_SHAPE, "a number"),
    ("null", b"null", Reason.WRONG_SHAPE, "null"),
    ("no user", payload(user_id=...), Reason.MISSING_FIELD, "user_id"),
    ("no item", payload(item_id=...), Reason.MISSING_FIELD, "item_id"),
    ("no action", payload(action=...), Reason.MISSING_FIELD, "action"),
    ("no time", payload(event_time=...), Reason.MISSING_FIELD, "event_time"),
    ("another shape", b'{"visitor": 1, "sku": 2}', Reason.MISSING_FIELD, "user_id"),
    ("null user", payload(user_id=None), Reason.NULL_FIELD, "user_id"),
    ("null item", payload(item_id=None), Reason.NULL_FIELD, "item_id"),
    ("null time", payload(event_time=None), Reason.NULL_FIELD, "event_time"),
    ("empty user", payload(user_id=""), Reason.EMPTY, "user_id"),
    ("empty item", payload(item_id=""), Reason.EMPTY, "item_id"),
    ("empty action", payload(action=""), Reason.EMPTY, "action"),
    ("empty time", payload(event_time=""), Reason.EMPTY, "event_time"),
    ("user as object", payload(user_id={"id": "u1"}), Reason.WRONG_TYPE, "user_id is an object"),
    ("item as list", payload(item_id=["i1"]), Reason.WRONG_TYPE, "item_id is an array"),
    ("item as fraction", payload(item_id=1.5), Reason.WRONG_TYPE, "item_id is a number"),
    ("item as truth", payload(item_id=True), Reason.WRONG_TYPE, "item_id is a boolean"),
    ("action as object", payload(action={}), Reason.WRONG_TYPE, "action"),
    ("time as words", payload(event_time="yesterday"), Reason.BAD_TIME, "event_time"),
    ("time as list", payload(event_time=[1]), Reason.WRONG_TYPE, "event_time is an array"),
    ("time as truth", payload(event_time=True), Reason.WRONG_TYPE, "event_time"),
    ("dwell as words", payload(dwell_ms="long"), Reason.WRONG_TYPE, "dwell_ms"),
    ("category as list", payload(category_id=[1]), Reason.WRONG_TYPE, "category_id"),
    ("event id as object", payload(event_id={}), Reason.WRONG_TYPE, "event_id"),
    ("item with NUL", payload(item_id="i\0x"), Reason.BAD_TEXT, "item_id"),
    ("user with NUL", payload(user_id="u\0x"), Reason.BAD_TEXT, "user_id"),
    ("event id with NUL", payload(event_id="e\0x"), Reason.BAD_TEXT, "event_id"),
    ("category with NUL", payload(category_id="c\0x"), Reason.BAD_TEXT, "category_id"),
    ("negative time", payload(event_time=-1), Reason.NEGATIVE, "event_time"),
    ("negative dwell", payload(dwell_ms=-1), Reason.NEGATIVE, "dwell_ms"),
    ("long item", payload(item_id="i" * 257), Reason.TOO_LONG, "item_id"),
    ("long item in UTF-8", payload(item_id="ü" * 129), Reason.TOO_LONG, "258 bytes"),
    ("long event id", payload(event_id="e" * 5_000), Reason.TOO_LONG, "event_id"),
    ("long category", payload(category_id="c" * 257), Reason.TOO_LONG, "category_id"),
    ("long dwell", payload(dwell_ms=2**32), Reason.TOO_LONG, "dwell_ms"),
    ("endless dwell", payload(dwell_ms=10**3000), Reason.TOO_LONG, "dwell_ms"),
    ("endless number", b'{"user_id": ' + b"9" * 5000 + b"}", Reason.TOO_LONG, "range"),
    ("long ago", payload(event_time=5), Reason.TOO_OLD, "2000-01-01"),
    ("far future", payload(event_time=NOW * 2), Reason.IN_FUTURE, "event_time"),
    ("time beyond 64 bits", payload(event_time=10**30), Reason.IN_FUTURE, "event_time"),
    ("unknown action", payload(action="teleport"), Reason.UNKNOWN_ACTION, "teleport"),
    ("another user", payload(user_id="u2"), Reason.KEY_MISMATCH, "user_id"),
    ("large", payload(source="x" * 70_000), Reason.TOO_LARGE, "max_event_bytes"),
    ("10 MB", b"x" * 10_000_000, Reason.TOO_LARGE, "10000000 bytes"),
]


@pytest.mark.parametrize(
    ("value", "reason", "detail"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_a_bad_event_is_refused_with_its_reason(
    value: bytes | None, reason: Reason, detail: str
) -> None:
    reject = rejection(decode(value))

    assert reject.reason is reason
    assert detail in reject.detail
    assert "\n" not in reject.detail
    assert len(reject.detail) < 300
    assert (reject.offset, reject.key, reject.value) == (7, b"u1", value)


def test_a_long_user_id_is_refused() -> None:
    user = "u" * 257

    assert rejection(decode(payload(user_id=user), user.encode())).reason is Reason.TOO_LONG


@pytest.mark.parametrize("key", [None, b"", b"u", b"u11", b"\xff"])
def test_a_key_that_is_not_the_user_is_refused(key: bytes | None) -> None:
    assert rejection(decode(payload(), key)).reason is Reason.KEY_MISMATCH


def test_records_without_key_may_be_allowed() -> None:
    decoder = EventDecoder(EventSettings(), keyless=True)

    decoded = decoder.decode_batch([(0, None, payload()), (1, b"u2", payload())], NOW)

    assert decoded.appends[0].offsets == [0]
    (reject,) = decoded.rejects
    assert reject.reason is Reason.KEY_MISMATCH


def test_bad_events_leave_their_neighbors_alone() -> None:
    records: list[tuple[int, bytes | None, bytes | None]] = []
    for _, value, _, _ in BAD:
        records.append((len(records), b"u1", value))
        records.append((len(records), b"u1", payload()))

    decoded = EventDecoder(EventSettings()).decode_batch(records, NOW)

    assert [r.reason for r in decoded.rejects] == [b[2] for b in BAD]
    assert [a.offsets for a in decoded.appends] == [list(range(1, len(records), 2))]


def test_what_is_not_mapped_is_not_judged() -> None:
    extra = payload()[:-1] + b', "unread": "\xff", "source": ' + b"9" * 5000 + b"}"

    assert behavior(decode(extra)) == behavior(decode(extra.replace(b"250", b'"250"')))


def test_an_unknown_action_is_told_the_nearest() -> None:
    assert "did you mean purchase?" in rejection(decode(payload(action="purchse"))).detail


def test_a_constant_that_no_event_could_carry_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match=r"events.constants: dwell_ms 'long' is not a number"):
        EventDecoder(EventSettings(constants={"dwell_ms": "long"}))


def test_a_platforms_own_shape_needs_no_code() -> None:
    settings = EventSettings(
        fields={
            "user_id": "payload.visitor.id",
            "item_id": "payload.sku",
            "event_time": "ts",
            "action": "kind",
            "event_id": "uuid",
        },
        actions={"BUY": "purchase"},
        time_unit="iso",
    )
    event = {
        "uuid": "x",
        "kind": "BUY",
        "ts": "2023-11-14T22:13:20Z",
        "payload": {"visitor": {"id": 9}, "sku": "i1"},
    }

    stored = behavior(decode(json.dumps(event).encode(), b"9", settings))

    assert stored["item"] == item_key("i1")
    assert stored["time"] == NOW
    assert stored["action"] == DEFAULT_ACTIONS.codes["purchase"]


def test_details_name_the_platforms_field_too() -> None:
    settings = EventSettings(fields={"user_id": "payload.visitor"})

    reject = rejection(decode(b'{"payload": {}}', settings=settings))

    assert reject.detail == "user_id (payload.visitor) is missing"


def test_a_field_inside_what_is_no_object_is_refused() -> None:
    settings = EventSettings(fields={"user_id": "payload.visitor"})

    reject = rejection(decode(b'{"payload": [1]}', settings=settings))

    assert reject.reason is Reason.WRONG_TYPE
    assert "payload.visitor" in reject.detail


@pytest.mark.parametrize("carried", [..., None, ""])
def test_a_constant_stands_for_what_the_event_does_not_carry(carried: object) -> None:
    settings = EventSettings(constants={"action": "view", "category_id": 3, "event_id": "e9"})

    decoded = decode(
        payload(action=carried, category_id=carried, event_id=carried), settings=settings
    )

    stored = behavior(decoded)
    assert stored["action"] == DEFAULT_ACTIONS.codes["view"]
    assert stored["category"] == category_key("3")
    assert decoded.appends[0].event_keys == [event_key("e9")]


def test_times_come_in_the_platforms_unit() -> None:
    decoded = decode(payload(event_time=NOW / 1000), settings=EventSettings(time_unit="s"))

    assert behavior(decoded)["time"] == NOW


def test_one_field_may_serve_two_purposes() -> None:
    settings = EventSettings(fields={"event_id": "item_id"})

    decoded = decode(payload(), settings=settings)

    assert decoded.appends[0].event_keys == [event_key("i1")]


def told(settings: EventSettings, value: Any, key: bytes | None = b"u1") -> list[Any]:
    """User, item and event id of each event of a record; of others why not."""
    sent = value if isinstance(value, bytes) else json.dumps(value).encode()
    return [
        (one.user, one.item, one.event_id) if isinstance(one, Event) else one.reason
        for one in EventDecoder(settings).outcomes(key, sent, (), NOW)
    ]


def item(name: str, **changes: Any) -> dict[str, Any]:
    return {"user_id": "u1", "item_id": name, "action": "click", "event_time": NOW} | changes


@pytest.mark.parametrize("form", ["array", "lines"])
def test_a_record_may_hold_several_events(form: str) -> None:
    events = [json.dumps(item(name)).encode() for name in "abc"]
    value = b"[" + b", ".join(events) + b"]" if form == "array" else b"\n".join(events)

    decoded = EventDecoder(EventSettings()).decode_batch(
        [(4, b"u1", payload()), (7, b"u1", value), (8, b"u1", payload())], NOW
    )

    [append] = decoded.appends
    assert append.offsets == [4, 7, 7, 7, 8]
    assert [from_item(one) for one in append.behaviors][1:4] == [item_key(name) for name in "abc"]


def from_item(behavior: bytes) -> int:
    return int.from_bytes(behavior[:8], "little")


def test_what_is_refused_of_a_record_is_a_record_for_each_reason() -> None:
    events = [item("a"), item("b", action="hug"), 7, item("c", action="kiss")]
    decoded = decode(json.dumps(events).encode())

    refused = [(one.reason.value, json.loads(one.value or b"")) for one in decoded.rejects]

    assert decoded.events == 1
    assert refused == [("unknown_action", [events[1], events[3]]), ("wrong_shape", [7])]
    assert "event 2 of 4: action 'hug'" in decoded.rejects[0].detail


def test_a_record_with_too_many_events_is_refused() -> None:
    settings = EventSettings(max_event_bytes=1 << 20)
    assert told(settings, [1] * (MOST_EVENTS + 1)) == ["too_large"]


SPLIT = EventSettings(
    split="cart.items",
    fields={"item_id": ["cart.items.sku", "item_id"], "event_id": "id"},
)


def cart(*items: Any) -> dict[str, Any]:
    return item("whole", id="e", cart={"items": list(items), "shop": 1})


def test_each_element_of_what_is_split_is_an_event() -> None:
    found = told(SPLIT, cart({"sku": "a"}, {"sku": "b"}))
    assert found == [("u1", "a", "e/0"), ("u1", "b", "e/1")]


@pytest.mark.parametrize(
    "without", [{"cart": None}, {"cart": {"items": {"sku": "a"}}}, {"cart": 3}]
)
def test_an_event_without_the_array_is_one(without: dict[str, Any]) -> None:
    [found] = told(SPLIT, item("whole", id="e") | without)
    assert found in (("u1", "whole", "e"), ("u1", "a", "e"), "wrong_type")


def test_an_element_sent_again_alone_is_the_same_event() -> None:
    whole = json.dumps(cart({"sku": "a"}, {"sku": 1.5}, {"sku": "c"})).encode()
    [refused] = decode(whole, settings=SPLIT).rejects

    again = told(SPLIT, (refused.value or b"").replace(b"1.5", b'"b"'))

    assert again == ["cart.items: null", ("u1", "b", "e/1"), "cart.items: null"]


def test_ids_of_elements_are_kept_as_they_are() -> None:
    settings = EventSettings(split="items", fields={"event_id": "items.id"})
    assert told(settings, item("i", items=[{"id": "x"}, {"id": "y"}])) == [
        ("u1", "i", "x"),
        ("u1", "i", "y"),
    ]


def test_events_that_are_no_behaviors_are_counted_by_what_decides() -> None:
    settings = EventSettings(only={"type": "track"}, ignore={"bot": True})
    events = [item("a", type="track"), item("b"), item("c", type="track", bot=True)]
    decoded = decode(json.dumps(events).encode(), settings=settings)
    assert (decoded.events, decoded.rejects) == (1, [])
    assert decoded.ignored == {"type": 1, "bot": 1}


@pytest.mark.parametrize("key", [None, b"other", b"u1"])
@pytest.mark.parametrize("value", [payload(), payload(more=[1]), payload(user_id=7)])
def test_a_key_may_be_anything_where_the_settings_say_so(key: bytes | None, value: bytes) -> None:
    assert decode(value, key, EventSettings(key="any")).events == 1


@pytest.mark.parametrize(
    ("ids", "user"),
    [
        ({"userId": "u", "anonymousId": "a"}, "u"),
        ({"userId": None, "anonymousId": "a"}, "a"),
        ({"userId": "", "anonymousId": "a"}, "a"),
        ({"anonymousId": "a"}, "a"),
        ({"userId": "u"}, "u"),
    ],
)
def test_the_first_that_is_there_counts(ids: dict[str, Any], user: str) -> None:
    settings = EventSettings(fields={"user_id": ["userId", "anonymousId"]})
    assert told(settings, item("i") | ids, user.encode()) == [(user, "i", None)]


def test_paths_step_into_arrays_and_may_be_expressions() -> None:
    fields = {"item_id": "lines[-1].sku", "user_id": "ids[?kind == 'user'].id | [0]"}
    event = item("i", lines=[{"sku": "a"}, {"sku": "b"}], ids=[{"kind": "user", "id": 9}])
    assert told(EventSettings(fields=fields), event, b"9") == [("9", "b", None)]


def test_whose_the_events_of_a_record_are_is_told_though_they_are_refused() -> None:
    fields = {"user_id": "events.user_id"}
    decoder = EventDecoder(EventSettings(fields=fields, split="events", key="any"))
    value = json.dumps({"events": [{"user_id": "a"}, {"user_id": 7}, {"item_id": "i"}]}).encode()
    assert decoder.users_of(None, value, ()) == ["a", "7", None]
    assert decoder.users_of(None, b"{", ()) == [None]
