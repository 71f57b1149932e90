from collections.abc import Iterator
from typing import Any

import pytest

from infra.settings import EventSettings
from streaming.events.formats.json_schema import open_format
from streaming.events.rejects import Reason, Rejected
from tests.schema_registry import RegistryDouble
from tests.streaming.events.formats.producing import Producer, asked, producing

SCHEMA = {"title": "Click", "type": "object", "properties": {"user_id": {"type": "string"}}}


@pytest.fixture
def producer(registry: RegistryDouble) -> Iterator[Producer]:
    with producing(registry) as one:
        yield one


def read(registry: RegistryDouble, value: bytes) -> Any:
    return open_format(EventSettings(), asked(registry)).read(None, value, ())


def test_framed_json_is_read_and_knows_its_title(
    registry: RegistryDouble, producer: Producer
) -> None:
    value = producer.json(SCHEMA, {"user_id": "u", "n": 7})
    assert read(registry, value) == [{"user_id": "u", "n": 7, "@type": "Click"}]


def test_a_schema_may_have_no_title(registry: RegistryDouble, producer: Producer) -> None:
    registry.register("clicks-value", {"schema": '{"type": "object"}', "schemaType": "JSON"})
    assert read(registry, b'\0\0\0\0\1{"user_id": "u"}') == [{"user_id": "u"}]


def test_json_that_is_none_is_refused_as_such(registry: RegistryDouble, producer: Producer) -> None:
    value = producer.json(SCHEMA, {"user_id": "u"})
    (rejected,) = read(registry, value[:-1])
    assert isinstance(rejected, Rejected)
    assert rejected.reason == Reason.NOT_JSON


def test_a_record_of_several_events_is_cut_within_its_frame(registry: RegistryDouble) -> None:
    registry.register("clicks-value", {"schema": '{"title": "Click"}', "schemaType": "JSON"})
    frame = b"\0\0\0\0\1"
    reader = open_format(EventSettings(), asked(registry))
    assert reader.keep(frame + b'[{"a":1},{"a":2}]', [1]) == frame + b'[{"a":2}]'


def test_json_without_a_frame_is_refused_with_what_to_do(registry: RegistryDouble) -> None:
    with pytest.raises(Rejected, match="names no schema") as caught:
        read(registry, b'{"user_id": "u"}')
    assert caught.value.reason == Reason.BAD_FORMAT
