"""What the kernel says of a record is what the careful path says, and it says something of most."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from infra.settings import EventSettings
from infra.store import Append
from streaming.events.decoder import EventDecoder
from streaming.events.parsing import How, parse
from streaming.events.rejects import Reject

NOW = 1_700_000_000_000
EVENT: dict[str, Any] = {
    "event_id": "e1",
    "user_id": "u1",
    "item_id": "i1",
    "action": "click",
    "event_time": NOW,
    "category_id": "c1",
    "dwell_ms": 250,
}
MAPPINGS = {
    "as they are": EventSettings(),
    "in s": EventSettings(time_unit="s"),
    "in us": EventSettings(time_unit="us"),
    "iso": EventSettings(time_unit="iso"),
    "of a platform": EventSettings(
        fields={"user_id": "uid", "item_id": "größe", "event_time": "ts"},
        action_names=["view", "buy"],
        actions={"click": "buy"},
        constants={"category_id": "c9", "dwell_ms": 3, "event_id": "e9", "action": "view"},
        max_id_bytes=20,
        max_event_bytes=600,
    ),
}

Told = tuple[list[Append], list[Reject]]


def decoded(
    value: bytes, mapping: EventSettings, *, carefully: bool = False, key: bytes | None = b"u1"
) -> Told:
    decoder = EventDecoder(mapping, keyless=True)
    if carefully:
        decoder._names = None
    found = decoder.decode_batch([(5, key, value)], NOW)
    return found.appends, found.rejects


def is_sure(value: bytes, mapping: EventSettings, key: bytes | None = b"u1") -> bool:
    decoder = EventDecoder(mapping)
    latest = decoder._conversion.times.latest(NOW)
    assert decoder._names is not None
    rows = parse([value], [key], How(decoder._names, decoder._rules, latest, keyless=False))
    return bool(rows.user_of[0] >= 0)


def event(**changed: Any) -> bytes:
    return json.dumps(EVENT | changed, ensure_ascii=False).encode()


def raw(**changed: str) -> bytes:
    """An event whose values are given as JSON."""
    values = {name: json.dumps(value) for name, value in EVENT.items()} | changed
    return ("{" + ",".join(f'"{name}":{value}' for name, value in values.items()) + "}").encode()


@pytest.mark.parametrize(
    "value",
    [
        event(),
        json.dumps(EVENT, indent=2).encode(),
        event(event_id=None, category_id=None, dwell_ms=None),
        event(event_id="", category_id=""),
        event(item_id=4711, category_id=-3, event_id=0),
        event(item_id="größe 42 😀"),
        event(item_id="i" * 240),
        raw(dwell_ms="1.75"),
        event(
            page={"a": [1, -2.5, None, True, False, {}, [], "x\\y\n", {"b": "\u00e9"}]}, more="/"
        ),
        raw(title='"caf\\u00e9 \\/ \\"quoted\\""'),
        b"\t" + event() + b"\r\n",
    ],
)
def test_what_producers_write_is_read_by_the_kernel(value: bytes) -> None:
    assert is_sure(value, EventSettings())
    assert decoded(value, EventSettings()) == decoded(value, EventSettings(), carefully=True)


@pytest.mark.parametrize(
    ("unit", "time"),
    [
        ("s", "1700000000"),
        ("s", "1699999999.123"),
        ("s", "1699999999.1234567"),
        ("us", "1699999999123456"),
        ("iso", '"2023-11-14T22:13:20Z"'),
        ("iso", '"2023-11-14T22:13:20.123456+05:30"'),
        ("iso", '"2023-11-14 22:13:20.1"'),
        ("iso", '"2020-02-29T00:00:00-01:00"'),
    ],
)
def test_times_of_every_unit_are_read_by_the_kernel(unit: Any, time: str) -> None:
    mapping = EventSettings(time_unit=unit)
    value = raw(event_time=time)

    assert is_sure(value, mapping)
    assert decoded(value, mapping) == decoded(value, mapping, carefully=True)


@pytest.mark.parametrize(
    "value",
    [
        raw(item_id='"i\\u0031"'),
        raw(item_id="-0"),
        raw(item_id="1e3"),
        raw(event_time="1.7e12"),
        raw(event_time="01700000000000"),
        raw(dwell_ms="-1"),
        raw(dwell_ms="249.99999999999999999"),
        raw(more="[1,]"),
        raw(more='"\\ud800"'),
        raw(more='"\\x"'),
        raw(more="nul"),
        raw(more="{1:2}"),
        raw(more="[}"),
        raw(more="1" * 5000),
        event() + event(),
        event()[:-1],
        event()[:-1] + b",}",
        event()[:-1] + b',"item_id":"i2"}',
        event(item_id="x").replace(b"x", b"\xff"),
        event(item_id="x").replace(b"x", b"\xed\xa0\x80"),
        event(item_id="x").replace(b"x", b"\xc0\xaf"),
        event(item_id="x").replace(b"x", b"\x01"),
        event(item_id="i" * 257),
        event(action="clik"),
        event(user_id="u2"),
        b"\xef\xbb\xbf" + event(),
        b"",
        b"[]",
    ],
)
def test_of_what_is_wrong_or_rare_the_kernel_is_not_sure(value: bytes) -> None:
    assert not is_sure(value, EventSettings())


def test_a_user_is_one_wherever_their_events_stand() -> None:
    decoder = EventDecoder(EventSettings())
    users = [f"u{number % 7}" for number in range(50)]
    records = [
        (place, user.encode(), event(user_id=user, item_id=place))
        for place, user in enumerate(users)
    ]

    found = decoder.decode_batch(records, NOW)

    assert {append.user: append.offsets for append in found.appends} == {
        f"u{number}": list(range(number, 50, 7)) for number in range(7)
    }


def test_keys_that_only_begin_alike_do_not_pass() -> None:
    assert not is_sure(event(), EventSettings(), key=b"u")
    assert not is_sure(event(), EventSettings(), key=b"u12")
    assert not is_sure(event(), EventSettings(), key=None)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=300),
    st.recursive(
        st.one_of(st.none(), st.integers(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.sampled_from(["u1", "click", "view", 7, -7, 7.0, "2023-11-14T22:13:20Z"]),
    st.integers(NOW - 10**12, NOW + 10**9),
    st.floats(NOW / 1000 - 10**9, NOW / 1000 + 10**6),
)
NAMES = st.sampled_from([*EVENT, "uid", "größe", "ts", "more"])


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    changed=st.dictionaries(NAMES, ANYTHING, max_size=5),
    dropped=st.sets(NAMES, max_size=2),
    mapping=st.sampled_from(sorted(MAPPINGS)),
    ascii_only=st.booleans(),
)
def test_the_kernel_agrees_with_the_careful_path(
    changed: dict[str, Any], dropped: set[str], mapping: str, ascii_only: bool
) -> None:
    of_platform = {"uid": "u1", "größe": "i1", "ts": NOW}
    row = {
        name: value
        for name, value in (EVENT | of_platform | changed).items()
        if name not in dropped
    }
    value = json.dumps(row, ensure_ascii=ascii_only).encode(errors="surrogatepass")

    found = decoded(value, MAPPINGS[mapping])

    assert found == decoded(value, MAPPINGS[mapping], carefully=True)


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(
    at=st.floats(0, 1, exclude_max=True),
    cut=st.integers(0, 3),
    put=st.one_of(
        st.sampled_from([b'"', b",", b":", b"{", b"}", b"[", b"]", b"\\", b"0", b"-", b".", b"e"]),
        st.binary(max_size=3),
        st.sampled_from([b'"item_id":"i2",', b"null", b"\\u0041", b'"a":[{"b":{}}],', b"  "]),
    ),
    mapping=st.sampled_from(["as they are", "in s", "iso"]),
)
@example(0.1, 0, b"\xf0\x9f\x98\x80", "as they are")
def test_a_damaged_record_is_judged_alike(at: float, cut: int, put: bytes, mapping: str) -> None:
    time = {"in s": NOW / 1000, "iso": "2023-11-14T22:13:20.5+01:00"}.get(mapping, NOW)
    sound = event(event_time=time, more={"page": [1, 2.5, "x"], "old": None})
    place = int(at * len(sound))
    value = sound[:place] + put + sound[place + cut :]

    found = decoded(value, MAPPINGS[mapping])

    assert found == decoded(value, MAPPINGS[mapping], carefully=True)


@settings(deadline=None, max_examples=500)
@given(
    seconds=st.one_of(
        st.integers(0, 2**33).map(str),
        st.floats(0, 2**33).map(repr),
        st.decimals(0, 2**33, places=3).map(str),
        st.decimals(0, 2**33, places=9).map(str),
        st.sampled_from(["1699999999.9999999", "1700000000.1229999999", "1073741824.001"]),
    )
)
def test_decimals_of_seconds_are_rounded_alike(seconds: str) -> None:
    mapping = EventSettings(time_unit="s", max_ahead_s=2**33)
    value = raw(event_time=seconds)

    found = decoded(value, mapping)

    assert found == decoded(value, mapping, carefully=True)


@settings(deadline=None, max_examples=500)
@given(
    moment=st.datetimes(),
    separator=st.sampled_from("T  tx"),
    fraction=st.sampled_from(["", ".0", ".9", ".123", ".9999999", ".", ",5"]),
    offset=st.sampled_from(["", "Z", "z", "+00:00", "-23:59", "+24:00", "+0100", "+01", "+01:60"]),
)
def test_calendar_times_are_read_alike(
    moment: Any, separator: str, fraction: str, offset: str
) -> None:
    mapping = EventSettings(time_unit="iso", earliest="0001-01-01T00:00:00Z", max_ahead_s=2**40)
    text = moment.replace(microsecond=0).isoformat(separator) + fraction + offset
    value = event(event_time=text)

    found = decoded(value, mapping)

    assert found == decoded(value, mapping, carefully=True)


def test_a_batch_without_events_is_one() -> None:
    assert EventDecoder(EventSettings()).decode_batch([], NOW).appends == []


def test_rows_of_refused_records_are_left_out() -> None:
    records = [(0, b"u1", event()), (1, b"u1", b"{"), (2, b"u1", event(item_id="i2"))]

    found = EventDecoder(EventSettings()).decode_batch(records, NOW)

    assert found.offsets.tolist() == [0, 2]
    assert len(np.unique(found.behaviors["item"])) == 2


SPLIT = EventSettings(
    split="events",
    fields={
        "user_id": "user",
        "event_id": "events.id",
        "item_id": "events.item",
        "action": "events.action",
        "event_time": "events.at",
        "dwell_ms": "events.ms",
        "category_id": "page",
    },
)
ELEMENT = {"id": "e1", "item": "i1", "action": "click", "at": NOW, "user": "another's"}


def envelope(*elements: Any, **beside: Any) -> bytes:
    return json.dumps({"sent": {"by": 7}, "events": elements, "user": "u1"} | beside).encode()


@pytest.mark.parametrize(
    ("value", "mapping", "events"),
    [
        (b"[" + event() + b", " + event(item_id="i2") + b"]\n", EventSettings(), 2),
        (event() + b"\n" + event(item_id="i2") + b"\r\n\n", EventSettings(), 2),
        (b"[" + event() + b"]", EventSettings(), 1),
        (envelope(ELEMENT, ELEMENT | {"item": "i2", "ms": 7}), SPLIT, 2),
        (envelope(ELEMENT, page="c1"), SPLIT, 1),
        (b"[" + envelope(ELEMENT) + b"," + envelope(ELEMENT, ELEMENT) + b"]", SPLIT, 3),
        (envelope(ELEMENT) + b"\n" + envelope(ELEMENT), SPLIT, 2),
    ],
)
def test_several_events_of_a_record_are_read_by_the_kernel(
    value: bytes, mapping: EventSettings, events: int
) -> None:
    assert is_sure(value, mapping)
    found = decoded(value, mapping)
    assert sum(len(append.offsets) for append in found[0]) == events
    assert found == decoded(value, mapping, carefully=True)


@pytest.mark.parametrize(
    ("value", "mapping"),
    [
        (b"[" + event() + b"," + event(action="clik") + b"]", EventSettings()),
        (b"[" + event() + b",null]", EventSettings()),
        (b"[" + event() + b",]", EventSettings()),
        (b"[" + event() + b"] " + event(), EventSettings()),
        (b"[" + event() + event() + b"]", EventSettings()),
        (event() + b"\n" + json.dumps(EVENT, indent=2).encode(), EventSettings()),
        (event() + b"\r" + event(), EventSettings()),
        (event() + b"\n[" + event() + b"]", EventSettings()),
        (envelope(), SPLIT),
        (envelope(ELEMENT, None), SPLIT),
        (envelope(ELEMENT, 7), SPLIT),
        (envelope(ELEMENT, events={"item": "i1"}), SPLIT),
        (envelope(ELEMENT, user=None), SPLIT),
        (envelope(ELEMENT, events=None), SPLIT),
        (envelope(ELEMENT, ELEMENT | {"at": None}), SPLIT),
        (envelope({"item": "i1", "action": "click", "at": NOW}, event_id="e"), SPLIT),
    ],
)
def test_records_of_which_one_event_is_odd_are_judged_alike(
    value: bytes, mapping: EventSettings
) -> None:
    assert decoded(value, mapping) == decoded(value, mapping, carefully=True)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    at=st.floats(0, 1, exclude_max=True),
    cut=st.integers(0, 3),
    put=st.one_of(
        st.sampled_from([b'"', b",", b":", b"{", b"}", b"[", b"]", b"\n", b"\r", b" ", b"0"]),
        st.sampled_from([b"null,", b'"user":"u2",', b'"events":[],', b"},{", b"]\n["]),
        st.binary(max_size=3),
    ),
    form=st.sampled_from(["array", "lines", "split"]),
)
def test_damaged_records_of_several_events_are_judged_alike(
    at: float, cut: int, put: bytes, form: str
) -> None:
    sound = {
        "array": b"[" + event() + b"," + event(item_id="i2", more=[{}]) + b"]",
        "lines": event() + b"\n" + event(item_id="i2") + b"\n" + event(item_id="i3"),
        "split": envelope(ELEMENT, ELEMENT | {"item": "i2"}, page="c1"),
    }[form]
    mapping = SPLIT if form == "split" else EventSettings()
    place = int(at * len(sound))
    value = sound[:place] + put + sound[place + cut :]

    assert decoded(value, mapping) == decoded(value, mapping, carefully=True)


def test_records_keep_their_order_whichever_path_read_them() -> None:
    values = [
        b"[" + event(event_id=f"{n}a") + b"," + event(event_id=f"{n}b", action=action) + b"]"
        for n, action in enumerate(["click", "clik", "view"])
    ]

    found = EventDecoder(EventSettings()).decode_batch(
        [(7 + place, b"u1", value) for place, value in enumerate(values)], NOW
    )

    assert found.offsets.tolist() == [7, 7, 8, 9, 9]
    assert [one.offset for one in found.rejects] == [8]
