"""CloudEvents 1.0 on Kafka: structured mode, batches of it, and binary mode.

A raw event is what the structured form has: the attributes, and ``data``. Beside them stands
``unique_id``, its source and id: an id alone is unique only within a source. (Attributes have no
underscore, so none has that name.)
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Sequence
from typing import Any, Final

from infra.schema_registry import SchemaRegistry
from infra.settings import EventSettings
from streaming.events.formats.format import Format, Headers, Preset, RawEvent
from streaming.events.formats.json import JsonFormat, read_object
from streaming.events.payloads import decode_dict, framing, texts_of
from streaming.events.rejects import Reason, Rejected, show

PRESET: Final = Preset(
    fields={
        "event_id": "unique_id",
        "user_id": "data.user_id",
        "item_id": "data.item_id",
        "action": ("data.action", "type"),
        "event_time": ("data.event_time", "time"),
        "category_id": "data.category_id",
        "dwell_ms": "data.dwell_ms",
    },
    time_unit="iso",
)

_REQUIRED: Final = ("id", "source", "type")
_PREFIX: Final = "ce_"
_JSON: Final = ("/json", "+json")


class CloudEventsFormat:
    """Reads CloudEvents."""

    def __init__(self, settings: EventSettings) -> None:
        self._json: Final = JsonFormat(settings)

    def read(
        self, key: bytes | None, value: bytes | None, headers: Headers
    ) -> Sequence[RawEvent | Rejected]:
        """See `Format`."""
        attributes = {name.lower(): of for name, of in headers}
        if _PREFIX + "specversion" in attributes:
            return [_binary(value or b"", attributes)]
        return [
            one if isinstance(one, Rejected) else _checked(one)
            for one in self._json.read(key, value, headers)
        ]

    def keep(self, value: bytes, places: Collection[int]) -> bytes | None:
        """See `Format`.

        What is split cannot be cut in binary mode, whose value has not the attributes, nor where
        data is base64.
        """
        events = [one for one in map(read_object, texts_of(value)) if isinstance(one, dict)]
        binary = len(events) == 1 and "specversion" not in events[0]
        if binary or any("data_base64" in event for event in events):
            return None
        return self._json.keep(value, places)


def open_format(settings: EventSettings, _registry: SchemaRegistry) -> Format:
    """See `streaming.events.formats.open_format`."""
    return CloudEventsFormat(settings)


def _binary(value: bytes, headers: dict[str, bytes | None]) -> RawEvent:
    """An event whose attributes are headers, and whose data is the value."""
    event: RawEvent = {}
    for name, of in headers.items():
        if name.startswith(_PREFIX) and of is not None:
            try:
                event[name.removeprefix(_PREFIX)] = of.decode()
            except UnicodeDecodeError:
                raise Rejected(Reason.BAD_TEXT, f"header {name} {show(of)} is not UTF-8") from None
    content = (headers.get("content-type") or b"application/json").decode("latin-1")
    if value:
        event["data"] = _data(value, content)
    return _complete(event)


def _data(value: bytes, content: str) -> Any:
    """The data of an event as JSON has it."""
    if not content.partition(";")[0].strip().lower().endswith(_JSON):
        raise Rejected(
            Reason.BAD_FORMAT,
            f"content-type {show(content)}: data in JSON alone is read"
            f"{f'; it is {found}' if (found := framing(value)) else ''}",
        )
    return decode_dict(value)


def _checked(event: RawEvent) -> RawEvent | Rejected:
    """An event in structured form, whole."""
    try:
        if "data_base64" in event:
            event["data"] = decode_dict(_decoded(event["data_base64"]))
        return _complete(event)
    except Rejected as rejected:
        return rejected


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(text, validate=True)  # type: ignore[arg-type]
    except (binascii.Error, TypeError, ValueError):
        raise Rejected(Reason.BAD_FORMAT, f"data_base64 {show(text)} is not base64") from None


def _complete(event: RawEvent) -> RawEvent:
    version = event.get("specversion")
    if version is None:
        raise Rejected(
            Reason.BAD_FORMAT,
            "no CloudEvent: it has no specversion, nor a header ce_specversion",
        )
    if version != "1.0":
        raise Rejected(Reason.BAD_FORMAT, f"specversion {show(version)} is not '1.0'")
    for name in _REQUIRED:
        if not isinstance(event.get(name), str) or not event[name]:
            raise Rejected(Reason.BAD_FORMAT, f"{name}, which a CloudEvent must have, is not there")
    event["unique_id"] = f"{event['source']} {event['id']}"
    return event
