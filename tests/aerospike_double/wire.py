"""The part of Aerospike's wire protocol that the client's calls need: frames, messages, batches.

Names and numbers follow the server's ``proto.h``. Integers are big-endian unless said otherwise.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

PROTOCOL: Final = 2
INFO: Final = 1
SECURITY: Final = 2
MESSAGE: Final = 3

INFO1_READ: Final = 1 << 0
INFO1_GET_ALL: Final = 1 << 1
INFO1_BATCH: Final = 1 << 3
INFO1_NO_BINS: Final = 1 << 5
INFO2_WRITE: Final = 1 << 0
INFO2_DELETE: Final = 1 << 1
INFO2_GENERATION: Final = 1 << 2
INFO2_GENERATION_GT: Final = 1 << 3
INFO2_CREATE_ONLY: Final = 1 << 5
INFO2_RESPOND_ALL_OPS: Final = 1 << 7
INFO3_LAST: Final = 1 << 0
INFO3_PARTITION_DONE: Final = 1 << 2
INFO3_UPDATE_ONLY: Final = 1 << 3
INFO3_CREATE_OR_REPLACE: Final = 1 << 4
INFO3_REPLACE_ONLY: Final = 1 << 5

FIELD_NAMESPACE: Final = 0
FIELD_SET: Final = 1
FIELD_KEY: Final = 2
FIELD_DIGEST: Final = 4
FIELD_PARTITIONS: Final = 11
FIELD_DIGESTS: Final = 12
FIELD_MAX_RECORDS: Final = 13
FIELD_INDEX_RANGE: Final = 22
FIELD_QUERY_BINS: Final = 40
FIELD_BATCH: Final = 41
FIELD_FILTER: Final = 43

OP_READ: Final = 1
OP_WRITE: Final = 2
OP_INCREMENT: Final = 5
OP_TOUCH: Final = 11
OP_DELETE_ALL: Final = 14

PARTICLE_NULL: Final = 0
PARTICLE_INTEGER: Final = 1

_FRAME: Final = struct.Struct(">Q")
_HEADER: Final = struct.Struct(">BBBBBBIIIHH")

_BATCH_REPEAT: Final = 0x1
_BATCH_INFO: Final = 0x2
_BATCH_GENERATION: Final = 0x4
_BATCH_TTL: Final = 0x8
_BATCH_INFO4: Final = 0x10
_BATCH_RESPOND_ALL_KEYS: Final = 0x4
"""Flag of the batch field: go on after a record that failed."""


@dataclass(frozen=True, slots=True)
class Particle:
    """A bin's value as the wire has it."""

    kind: int
    data: bytes

    @property
    def integer(self) -> int:
        return int.from_bytes(self.data, "big", signed=True)


@dataclass(frozen=True, slots=True)
class Operation:
    code: int
    bin: str
    value: Particle


@dataclass(slots=True)
class Request:
    """One record's command, alone or out of a batch."""

    namespace: str
    set: str
    digest: bytes
    info1: int
    info2: int = 0
    info3: int = 0
    generation: int = 0
    ttl: int = 0
    operations: list[Operation] = field(default_factory=list)
    filter: bytes | None = None
    key: bytes | None = None

    @property
    def writes(self) -> bool:
        return bool(self.info2 & INFO2_WRITE)


@dataclass(slots=True)
class Message:
    """A decoded message: header, fields by type, operations."""

    info1: int
    info2: int
    info3: int
    generation: int
    ttl: int
    fields: dict[int, bytes]
    operations: list[Operation]

    def request(self) -> Request:
        return Request(
            namespace=self.fields.get(FIELD_NAMESPACE, b"").decode(),
            set=self.fields.get(FIELD_SET, b"").decode(),
            digest=self.fields[FIELD_DIGEST],
            info1=self.info1,
            info2=self.info2,
            info3=self.info3,
            generation=self.generation,
            ttl=self.ttl,
            operations=self.operations,
            filter=self.fields.get(FIELD_FILTER),
            key=self.fields.get(FIELD_KEY),
        )


@dataclass(slots=True)
class Reply:
    """What became of one record's command."""

    code: int
    generation: int = 0
    void_time: int = 0
    bins: list[tuple[str, Particle | None]] = field(default_factory=list)


def frame(kind: int, body: bytes) -> bytes:
    return _FRAME.pack(PROTOCOL << 56 | kind << 48 | len(body)) + body


def frame_header(header: bytes) -> tuple[int, int]:
    """(kind, size of the body) from a frame's 8 bytes."""
    (word,) = _FRAME.unpack(header)
    if word >> 56 != PROTOCOL:
        raise ValueError(f"unknown protocol version {word >> 56}")
    return word >> 48 & 0xFF, word & (1 << 48) - 1


def parse_message(body: bytes) -> Message:
    (
        header_size, info1, info2, info3, _, _, generation, ttl, _, n_fields, n_operations,
    ) = _HEADER.unpack_from(body)  # fmt: skip
    at = header_size
    fields, at = _parse_fields(body, at, n_fields)
    operations, at = _parse_operations(body, at, n_operations)
    return Message(info1, info2, info3, generation, ttl, fields, operations)


def parse_batch(data: bytes) -> tuple[list[tuple[int, Request]], bool]:
    """(index, request) per row, and whether failed rows do not end the batch."""
    (count,) = struct.unpack_from(">I", data)
    flags = data[4]
    at = 5
    rows: list[tuple[int, Request]] = []
    previous: Request | None = None
    for _ in range(count):
        (index,) = struct.unpack_from(">I", data, at)
        digest = data[at + 4 : at + 24]
        kind = data[at + 24]
        at += 25
        if kind & _BATCH_REPEAT:
            assert previous is not None
            request = Request(
                previous.namespace, previous.set, digest, previous.info1, previous.info2,
                previous.info3, previous.generation, previous.ttl, previous.operations,
                previous.filter,
            )  # fmt: skip
        else:
            request, at = _parse_row(data, at, kind, digest)
            previous = request
        rows.append((index, request))
    return rows, bool(flags & _BATCH_RESPOND_ALL_KEYS)


def pack_reply(reply: Reply, *, index: int = 0, fields: dict[int, bytes] | None = None) -> bytes:
    """A record's answer, header and all; ``index`` is its place in a batch."""
    fields = fields or {}
    sizes = len(fields), len(reply.bins)
    head = (_HEADER.size, 0, 0, 0, 0, reply.code, reply.generation, reply.void_time, index)
    parts = [_HEADER.pack(*head, *sizes)]
    for field_kind, content in fields.items():
        parts += [struct.pack(">IB", len(content) + 1, field_kind), content]
    for name, value in reply.bins:
        kind, data = (value.kind, value.data) if value else (PARTICLE_NULL, b"")
        encoded = name.encode()
        size = 4 + len(encoded) + len(data)
        parts += [struct.pack(">IBBBB", size, OP_READ, kind, 0, len(encoded)), encoded, data]
    return b"".join(parts)


def pack_last(code: int = 0) -> bytes:
    """What ends a batch or a query."""
    return _HEADER.pack(_HEADER.size, 0, 0, INFO3_LAST, 0, code, 0, 0, 0, 0, 0)


def pack_partition_done(partition: int) -> bytes:
    return _HEADER.pack(_HEADER.size, 0, 0, INFO3_PARTITION_DONE, 0, 0, partition, 0, 0, 0, 0)


def parse_index_range(data: bytes) -> tuple[str, int, int]:
    """(bin, first, last) of a query's range over an integer index."""
    if data[0] != 1:
        raise ValueError(f"{data[0]} ranges in one query")
    size = data[1]
    name = data[2 : 2 + size].decode()
    at = 2 + size
    if data[at] != PARTICLE_INTEGER:
        raise ValueError(f"a range over particles of type {data[at]}")
    low, high = struct.unpack_from(">xxxxqxxxxq", data, at + 1)
    return name, low, high


def _parse_row(data: bytes, at: int, kind: int, digest: bytes) -> tuple[Request, int]:
    info2 = info3 = generation = ttl = 0
    info1 = data[at]
    at += 1
    if kind & _BATCH_INFO:
        info2, info3 = data[at], data[at + 1]
        at += 2
        if kind & _BATCH_INFO4:
            at += 1
        if kind & _BATCH_GENERATION:
            (generation,) = struct.unpack_from(">H", data, at)
            at += 2
        if kind & _BATCH_TTL:
            (ttl,) = struct.unpack_from(">I", data, at)
            at += 4
    n_fields, n_operations = struct.unpack_from(">HH", data, at)
    fields, at = _parse_fields(data, at + 4, n_fields)
    operations, at = _parse_operations(data, at, n_operations)
    request = Request(
        namespace=fields.get(FIELD_NAMESPACE, b"").decode(),
        set=fields.get(FIELD_SET, b"").decode(),
        digest=digest,
        info1=info1,
        info2=info2,
        info3=info3,
        generation=generation,
        ttl=ttl,
        operations=operations,
        filter=fields.get(FIELD_FILTER),
        key=fields.get(FIELD_KEY),
    )
    return request, at


def _parse_fields(data: bytes, at: int, count: int) -> tuple[dict[int, bytes], int]:
    fields: dict[int, bytes] = {}
    for _ in range(count):
        size, kind = struct.unpack_from(">IB", data, at)
        fields[kind] = data[at + 5 : at + 4 + size]
        at += 4 + size
    return fields, at


def _parse_operations(data: bytes, at: int, count: int) -> tuple[list[Operation], int]:
    operations: list[Operation] = []
    for _ in range(count):
        size, code, particle, _, name_size = struct.unpack_from(">IBBBB", data, at)
        name = data[at + 8 : at + 8 + name_size].decode()
        value = data[at + 8 + name_size : at + 4 + size]
        operations.append(Operation(code, name, Particle(particle, value)))
        at += 4 + size
    return operations, at
