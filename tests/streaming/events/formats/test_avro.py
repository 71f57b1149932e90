import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from infra.errors import RegistryUnavailable
from infra.settings import EventSettings
from streaming.events.formats.avro import open_format
from streaming.events.rejects import Reason, Rejected
from streaming.events.times import Timestamp
from tests.schema_registry import RegistryDouble
from tests.streaming.events.formats.producing import Producer, asked, by_record, producing

NOW = 1_700_000_000_123


def record(name: str, **fields: Any) -> dict[str, Any]:
    of = [{"name": field, "type": kind} for field, kind in fields.items()]
    return {"type": "record", "name": name, "namespace": "shop", "fields": of}


CLICK = record("Click", user_id="string", item_id="long")


@pytest.fixture
def producer(registry: RegistryDouble) -> Iterator[Producer]:
    with producing(registry) as one:
        yield one


def read(registry: RegistryDouble, value: bytes, headers: Any = ()) -> Any:
    (event,) = open_format(EventSettings(), asked(registry)).read(None, value, headers)
    return event


def refused(registry: RegistryDouble, value: bytes) -> Rejected:
    with pytest.raises(Rejected) as caught:
        read(registry, value)
    return caught.value


def test_a_record_is_read_by_the_schema_that_it_names(
    registry: RegistryDouble, producer: Producer
) -> None:
    value = producer.avro(CLICK, {"user_id": "u", "item_id": 7})
    assert read(registry, value) == {"user_id": "u", "item_id": 7, "@type": "shop.Click"}


def test_a_schema_is_asked_for_once(registry: RegistryDouble, producer: Producer) -> None:
    value = producer.avro(CLICK, {"user_id": "u", "item_id": 7})
    reader, before = open_format(EventSettings(), asked(registry)), len(registry.asked)
    for _ in range(3):
        reader.read(None, value, ())
    assert len(registry.asked) == before + 1


def test_a_header_may_name_the_schema(registry: RegistryDouble, producer: Producer) -> None:
    value, headers = producer.avro_in_header(CLICK, {"user_id": "u", "item_id": 7})
    assert value[:2] == b"\x02u"  # no frame
    assert read(registry, value, headers)["item_id"] == 7


def test_schemas_change_and_each_record_is_read_by_its_own(
    registry: RegistryDouble, producer: Producer
) -> None:
    before = producer.avro(CLICK, {"user_id": "u", "item_id": 7})
    later = record("Click", ms="long", item_id="long", user_id=["null", "string"])
    after = producer.avro(later, {"ms": NOW, "item_id": 8, "user_id": "v"})
    reader = open_format(EventSettings(), asked(registry))
    assert [reader.read(None, one, ())[0] for one in (before, after)] == [
        {"user_id": "u", "item_id": 7, "@type": "shop.Click"},
        {"ms": NOW, "item_id": 8, "user_id": "v", "@type": "shop.Click"},
    ]


def test_several_types_in_a_topic_are_told_apart_by_their_names(
    registry: RegistryDouble, producer: Producer
) -> None:
    click = producer.avro(CLICK, {"user_id": "u", "item_id": 7}, **by_record())
    search = producer.avro(record("Search", words="string"), {"words": "tea"}, **by_record())
    assert list(registry.versions) == ["shop.Click", "shop.Search"]
    assert read(registry, click)["@type"] == "shop.Click"
    assert read(registry, search)["@type"] == "shop.Search"


def test_a_union_of_types_says_which_it_is(registry: RegistryDouble, producer: Producer) -> None:
    union = [CLICK, record("Search", words="string")]
    value = producer.avro(
        union, {"words": "tea"}, None, **{"subject.name.strategy": lambda *_: "any"}
    )
    assert read(registry, value) == {"words": "tea", "@type": "shop.Search"}


def test_what_a_schema_refers_to_is_asked_for_too(
    registry: RegistryDouble, producer: Producer
) -> None:
    producer.register("item", record("Item", id="long"))
    seen = record("Seen", user_id="string", item="shop.Item")
    value = producer.avro(seen, {"user_id": "u", "item": {"id": 7}}, {"shop.Item": "item"})
    assert read(registry, value)["item"] == {"id": 7}


def test_logical_types_are_what_they_mean(registry: RegistryDouble, producer: Producer) -> None:
    moment = dt.datetime(2023, 11, 14, 22, 13, 20, 123_456, dt.UTC)
    schema = record(
        "All",
        ms={"type": "long", "logicalType": "timestamp-millis"},
        us={"type": "long", "logicalType": "timestamp-micros"},
        local={"type": "long", "logicalType": "local-timestamp-millis"},
        day={"type": "int", "logicalType": "date"},
        spent={"type": "int", "logicalType": "time-millis"},
        spent_us={"type": "long", "logicalType": "time-micros"},
        price={"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2},
        id={"type": "string", "logicalType": "uuid"},
        kind={"type": "enum", "name": "Kind", "symbols": ["view", "buy"]},
        raw="bytes",
        binary="bytes",
        maybe=["null", "string"],
        tags={"type": "array", "items": "string"},
        counts={"type": "map", "values": "long"},
    )
    event = {
        "ms": moment,
        "us": moment,
        "local": moment.replace(tzinfo=None),
        "day": moment.date(),
        "spent": dt.time(0, 0, 1, 500_000),
        "spent_us": dt.time(0, 0, 1, 500_900),
        "price": Decimal("12.50"),
        "id": UUID(int=7),
        "kind": "buy",
        "raw": b"text",
        "binary": b"\xff",
        "maybe": None,
        "tags": ["a"],
        "counts": {"a": 1},
    }
    found = read(registry, producer.avro(schema, event))
    assert found == {
        "ms": Timestamp(NOW),
        "us": Timestamp(NOW),
        "local": Timestamp(NOW),
        "day": Timestamp(1_699_920_000_000),
        "spent": 1500,
        "spent_us": 1500,
        "price": Decimal("12.50"),
        "id": str(UUID(int=7)),
        "kind": "buy",
        "raw": "text",
        "binary": b"\xff",
        "maybe": None,
        "tags": ["a"],
        "counts": {"a": 1},
        "@type": "shop.All",
    }


def test_a_moment_that_no_calendar_holds_is_one_all_the_same(
    registry: RegistryDouble, producer: Producer
) -> None:
    plain = producer.avro(record("Click", at="long"), {"at": 1 << 60})
    schema = record("Click", at={"type": "long", "logicalType": "timestamp-millis"})
    producer.avro(schema, {"at": dt.datetime.now(dt.UTC)})
    assert read(registry, b"\0\0\0\0\2" + plain[5:])["at"] == Timestamp(1 << 60)


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_bytes_that_are_not_what_their_schema_says_are_refused(
    registry: RegistryDouble, producer: Producer, cut: int
) -> None:
    value = producer.avro(CLICK, {"user_id": "u", "item_id": 700})
    wrong = value[:-cut] if cut else value + b"\0"
    assert refused(registry, wrong).reason == Reason.BAD_FORMAT
    assert "schema 1" in refused(registry, wrong).detail


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b'{"user_id": "u"}', "JSON without a frame"),
        (b"\0\0", "begins with"),
        (b"\x1f\x8bxxxx", "gzip"),
    ],
)
def test_a_record_that_names_no_schema_is_told_as_what_it_is(
    registry: RegistryDouble, value: bytes, said: str
) -> None:
    rejected = refused(registry, value)
    assert rejected.reason == Reason.BAD_FORMAT
    assert said in rejected.detail


def test_a_schema_that_is_not_registered_is_named_and_not_asked_for_again(
    registry: RegistryDouble,
) -> None:
    reader = open_format(EventSettings(), asked(registry))
    for _ in range(3):
        with pytest.raises(Rejected, match="no schema 42") as caught:
            reader.read(None, b"\0\0\0\0\x2a\2u", ())
        assert caught.value.reason == Reason.UNKNOWN_SCHEMA
    assert len(registry.asked) == 1


def test_a_registry_that_is_away_refuses_nothing(
    registry: RegistryDouble, producer: Producer
) -> None:
    value = producer.avro(CLICK, {"user_id": "u", "item_id": 7})
    reader = open_format(EventSettings(), asked(registry))
    registry.fails_with = 503
    with pytest.raises(RegistryUnavailable):
        reader.read(None, value, ())
    registry.fails_with = None
    assert reader.read(None, value, ())


def test_a_schema_of_another_kind_is_said_to_be_one(
    registry: RegistryDouble, producer: Producer
) -> None:
    value = producer.json({"title": "Click", "type": "object"}, {"user_id": "u"})
    assert "is of JSON, not of AVRO" in refused(registry, value).detail


def test_what_is_encrypted_is_not_read_as_if_it_were_not(registry: RegistryDouble) -> None:
    rule = {"name": "pii", "kind": "TRANSFORM", "mode": "WRITEREAD", "type": "ENCRYPT"}
    registry.register("clicks-value", {"schema": '"string"', "ruleSet": {"domainRules": [rule]}})
    assert "its rule pii" in refused(registry, b"\0\0\0\0\1\2u").detail


@pytest.mark.parametrize(
    "schema",
    ['{"type": "recrod"}', "{", '{"type": "shop.Unknown"}', "{}", "7", '{"type": "record"}', "[7]"],
)
def test_a_schema_that_is_none_is_told(registry: RegistryDouble, schema: str) -> None:
    registry.register("clicks-value", {"schema": schema})
    assert "schema 1 cannot be used" in refused(registry, b"\0\0\0\0\1\2u").detail
