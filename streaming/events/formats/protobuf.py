"""Protobuf by the schemas of a registry, without generated code.

The registry gives a schema as its compiled descriptor, if it is asked so (``format=serialized``),
and of descriptors Protobuf's own library makes messages; nobody compiles a .proto here.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import io
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message

from infra.errors import one_line
from infra.schema_registry import SchemaRegistry
from infra.settings import EventSettings
from streaming.events.formats.format import Format, Headers, Preset, RawEvent
from streaming.events.formats.schemas import HEADER, TYPE, Schemas, framed
from streaming.events.rejects import Reason, Rejected
from streaming.events.times import Timestamp

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema
    from google.protobuf.descriptor import Descriptor, FileDescriptor

PRESET: Final = Preset()

MOST_DEEP: Final = 16
"""Messages within each other down to the record's own."""

_OURS: Final = ("google/protobuf/", "google/type/", "confluent/")
"""What schemas import that registries do not give, since every compiler has it."""

_CONFLUENT: Final = "confluent_kafka.schema_registry."

_WRAPPERS: Final = {
    f"google.protobuf.{of}Value"
    for of in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
}


class ProtobufFormat:
    """Reads Protobuf."""

    def __init__(self, registry: SchemaRegistry) -> None:
        registry.require("format protobuf")
        self._schemas = Schemas(
            registry, "PROTOBUF", lambda schema: _Messages(schema, registry), serialized=True
        )

    def read(
        self, _key: bytes | None, value: bytes | None, headers: Headers
    ) -> Sequence[RawEvent | Rejected]:
        """See `Format`."""
        record = framed(value, headers)
        messages = self._schemas.get(record.schema)
        in_header = any(name == HEADER for name, _ in headers)
        rest = io.BytesIO(record.prefix if in_header else record.payload)
        try:
            message = messages.of(_indexes(rest))()
            message.ParseFromString(record.payload if in_header else rest.read())
        except (DecodeError, LookupError, ValueError) as error:
            raise Rejected(
                Reason.BAD_FORMAT,
                f"is not what schema {record.schema} says: {one_line(error)}",
            ) from None
        return [_mapping(message) | {TYPE: message.DESCRIPTOR.full_name}]

    def keep(self, value: bytes, places: Collection[int]) -> None:
        """See `Format`: a message of Protobuf is not cut."""


def open_format(_settings: EventSettings, registry: SchemaRegistry) -> Format:
    """See `streaming.events.formats.open_format`."""
    return ProtobufFormat(registry)


class _Messages:
    """The messages of a schema, as classes.

    Raises:
        ValueError: the registry gave no descriptor.
        TypeError: it is not one that stands on its imports.
    """

    def __init__(self, schema: Schema, registry: SchemaRegistry) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        self._added: set[str] = set()
        self._registry = registry
        self._file = self._add("schema.proto", schema)
        self._classes: dict[tuple[int, ...], type[Message]] = {}

    def of(self, indexes: tuple[int, ...]) -> type[Message]:
        """The class of a message: its place in the file, then in the message around it.

        Raises:
            LookupError: there is none.
        """
        found = self._classes.get(indexes)
        if found is None:
            first, *inner = indexes
            descriptor: Descriptor = list(self._file.message_types_by_name.values())[first]
            for index in inner:
                descriptor = descriptor.nested_types[index]
            found = self._classes[indexes] = message_factory.GetMessageClass(descriptor)
        return found

    def _add(self, name: str, schema: Schema) -> FileDescriptor:
        """Add a file, what it imports first."""
        file = _descriptor(schema)
        file.name = name
        referred = {one.name: one for one in schema.references or []}
        for imported in file.dependency:
            if imported in self._added:
                continue
            self._added.add(imported)
            if (reference := referred.get(imported)) is not None:
                found = self._registry.version(
                    reference.subject, reference.version, serialized=True
                )
                self._add(imported, found)
            else:
                self._add_ours(imported)
        self._pool.AddSerializedFile(file.SerializeToString())
        return self._pool.FindFileByName(name)

    def _add_ours(self, name: str) -> None:
        if not name.startswith(_OURS):
            raise ValueError(f"it imports {name}, which is none of its references")
        module = name.removesuffix(".proto").replace("/", ".") + "_pb2"
        if name.startswith("confluent/"):
            module = _CONFLUENT + module.replace("confluent.type.", "confluent.types.")
        try:
            known: FileDescriptor = importlib.import_module(module).DESCRIPTOR
        except ImportError:
            raise ValueError(f"it imports {name}, which is not known here") from None
        for one in known.dependencies:
            if one.name not in self._added:
                self._added.add(one.name)
                self._add_ours(one.name)
        file = descriptor_pb2.FileDescriptorProto.FromString(known.serialized_pb)
        file.name = name  # the client has another for its own
        self._pool.AddSerializedFile(file.SerializeToString())


def _descriptor(schema: Schema) -> descriptor_pb2.FileDescriptorProto:
    text = schema.schema_str or ""
    try:
        return descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, DecodeError):
        raise ValueError(
            "the registry gives it as text, not as a descriptor (format=serialized), as those of"
            " Confluent, Redpanda (from 25.2 on) and Karapace do"
        ) from None


def _indexes(rest: io.BytesIO) -> tuple[int, ...]:
    """Which message of the file follows: how many numbers say so, and they; 0 is the first."""
    count = _number(rest)
    if not 0 <= count <= MOST_DEEP:
        raise ValueError(f"{count} numbers that say which message it is")
    return tuple(_number(rest) for _ in range(count)) if count else (0,)


def _number(rest: io.BytesIO) -> int:
    number = shift = 0
    while True:
        byte = rest.read(1)
        if not byte:
            raise ValueError("it ends where it should say which message it is")
        number |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return (number >> 1) ^ -(number & 1)


def _mapping(message: Message) -> dict[str, Any]:
    """A message's fields by their names.

    Those that are not set are left out; of a number without presence (proto3) that is 0, nobody can
    tell, and it counts as not set. An enum always says something.
    """
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated:
            found[field.name] = _repeated(field, getattr(message, field.name))
        elif field.has_presence:
            if message.HasField(field.name):
                found[field.name] = _plain(field, getattr(message, field.name))
        else:
            value = getattr(message, field.name)
            if value or field.enum_type is not None or isinstance(value, bool):
                found[field.name] = _plain(field, value)
    return found


def _repeated(field: Any, values: Any) -> Any:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        of = inner.fields_by_name["value"]
        return {str(key): _plain(of, values[key]) for key in values}
    return [_plain(field, value) for value in values]


def _plain(field: Any, value: Any) -> Any:
    """A value as the rules for events know it; what is of a well-known type, as what it means."""
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if not isinstance(value, Message):
        return value
    name = value.DESCRIPTOR.full_name
    parts: Any = value
    if name == "google.protobuf.Timestamp":
        return Timestamp(parts.seconds * 1000 + parts.nanos // 1_000_000)
    if name == "google.protobuf.Duration":
        return parts.seconds * 1000 + parts.nanos // 1_000_000
    if name in _WRAPPERS:
        return _plain(value.DESCRIPTOR.fields_by_name["value"], parts.value)
    if name in {"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"}:
        return json_format.MessageToDict(value)
    if name == "confluent.type.Decimal":
        return Decimal(int.from_bytes(parts.value, "big", signed=True)).scaleb(-parts.scale)
    return _mapping(value)
