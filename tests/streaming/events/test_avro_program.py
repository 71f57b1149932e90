"""What the kernel says of a record in Avro is what the careful path says."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_writer
from hypothesis import HealthCheck, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from infra.schema_registry import SchemaRegistry
from infra.settings import EventSettings, RegistrySettings
from infra.store import Append
from streaming.events.decoder import EventDecoder
from streaming.events.rejects import Reject
from tests.schema_registry import RegistryDouble, registry_double

NOW = 1_700_000_000_000
FRAME = b"\0\0\0\0\1"
TYPES: dict[str, Any] = {
    "event_id": "string",
    "user_id": "string",
    "item_id": "string",
    "action": {"type": "enum", "name": "Action", "symbols": ["view", "click"]},
    "event_time": {"type": "long", "logicalType": "timestamp-millis"},
    "category_id": ["null", "string"],
    "dwell_ms": "int",
}
EVENT: dict[str, Any] = {
    "event_id": "e1",
    "user_id": "u1",
    "item_id": "i1",
    "action": "click",
    "event_time": NOW,
    "category_id": "c1",
    "dwell_ms": 250,
}


@pytest.fixture(scope="module")
def shared() -> Iterator[RegistryDouble]:
    with registry_double() as double:
        yield double


class Source:
    """A topic of one schema: what the two paths make of records."""

    def __init__(self, registry: RegistryDouble, schema: dict[str, Any], **mapping: Any) -> None:
        registry.schemas.clear()
        registry.register("clicks-value", {"schema": json.dumps(schema)})
        asked = SchemaRegistry(RegistrySettings(url=registry.url))
        chosen = EventSettings(format="avro", **mapping)
        self.quick, self.careful = (EventDecoder(chosen, asked, keyless=True) for _ in range(2))
        self.careful._names = None
        # As plain numbers: fastavro would take datetimes for what has a logical type.
        self._schema = parse_schema(json.loads(json.dumps(schema).replace("logicalType", "as")))

    def record(self, event: dict[str, Any]) -> bytes:
        text = io.BytesIO()
        schemaless_writer(text, self._schema, event)
        return FRAME + text.getvalue()

    def told(self, value: bytes) -> tuple[list[Append], list[Reject]]:
        """What both make of it."""
        each = [one.decode_batch([(5, b"u1", value)], NOW) for one in (self.quick, self.careful)]
        found, careful = ((one.appends, one.rejects) for one in each)
        assert found == careful
        return found

    def is_sure(self, value: bytes) -> bool:
        latest = self.quick._conversion.times.latest(NOW)
        return bool(self.quick._parsed([b"u1"], [value], None, latest).user_of[0] >= 0)


def schema(types: dict[str, Any]) -> dict[str, Any]:
    fields = [{"name": name, "type": kind} for name, kind in types.items()]
    return {"type": "record", "name": "Click", "namespace": "shop", "fields": fields}


def logical(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "logicalType": name}


MORE = {
    "tags": {"type": "array", "items": {"type": "map", "values": ["null", "string", "double"]}},
    "price": {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2},
    "page": schema(
        {"seen": "boolean", "at": "float", "code": {"type": "fixed", "name": "F", "size": 2}}
    )
    | {"name": "Page"},
    "id": logical("string", "uuid"),
}
OF_MORE = {
    "tags": [{"a": None, "b": "x"}, {}, {"c": 1.5}],
    "price": b"\4",
    "page": {"seen": True, "at": 0.5, "code": b"ab"},
    "id": "no uuid",
}


@pytest.mark.parametrize(
    ("types", "event"),
    [
        ({}, {}),
        ({}, {"category_id": None}),
        ({}, {"event_id": "", "category_id": ""}),
        ({}, {"item_id": "größe 42 😀"}),
        ({}, {"item_id": "i" * 240}),
        (MORE, OF_MORE),
        ({"item_id": "long"}, {"item_id": -(2**63)}),
        ({"item_id": "long", "category_id": "int"}, {"item_id": 2**63 - 1, "category_id": 0}),
        ({"item_id": "bytes"}, {"item_id": b"i1"}),
        ({"action": "string"}, {"action": "view"}),
        ({"dwell_ms": ["null", "long"]}, {"dwell_ms": None}),
        ({"dwell_ms": logical("int", "time-millis")}, {"dwell_ms": 1500}),
        ({"dwell_ms": logical("long", "time-micros")}, {"dwell_ms": 1_500_900}),
        ({"event_time": "long"}, {}),
        ({"event_time": ["null", logical("long", "timestamp-micros")]}, {"event_time": NOW * 1000}),
        ({"event_time": logical("long", "timestamp-nanos")}, {"event_time": NOW * 10**6 + 999}),
        ({"event_time": logical("long", "local-timestamp-millis")}, {}),
        ({"event_time": logical("int", "date")}, {"event_time": 19_000}),
    ],
)
def test_what_producers_send_is_read_by_the_kernel(
    shared: RegistryDouble, types: dict[str, Any], event: dict[str, Any]
) -> None:
    source = Source(shared, schema(TYPES | types))
    value = source.record(EVENT | event)
    assert source.is_sure(value)
    assert len(source.told(value)[0]) == 1


@pytest.mark.parametrize(
    ("unit", "kind", "time"),
    [
        ("s", "long", NOW // 1000),
        ("us", "long", NOW * 1000),
        ("iso", "string", "2023-11-14T22:13:20Z"),
    ],
)
def test_plain_times_are_of_the_settings_unit(
    shared: RegistryDouble, unit: str, kind: str, time: Any
) -> None:
    source = Source(shared, schema(TYPES | {"event_time": kind}), time_unit=unit)
    value = source.record(EVENT | {"event_time": time})
    assert source.is_sure(value)
    assert source.told(value)[0]


@pytest.mark.parametrize(
    ("types", "event"),
    [
        ({"item_id": "double"}, {"item_id": 7.0}),
        ({"item_id": "boolean"}, {"item_id": True}),
        ({"item_id": logical("long", "timestamp-millis")}, {"item_id": 7}),
        ({"item_id": {"type": "array", "items": "string"}}, {"item_id": ["i1"]}),
        ({"item_id": {"type": "fixed", "name": "F", "size": 2}}, {"item_id": b"i1"}),
        ({"item_id": MORE["price"]}, {"item_id": b"\7"}),
        ({"event_time": "double"}, {"event_time": NOW + 0.5}),
        ({"event_time": "string"}, {"event_time": str(NOW)}),
        ({"event_time": "long"}, {"event_time": -5}),
        ({"event_time": logical("int", "timestamp-millis")}, {"event_time": 7}),
        ({"event_time": logical("long", "date")}, {"event_time": NOW}),
        ({"dwell_ms": logical("int", "time-micros")}, {"dwell_ms": 1500}),
        ({"dwell_ms": "float"}, {"dwell_ms": 2.5}),
        ({"dwell_ms": "long"}, {"dwell_ms": -1}),
        ({"dwell_ms": "long"}, {"dwell_ms": 2**40}),
        ({}, {"item_id": ""}),
        ({}, {"item_id": "i" * 257}),
        ({}, {"item_id": "a\0b"}),
        ({}, {"user_id": "u2"}),
        ({"action": "string"}, {"action": "clik"}),
        ({"page": ["null", "string"]}, {"page": "x"}),
    ],
)
def test_what_is_rare_or_wrong_is_judged_alike(
    shared: RegistryDouble, types: dict[str, Any], event: dict[str, Any]
) -> None:
    source = Source(shared, schema(TYPES | types), constants={"category_id": "c9"})
    source.told(source.record(EVENT | event))


def test_paths_lead_into_records_and_unions_of_them(shared: RegistryDouble) -> None:
    user = schema({"id": "string"}) | {"name": "User"}
    guest = schema({"session": "string"}) | {"name": "Guest"}
    types = {name: kind for name, kind in TYPES.items() if name != "user_id"}
    source = Source(
        shared,
        schema({"who": ["null", user, guest, "string"]} | types),
        fields={"user_id": "who.id"},
        constants={"user_id": "u1"},
    )
    for who, sure in (({"id": "u1"}, True), ({"session": "s"}, True), (None, True), ("u1", False)):
        value = source.record(EVENT | {"who": who})
        assert source.is_sure(value) == sure
        source.told(value)


def test_a_path_into_what_is_no_record_is_judged_alike(shared: RegistryDouble) -> None:
    types = TYPES | {"more": {"type": "map", "values": "string"}}
    source = Source(shared, schema(types), fields={"category_id": "more.page"})
    value = source.record(EVENT | {"more": {"page": "c1"}})
    assert not source.is_sure(value)
    assert source.told(value)[0]


def test_a_schema_that_has_itself_in_itself_is_for_the_careful_path(
    shared: RegistryDouble,
) -> None:
    source = Source(shared, schema(TYPES | {"before": ["null", "shop.Click"]}))
    value = source.record(EVENT | {"before": EVENT | {"before": None}})
    assert not source.is_sure(value)
    assert source.told(value)[0]


@pytest.fixture(scope="module")
def damaged(shared: RegistryDouble) -> Source:
    types = TYPES | MORE | {"item_id": ["long", "string"], "last": "string"}
    source = Source(shared, schema(types))
    source.told(source.record(EVENT | OF_MORE | {"last": "x"}))  # the schema is had by now
    return source


@given_settings(
    deadline=None,
    max_examples=400,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    at=st.floats(0, 1, exclude_max=True),
    cut=st.integers(0, 2),
    put=st.one_of(st.binary(max_size=2), st.sampled_from([b"\x80", b"\xff" * 10, b"\0", b"\2"])),
    item=st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=5)),
)
def test_damaged_records_are_judged_alike(
    damaged: Source, at: float, cut: int, put: bytes, item: Any
) -> None:
    sound = damaged.record(EVENT | OF_MORE | {"item_id": item, "last": "é"})
    place = 5 + int(at * (len(sound) - 5))
    damaged.told(sound[:place] + put + sound[place + cut :])


def test_records_of_several_schemas_come_in_one_batch(shared: RegistryDouble) -> None:
    source = Source(shared, schema(TYPES))
    other = schema(TYPES | {"item_id": "long"})
    shared.register("other-value", {"schema": json.dumps(other)})
    first = source.record(EVENT)
    text = io.BytesIO()
    schemaless_writer(text, parse_schema(other), EVENT | {"item_id": 42})
    second = b"\0\0\0\0\2" + text.getvalue()
    unknown = b"\0\0\0\0\3" + text.getvalue()

    found = source.quick.decode_batch(
        [(n, b"u1", value) for n, value in enumerate([first, second, unknown, first])], NOW
    )

    assert found.offsets.tolist() == [0, 1, 3]
    assert [(one.offset, one.reason.value) for one in found.rejects] == [(2, "unknown_schema")]
    assert found.behaviors["item"].tolist()[0] == found.behaviors["item"].tolist()[2]
