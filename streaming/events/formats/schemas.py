"""Records that name their schemas, and the schemas: what Avro, Protobuf and JSON Schema share.

A record is framed: a zero, its schema's id in four bytes, what it holds; or it holds that alone,
and a header names the schema. A schema is asked for when the first record names it, and kept.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from infra.errors import LifelongError, SchemaUnknown, one_line
from infra.schema_registry import SchemaId, SchemaRegistry
from streaming.events.formats.format import Headers
from streaming.events.payloads import framing
from streaming.events.rejects import Reason, Rejected, show

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema

TYPE: Final = "@type"
"""Where an event has the name of its type, for ``only`` and ``ignore``: of an Avro record, of a
Protobuf message, a JSON Schema's title. A field of theirs cannot be called so."""

HEADER: Final = "__value_schema_id"
"""The header that names the schema of a record's value."""

REFUSED_S: Final = 60.0
"""How long a schema that cannot be had is not asked for again; a copy of the registry may be behind
the one that the producer asked."""

MOST_REFUSED: Final = 1024
"""Such schemas that are remembered: a producer of anything else may name a new one in each
record."""

FRAME: Final = 5
"""Bytes before what a framed record holds: a zero, and the schema's id."""

_GUID: Final = 17
_ENCRYPTING: Final = ("ENCRYPT", "ENCRYPT_PAYLOAD")

T = TypeVar("T")


class Framed(NamedTuple):
    """What a record says of itself."""

    schema: SchemaId
    prefix: bytes
    """What follows the schema's id, where a header has that."""
    payload: bytes
    """What the record holds; in Protobuf, unless the schema's id is in a header, the prefix
    first."""


def framed(value: bytes | None, headers: Headers) -> Framed:
    """Take a record apart.

    Raises:
        Rejected: it names no schema.
    """
    if not value:
        raise Rejected(Reason.EMPTY, "no payload")
    for name, said in headers:
        if name == HEADER and said is not None:
            if said[:1] == b"\1" and len(said) >= _GUID:
                return Framed(uuid.UUID(bytes=said[1:_GUID]), said[_GUID:], value)
            if said[:1] == b"\0" and len(said) >= FRAME:
                return Framed(int.from_bytes(said[1:FRAME], "big"), said[FRAME:], value)
            raise Rejected(Reason.BAD_FORMAT, f"header {HEADER} {show(said)} names no schema")
    if value[0] or len(value) < FRAME:
        if (seen := framing(value)) is None:
            text = value[:1] in {b"{", b"["}
            seen = "JSON without a frame" if text else f"begins with {show(value[:8])}"
        raise Rejected(
            Reason.BAD_FORMAT,
            f"names no schema of a registry: {seen}; have the producer use a registry's serializer,"
            " or set the format of the source to what it sends",
        )
    return Framed(int.from_bytes(value[1:FRAME], "big"), b"", value[FRAME:])


class Schemas(Generic[T]):
    """What a format made of each schema.

    Args:
        registry: is asked for them.
        kind: which the format reads: AVRO, PROTOBUF, JSON.
        make: makes of a schema what records are read with; raises anything where it cannot.
        serialized: see `SchemaRegistry.schema`.
    """

    def __init__(
        self,
        registry: SchemaRegistry,
        kind: str,
        make: Callable[[Schema], T],
        *,
        serialized: bool = False,
    ) -> None:
        self._registry = registry
        self._kind = kind
        self._make = make
        self._serialized = serialized
        self._made: dict[SchemaId, T] = {}
        self._refused: dict[SchemaId, tuple[float, Reason, str]] = {}
        """Until when (monotonic seconds), and why."""

    def get(self, key: SchemaId) -> T:
        """What was made of the schema with an id.

        Raises:
            Rejected: there is no such schema, or it cannot be used.
            RegistryUnavailable: the registry cannot say now.
        """
        made = self._made.get(key)
        if made is not None:
            return made
        until, reason, detail = self._refused.get(key, (0.0, Reason.UNKNOWN_SCHEMA, ""))
        if time.monotonic() >= until:
            try:
                made = self._made[key] = self._ask(key)
            except Rejected as rejected:
                reason, detail = rejected.reason, rejected.detail
                if len(self._refused) >= MOST_REFUSED:
                    self._refused.clear()
                self._refused[key] = time.monotonic() + REFUSED_S, reason, detail
            else:
                return made
        raise Rejected(reason, detail)

    def of_records(
        self, values: Sequence[bytes | None], headers: Sequence[Headers] | None
    ) -> Iterator[tuple[T | None, int]]:
        """For each record what was made of its schema, and how many bytes stand before what it
        holds; None: it has no schema that can be had, which `get` tells of.
        """
        seen: dict[bytes, T | None] = {}
        for row, value in enumerate(values):
            of = () if headers is None else headers[row]
            if not value:
                yield None, 0
            elif any(name == HEADER for name, _ in of):
                yield self._made_of(value, of), 0
            else:
                frame = value[:FRAME]
                if frame not in seen:
                    seen[frame] = self._made_of(value, ())
                yield seen[frame], FRAME

    def _made_of(self, value: bytes, headers: Headers) -> T | None:
        try:
            return self.get(framed(value, headers).schema)
        except Rejected:
            return None

    def _ask(self, key: SchemaId) -> T:
        try:
            schema = self._registry.schema(key, serialized=self._serialized)
            kind = schema.schema_type or "AVRO"
            if kind != self._kind:
                raise Rejected(
                    Reason.BAD_FORMAT,
                    f"schema {key} is of {kind}, not of {self._kind}; set the format of the source",
                )
            _refuse_encrypted(key, schema)
            return self._make(schema)
        except SchemaUnknown as error:
            raise Rejected(
                Reason.UNKNOWN_SCHEMA,
                f"the registry has no schema {key} ({one_line(error, 100)}); is it the registry"
                " of this topic's producers?",
            ) from None
        except (LifelongError, Rejected):
            raise
        except Exception as error:  # noqa: BLE001 - of a schema that is anything, it may be any
            raise Rejected(
                Reason.BAD_FORMAT, f"schema {key} cannot be used: {one_line(error, 160)}"
            ) from None


def _refuse_encrypted(key: SchemaId, schema: Schema) -> None:
    """Refuse what would be read as if it were not encrypted."""
    if schema.rule_set is None:
        return
    rules = [*(schema.rule_set.domain_rules or []), *(schema.rule_set.encoding_rules or [])]
    for rule in rules:
        if rule.type in _ENCRYPTING and not rule.disabled:
            raise Rejected(
                Reason.BAD_FORMAT,
                f"schema {key} has fields encrypted (its rule {rule.name}), which nobody undoes"
                " here; have what is needed sent unencrypted",
            )
