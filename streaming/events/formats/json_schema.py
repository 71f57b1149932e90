"""JSON by the schemas of a registry: framed, and otherwise read as any JSON.

The schema is asked for its title alone, which tells types in one topic apart. Nothing is validated
by it: the producer's serializer does that, and what an event needs here the rules for events say.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from infra.schema_registry import SchemaRegistry
from infra.settings import EventSettings
from streaming.events.formats.format import Format, Headers, Preset, RawEvent
from streaming.events.formats.json import JsonFormat
from streaming.events.formats.schemas import FRAME, TYPE, Schemas, framed
from streaming.events.rejects import Rejected

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema

    from streaming.events.parsing import How, Rows

PRESET: Final = Preset()


class JsonSchemaFormat:
    """Reads JSON that is framed."""

    def __init__(self, settings: EventSettings, registry: SchemaRegistry) -> None:
        registry.require("format json_schema")
        self._json = JsonFormat(settings)
        self._schemas = Schemas(registry, "JSON", _title)

    def read(
        self, key: bytes | None, value: bytes | None, headers: Headers
    ) -> Sequence[RawEvent | Rejected]:
        """See `Format`."""
        record = framed(value, headers)
        title = self._schemas.get(record.schema)
        events = self._json.read(key, record.payload, headers)
        return [one if isinstance(one, Rejected) else one | title for one in events]

    def keep(self, value: bytes, places: Collection[int]) -> bytes | None:
        """See `Format`."""
        # What is JSON begins with no zero; so its schema is named by a header.
        frame = FRAME if value[:1] == b"\0" else 0
        kept = self._json.keep(value[frame:], places)
        return None if kept is None else value[:frame] + kept

    def prepare(self, paths: Mapping[str, Sequence[str]], _unit: str) -> bool:
        """See `KernelFormat`."""
        return all(len(path) == 1 for path in paths.values())

    def parse(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        headers: Sequence[Headers] | None,
        how: How,
    ) -> Rows:
        """See `KernelFormat`."""
        from streaming.events import parsing

        most, known = how.rules.max_event, self._schemas.of_records(values, headers)
        return parsing.parse(
            [
                value[skip:]
                if value is not None and title is not None and len(value) <= most
                else b""
                for value, (title, skip) in zip(values, known, strict=True)
            ],
            keys,
            how,
        )


def open_format(settings: EventSettings, registry: SchemaRegistry) -> Format:
    """See `streaming.events.formats.open_format`."""
    return JsonSchemaFormat(settings, registry)


def _title(schema: Schema) -> RawEvent:
    """What each event has beside its own fields; ValueError: it is no schema of JSON."""
    found = json.loads(schema.schema_str or "")
    title = found.get("title") if isinstance(found, dict) else None
    return {TYPE: title} if isinstance(title, str) else {}
