from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from infra.settings import EventSettings
from streaming.events.formats.protobuf import open_format
from streaming.events.rejects import Reason, Rejected
from streaming.events.times import Timestamp
from tests.schema_registry import RegistryDouble
from tests.streaming.events.formats.producing import Producer, asked, messages, producing

CLICK = """
syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/struct.proto";
enum Kind { VIEW = 0; BUY = 1; }
message Search { string words = 1; }
message Click {
  message Item { int64 id = 1; bytes code = 2; }
  string user_id = 1;
  Item item = 2;
  Kind kind = 3;
  google.protobuf.Timestamp at = 4;
  google.protobuf.Duration spent = 5;
  google.protobuf.StringValue category = 6;
  google.protobuf.Struct more = 7;
  repeated string tags = 8;
  map<string, int32> counts = 9;
  optional int32 place = 10;
  int32 number = 11;
  bool seen = 12;
  oneof which { string web = 13; string app = 14; }
}
"""


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


def click(kinds: dict[str, Any], **fields: Any) -> Any:
    return kinds["shop.Click"](user_id="u", item={"id": 7}, **fields)


def test_a_message_is_read_without_generated_code(
    registry: RegistryDouble, producer: Producer, tmp_path: Path
) -> None:
    message = click(
        messages(tmp_path, click=CLICK),
        kind="BUY",
        tags=["a"],
        counts={"a": 1},
        place=0,
        seen=True,
        app="ios",
        more={"plan": "free"},
    )
    message.at.FromMilliseconds(1_700_000_000_123)
    message.spent.FromMilliseconds(1500)
    message.category.value = "tea"
    message.item.code = b"text"
    value, _ = producer.protobuf(message)
    assert read(registry, value) == {
        "user_id": "u",
        "item": {"id": 7, "code": "text"},
        "kind": "BUY",
        "at": Timestamp(1_700_000_000_123),
        "spent": 1500,
        "category": "tea",
        "more": {"plan": "free"},
        "tags": ["a"],
        "counts": {"a": 1},
        "place": 0,
        "seen": True,
        "app": "ios",
        "@type": "shop.Click",
    }


def test_what_is_not_set_is_not_there_but_an_enum_always_says_something(
    registry: RegistryDouble, producer: Producer, tmp_path: Path
) -> None:
    message = messages(tmp_path, click=CLICK)["shop.Click"](user_id="u")
    found = read(registry, producer.protobuf(message)[0])
    assert "number" not in found
    assert "place" not in found
    assert "at" not in found
    assert found["kind"] == "VIEW"


def test_which_message_of_the_file_it_is_stands_before_it(
    registry: RegistryDouble, producer: Producer, tmp_path: Path
) -> None:
    kinds = messages(tmp_path, click=CLICK)
    search, _ = producer.protobuf(kinds["shop.Search"](words="tea"))
    inner, _ = producer.protobuf(click(kinds).item)
    assert read(registry, search) == {"words": "tea", "@type": "shop.Search"}
    assert read(registry, inner) == {"id": 7, "@type": "shop.Click.Item"}


def test_a_header_may_name_the_schema_and_the_message(
    registry: RegistryDouble, producer: Producer, tmp_path: Path
) -> None:
    kinds = messages(tmp_path, click=CLICK)
    value, headers = producer.protobuf(click(kinds), in_header=True)
    assert value[:1] == b"\x0a"  # no frame
    assert read(registry, value, headers)["@type"] == "shop.Click"


def test_what_a_file_imports_is_asked_for_too(
    registry: RegistryDouble, producer: Producer, tmp_path: Path
) -> None:
    item = 'syntax = "proto3"; package shop; message Item { int64 id = 1; }'
    seen = """
        syntax = "proto3"; package shop;
        import "item.proto";
        import "confluent/type/decimal.proto"; import "google/type/date.proto";
        message Seen {
          string user_id = 1; Item item = 2;
          confluent.type.Decimal price = 3; google.type.Date day = 4;
        }
    """
    decimal = """
        syntax = "proto3"; package confluent.type;
        message Decimal { bytes value = 1; uint32 precision = 2; int32 scale = 3; }
    """
    date = """
        syntax = "proto3"; package google.type;
        message Date { int32 year = 1; int32 month = 2; int32 day = 3; }
    """
    for name in ("confluent/type", "google/type"):
        (tmp_path / name).mkdir(parents=True)
    files = {"confluent/type/decimal": decimal, "google/type/date": date}
    kinds = messages(tmp_path, **files, item=item, seen=seen)
    message = kinds["shop.Seen"](user_id="u", item={"id": 7}, day={"year": 2023})
    message.price.value, message.price.scale = (1250).to_bytes(2, "big"), 2
    found = read(registry, producer.protobuf(message)[0])
    assert "item.proto" in registry.versions
    assert found["item"] == {"id": 7}
    assert found["price"] == Decimal("12.50")
    assert found["day"] == {"year": 2023}


@pytest.mark.parametrize("wrong", [b"\x0a\xff", b"\x02\x7f", b"\x7f", b"", b"\x80"])
def test_bytes_that_are_not_what_their_schema_says_are_refused(
    registry: RegistryDouble, producer: Producer, tmp_path: Path, wrong: bytes
) -> None:
    value, _ = producer.protobuf(click(messages(tmp_path, click=CLICK)))
    rejected = refused(registry, value[:5] + wrong)
    assert rejected.reason == Reason.BAD_FORMAT
    assert "schema 1" in rejected.detail


def test_a_registry_that_gives_no_descriptors_is_told_from_one_that_does(
    registry: RegistryDouble,
) -> None:
    registry.register("clicks-value", {"schema": CLICK, "schemaType": "PROTOBUF"})
    assert "as text, not as a descriptor" in refused(registry, b"\0\0\0\0\1\0").detail
