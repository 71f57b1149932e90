"""The records of one namespace, with the server's rules for what a command does to them.

Rules are those of server 8.1.2 (``transaction/write.c``, ``rw_utils.c``, ``read.c``): which result
code comes first, what a TTL means, what a record may weigh.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from . import filters
from .wire import (
    INFO1_GET_ALL,
    INFO1_NO_BINS,
    INFO2_CREATE_ONLY,
    INFO2_DELETE,
    INFO2_GENERATION,
    INFO2_GENERATION_GT,
    INFO2_RESPOND_ALL_OPS,
    INFO3_CREATE_OR_REPLACE,
    INFO3_REPLACE_ONLY,
    INFO3_UPDATE_ONLY,
    OP_DELETE_ALL,
    OP_READ,
    OP_TOUCH,
    OP_WRITE,
    PARTICLE_INTEGER,
    PARTICLE_NULL,
    Particle,
    Reply,
    Request,
)

OK: Final = 0
NOT_FOUND: Final = 2
GENERATION: Final = 3
PARAMETER: Final = 4
RECORD_EXISTS: Final = 5
OUT_OF_SPACE: Final = 8
TIMEOUT: Final = 9
RECORD_TOO_BIG: Final = 13
DEVICE_OVERLOAD: Final = 18
NO_NAMESPACE: Final = 20
BIN_NAME: Final = 21
FORBIDDEN: Final = 22
FILTERED_OUT: Final = 27
INDEX_FOUND: Final = 200
INDEX_NOT_FOUND: Final = 201
INDEX_NOT_READABLE: Final = 203

PARTITIONS: Final = 4096
MAX_RECORD: Final = 1 << 20
MAX_BIN_NAME: Final = 15
MAX_GENERATION: Final = 65535
MAX_TTL_S: Final = 10 * 365 * 24 * 3600

TTL_DEFAULT: Final = 0
TTL_NEVER: Final = 0xFFFFFFFF
TTL_KEEP: Final = 0xFFFFFFFE

EPOCH: Final = 1_262_304_000
"""Void times count seconds from 2010-01-01 UTC."""


@dataclass(slots=True)
class Record:
    set: str
    bins: dict[str, Particle] = field(default_factory=dict)
    generation: int = 0
    void_time: int = 0
    """When it expires, seconds since `EPOCH`; 0: never."""


class Namespace:
    """Records by digest. Not safe for threads: the server holds its lock around each call."""

    def __init__(self, name: str, *, default_ttl: int = 0, nsup_period: int = 120) -> None:
        self.name = name
        self.default_ttl = default_ttl
        self.nsup_period = nsup_period
        """0: records never expire, so a write with a TTL is forbidden."""
        self.records: dict[bytes, Record] = {}
        self.indexes: dict[str, tuple[str, str]] = {}
        """Index name to (set, bin)."""
        self.building: set[str] = set()
        """Names of indexes that are not readable yet."""
        self.max_record = MAX_RECORD
        """Bytes that a record may have."""
        self._flushed: dict[bytes, Record] = {}
        self.advanced_s = 0.0
        """How far the clock was put forward."""

    def execute(self, request: Request) -> Reply:
        if request.info2 & INFO2_DELETE:
            return self._delete(request)
        if request.writes:
            return self._write(request)
        return self._read(request)

    def live(self, digest: bytes) -> Record | None:
        record = self.records.get(digest)
        if record is not None and record.void_time and record.void_time <= self._clock():
            return None
        return record

    def scan(self, set_name: str) -> Iterator[tuple[int, bytes, Record]]:
        """(partition, digest, record) of a set's live records, in order of digest."""
        for digest in sorted(self.records):
            record = self.live(digest)
            if record is not None and (not set_name or record.set == set_name):
                yield partition_of(digest), digest, record

    def select(
        self, set_name: str, bin_name: str, low: int, high: int
    ) -> dict[int, list[tuple[bytes, Record]]]:
        """Live records whose integer bin lies in a range, by partition, in order of the value."""
        found: dict[int, list[tuple[int, bytes, Record]]] = {}
        for digest in self.records:
            record = self.live(digest)
            if record is None or record.set != set_name:
                continue
            value = record.bins.get(bin_name)
            if value is None or value.kind != PARTICLE_INTEGER:
                continue
            if low <= value.integer <= high:
                partition = partition_of(digest)
                found.setdefault(partition, []).append((value.integer, digest, record))
        return {
            partition: [(digest, record) for _, digest, record in sorted(rows, key=_by_value)]
            for partition, rows in found.items()
        }

    def flush(self) -> None:
        """Write all records to disk."""
        self._flushed = dict(self.records)

    def lose(self, set_name: str) -> None:
        """Put a set's records back to what they were at the last flush."""
        kept = {digest: record for digest, record in self.records.items() if record.set != set_name}
        old = {digest: record for digest, record in self._flushed.items() if record.set == set_name}
        self.records = kept | old

    def _clock(self) -> float:
        return time.time() - EPOCH + self.advanced_s

    def _read(self, request: Request) -> Reply:
        record = self.live(request.digest)
        if record is None:
            return Reply(NOT_FOUND)
        if not _passes(request, record):
            return Reply(FILTERED_OUT)
        reply = Reply(OK, record.generation, record.void_time)
        if request.info1 & INFO1_GET_ALL:
            reply.bins = list(record.bins.items())
        elif not request.info1 & INFO1_NO_BINS:
            for operation in request.operations:
                value = record.bins.get(operation.bin)
                if value is not None:
                    reply.bins.append((operation.bin, value))
        return reply

    def _delete(self, request: Request) -> Reply:
        record = self.live(request.digest)
        if record is None:
            return Reply(NOT_FOUND)
        if not _generation_fits(request, record):
            return Reply(GENERATION)
        if not _passes(request, record):
            return Reply(FILTERED_OUT)
        del self.records[request.digest]
        return Reply(OK)

    def _write(self, request: Request) -> Reply:
        if not request.operations:
            return Reply(PARAMETER)
        if any(len(operation.bin) > MAX_BIN_NAME for operation in request.operations):
            return Reply(BIN_NAME)
        if request.ttl < TTL_KEEP and request.ttl > MAX_TTL_S:
            return Reply(PARAMETER)
        if request.ttl not in (TTL_DEFAULT, TTL_NEVER, TTL_KEEP) and not self.nsup_period:
            return Reply(FORBIDDEN)
        old = self.live(request.digest)
        touches = any(operation.code == OP_TOUCH for operation in request.operations)
        must_exist = request.info3 & (INFO3_UPDATE_ONLY | INFO3_REPLACE_ONLY) or touches
        if old is None and must_exist:
            return Reply(NOT_FOUND)
        if old is not None and request.info2 & INFO2_CREATE_ONLY:
            return Reply(RECORD_EXISTS)
        if not _generation_fits(request, old or Record(request.set)):
            return Reply(GENERATION)
        # A filter is not asked where the write creates the record.
        if old is not None and not _passes(request, old):
            return Reply(FILTERED_OUT)
        return self._apply(request, old)

    def _apply(self, request: Request, old: Record | None) -> Reply:
        replaces = request.info3 & (INFO3_CREATE_OR_REPLACE | INFO3_REPLACE_ONLY)
        bins = {} if old is None or replaces else dict(old.bins)
        answers: list[tuple[str, Particle | None]] = []
        for operation in request.operations:
            answer: Particle | None = None
            if operation.code == OP_WRITE:
                if operation.value.kind == PARTICLE_NULL:
                    bins.pop(operation.bin, None)
                else:
                    bins[operation.bin] = operation.value
            elif operation.code == OP_READ:
                answer = bins.get(operation.bin)
            elif operation.code == OP_DELETE_ALL:
                bins.clear()
            elif operation.code != OP_TOUCH:
                return Reply(PARAMETER)
            if operation.code == OP_READ or request.info2 & INFO2_RESPOND_ALL_OPS:
                answers.append((operation.bin, answer))
        if _weight(bins) > self.max_record:
            return Reply(RECORD_TOO_BIG)
        if not bins:
            self.records.pop(request.digest, None)
            return Reply(OK if old is not None else NOT_FOUND)
        generation = old.generation if old is not None else 0
        record = Record(
            set=request.set,
            bins=bins,
            generation=generation % MAX_GENERATION + 1,
            void_time=self._void_time(request.ttl, old),
        )
        self.records[request.digest] = record
        return Reply(OK, record.generation, record.void_time, answers)

    def _void_time(self, ttl: int, old: Record | None) -> int:
        if ttl == TTL_KEEP and old is not None:
            return old.void_time
        if ttl in (TTL_DEFAULT, TTL_KEEP):
            ttl = self.default_ttl
        if ttl in (0, TTL_NEVER):
            return 0
        return int(self._clock()) + ttl


def partition_of(digest: bytes) -> int:
    return int.from_bytes(digest[:2], "little") & PARTITIONS - 1


def _generation_fits(request: Request, record: Record) -> bool:
    if request.info2 & INFO2_GENERATION:
        return request.generation == record.generation
    if request.info2 & INFO2_GENERATION_GT:
        return request.generation > record.generation
    return True


def _passes(request: Request, record: Record) -> bool:
    return request.filter is None or filters.matches(request.filter, record.bins)


def _weight(bins: dict[str, Particle]) -> int:
    return sum(len(name) + len(value.data) + 8 for name, value in bins.items())


def _by_value(row: tuple[int, bytes, Record]) -> tuple[int, bytes]:
    return row[:2]
