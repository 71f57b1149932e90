"""Debezium: changes of a table's rows as JSON, with or without the envelope of schemas.

A raw event is the change: ``op``, ``before``, ``after``, ``source``, ``ts_ms``. A row that is
inserted (``c``) or found by a snapshot (``r``) is a behavior; one that is changed (``u``) is none
unless the settings' ``only`` says so, since it would be a behavior once more, and neither is one
that is deleted (``d``), nor the tombstone that follows it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from infra.schema_registry import SchemaRegistry
from infra.settings import EventSettings
from streaming.events.formats.format import Format, Headers, Preset, RawEvent
from streaming.events.payloads import decode_dict
from streaming.events.rejects import Ignored, Reason, Rejected, kind, show
from streaming.events.times import Timestamp

PRESET: Final = Preset(
    fields={
        "event_id": "after.event_id",
        "user_id": "after.user_id",
        "item_id": "after.item_id",
        "action": "after.action",
        "event_time": ("after.event_time", "source.ts_ms"),
        "category_id": "after.category_id",
        "dwell_ms": "after.dwell_ms",
    },
    only={"op": ("c", "r")},
    # The primary key, as an object.
    key="any",
)

_OPERATIONS: Final = {"c", "r", "u", "d", "t", "m"}
_UNITS: Final = {
    "io.debezium.time.Timestamp": "ms",
    "io.debezium.time.MicroTimestamp": "us",
    "io.debezium.time.NanoTimestamp": "ns",
    "org.apache.kafka.connect.data.Timestamp": "ms",
}
"""What columns of times count, by the names that their schemas have."""


class DebeziumFormat:
    """Reads changes."""

    def read(
        self, _key: bytes | None, value: bytes | None, _headers: Headers
    ) -> Sequence[RawEvent | Rejected]:
        """See `Format`."""
        if value is None:
            raise Ignored("tombstone")
        if not value:
            raise Rejected(Reason.EMPTY, "no payload")
        found = decode_dict(value)
        schema = found.get("schema")
        change = found["payload"] if "payload" in found and "op" not in found else found
        if change is None:
            raise Ignored("tombstone")
        if not isinstance(change, dict) or change.get("op") not in _OPERATIONS:
            what = show(change.get("op")) if isinstance(change, dict) else kind(change)
            raise Rejected(
                Reason.BAD_FORMAT,
                f"no change of Debezium: op is {what}; where the connector unwraps rows"
                " (ExtractNewRecordState), set the format to json",
            )
        if isinstance(schema, dict):
            for of in ("before", "after"):
                _with_units(change.get(of), schema, of)
        return [change]

    def keep(self, _value: bytes, _places: Collection[int]) -> bytes | None:
        """None: a record is one change."""
        return None


def open_format(_settings: EventSettings, _registry: SchemaRegistry) -> Format:
    """See `streaming.events.formats.open_format`."""
    return DebeziumFormat()


def _with_units(row: Any, schema: dict[str, Any], of: str) -> None:
    """Give the times of a row, where its schema says what they count, their units."""
    if not isinstance(row, dict):
        return
    for column in _fields(_field(schema, of)):
        unit, name = _UNITS.get(str(column.get("name"))), column.get("field")
        count = row.get(name)
        if unit is not None and isinstance(count, int) and not isinstance(count, bool):
            row[name] = Timestamp.of(count, unit)


def _field(schema: dict[str, Any], name: str) -> Any:
    return next((one for one in _fields(schema) if one.get("field") == name), None)


def _fields(schema: Any) -> list[dict[str, Any]]:
    """The fields of a schema of Connect; none where it is none."""
    fields = schema.get("fields") if isinstance(schema, dict) else None
    return [one for one in fields if isinstance(one, dict)] if isinstance(fields, list) else []
