"""Avro by the schemas of a registry, read with fastavro.

A record is read by the schema that it was written with, and its fields are found by name: what a
schema's later versions add or leave out is there or is not, as in JSON.
"""

from __future__ import annotations

import functools
import io
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from infra.errors import one_line
from infra.schema_registry import SchemaRegistry
from infra.settings import EventSettings
from streaming.events.avro_program import MOMENTS, OURS, UNSURE, Programs, parse_avro
from streaming.events.formats.format import Format, Headers, Preset, RawEvent
from streaming.events.formats.schemas import TYPE, Schemas, framed
from streaming.events.rejects import Reason, Rejected, kind
from streaming.events.times import Timestamp

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema

    from streaming.events.parsing import How, Rows

PRESET: Final = Preset()


class _Reader(NamedTuple):
    """How records of a schema are read."""

    branches: tuple[Any, ...]
    """Parsed schemas of the records that one may be; several: a number before it says which."""
    union: bool
    begin: int
    """Where the kernel's program begins."""


class AvroFormat:
    """Reads Avro."""

    def __init__(self, settings: EventSettings, registry: SchemaRegistry) -> None:
        registry.require("format avro")
        from fastavro import schemaless_reader

        _teach_moments()
        self._splits = bool(settings.split)
        self._read = schemaless_reader
        self._registry = registry
        self._schemas = Schemas(registry, "AVRO", self._reader)
        self._programs: Programs | None = None

    def read(
        self, _key: bytes | None, value: bytes | None, headers: Headers
    ) -> Sequence[RawEvent | Rejected]:
        """See `Format`."""
        record = framed(value, headers)
        reader = self._schemas.get(record.schema)
        text = io.BytesIO(record.payload)
        try:
            schema = reader.branches[_number(text) if reader.union else 0]
            event = self._read(text, schema, None)
        except Exception as error:  # noqa: BLE001 - of bytes that are anything, it may be any
            why = one_line(error).partition(" from <")[0]  # the object that it was read from
            if isinstance(error, EOFError):
                why = "it ends too early"
            raise Rejected(
                Reason.BAD_FORMAT, f"is not what schema {record.schema} says: {why}"
            ) from None
        if (left := len(record.payload) - text.tell()) > 0:
            raise Rejected(
                Reason.BAD_FORMAT,
                f"is not what schema {record.schema} says: {left} bytes are left behind it",
            )
        if not isinstance(event, dict):
            raise Rejected(Reason.WRONG_SHAPE, f"not a record but {kind(event)}")
        return [_plain(event) | ({TYPE: schema["name"]} if "name" in schema else {})]

    def keep(self, value: bytes, places: Collection[int]) -> None:
        """See `Format`: a record of Avro is not cut."""

    def prepare(self, paths: Mapping[str, Sequence[str]], unit: str) -> bool:
        """See `KernelFormat`."""
        if self._splits:
            return False
        self._programs = Programs(paths, unit)
        return True

    def parse(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        headers: Sequence[Headers] | None,
        how: How,
    ) -> Rows:
        """See `KernelFormat`."""
        assert self._programs is not None
        begins, skipped = [], []
        for reader, skip in self._schemas.of_records(values, headers):
            begins.append(UNSURE if reader is None else reader.begin)
            skipped.append(skip)
        at = np.array([begins, skipped], np.int64)
        return parse_avro(values, keys, at[0], at[1], self._programs.program, how)

    def _reader(self, schema: Schema) -> _Reader:
        named: dict[str, Any] = {}
        self._parse_references(schema, named, set())
        found = json.loads(schema.schema_str or "")
        union = isinstance(found, list)
        parsed = [_parsed(one, named) for one in (found if union else [found])]
        begin = UNSURE
        if self._programs is not None:
            begin = self._programs.add(parsed if union else parsed[0], named)
        return _Reader(tuple(parsed), union, begin)

    def _parse_references(
        self, schema: Schema, named: dict[str, Any], seen: set[tuple[str, int]]
    ) -> None:
        """Parse what a schema refers to, and what that does, into ``named``."""
        for reference in schema.references or []:
            key = reference.subject, reference.version
            if key not in seen:
                seen.add(key)
                found = self._registry.version(*key)
                self._parse_references(found, named, seen)
                _parsed(json.loads(found.schema_str or ""), named)


def open_format(settings: EventSettings, registry: SchemaRegistry) -> Format:
    """See `streaming.events.formats.open_format`."""
    return AvroFormat(settings, registry)


def _parsed(schema: Any, named: dict[str, Any]) -> Any:
    from fastavro import parse_schema
    from fastavro.schema import SchemaParseException, UnknownType

    try:
        return parse_schema(_renamed(schema), named)
    except (SchemaParseException, UnknownType) as error:
        raise ValueError(one_line(error)) from None


def _number(text: io.BytesIO) -> int:
    """A number as Avro writes it: which of a union's types follows."""
    number = shift = 0
    while True:
        (byte,) = text.read(1)
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1)


def _renamed(schema: Any) -> Any:
    """A schema whose logical types have our names where we read them otherwise than fastavro: as
    what they are, whatever a calendar holds.
    """
    if isinstance(schema, list):
        return [_renamed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    renamed = {
        name: _renamed(one) if name in {"type", "items", "values", "fields"} else one
        for name, one in schema.items()
    }
    if (logical := schema.get("logicalType")) in _READ_HERE:
        renamed["logicalType"] = OURS + logical
    elif logical == "uuid" and schema.get("type") == "string":
        del renamed["logicalType"]  # the text as it was sent
    return renamed


_READ_HERE: Final = {*MOMENTS, "time-millis", "time-micros"}


def _teach_moments() -> None:
    """Have fastavro read moments as ours, and times of a day as ms."""
    from fastavro.read import LOGICAL_READERS

    for name, (times, by) in MOMENTS.items():
        kind = "int" if name == "date" else "long"
        LOGICAL_READERS[f"{kind}-{OURS}{name}"] = functools.partial(_moment, times, by)
    LOGICAL_READERS[f"long-{OURS}time-micros"] = lambda count, *_: count // 1000


def _moment(times: int, by: int, count: int, *_: object) -> Timestamp:
    return Timestamp(count * times // by)


def _plain(value: Any) -> Any:
    """A value as the rules for events know it: bytes as the text that they are, if they are one."""
    match value:
        case dict():
            return {name: _plain(one) for name, one in value.items()}
        case list():
            return [_plain(one) for one in value]
        case uuid.UUID():
            return str(value)
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return value
        case _:
            return value
