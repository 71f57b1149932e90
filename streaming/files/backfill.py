"""A file of behavior events straight into the store, without Kafka.

It is for history: what happened before the topic existed, or more than it keeps. The file is a
source of its own, its content's identity is the key and a row's number the offset; so a backfill
that is repeated or resumed applies each row once. Users are due under the partition of the
topic that their events have, so that the workers recluster them.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.behaviors import BEHAVIOR, Source, category_key, event_key, item_key, partition_owner
from infra.errors import StoreUnavailable
from infra.settings import EventSettings
from infra.store import Append, Appended, Group, Store, wall_clock_ms
from infra.telemetry import get_logger
from streaming.files.batches import Column, EventBatch, pc
from streaming.files.reader import EventFile, OnBad
from streaming.interruptions import Interruptions, Trail

CHUNK_ROWS: Final = 131_072
"""Rows applied together. Of a user with many events in a chunk the head is written once, so larger
is faster; this one takes some 60 MB."""

CHUNK_TEXT: Final = 8 << 20
"""Bytes of text applied together, about as many rows."""

PATIENCE_S: Final = 60.0
"""How long a store that cannot be reached is waited for before the backfill gives up. It can be
resumed then."""

RETRY_S: Final = 0.1
RETRY_MAX_S: Final = 5.0

T = TypeVar("T")
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """Where a backfill stands. The counts are of this run alone."""

    applied: int
    """Behaviors that entered sequences."""
    replayed: int
    """Behaviors that an earlier run had applied."""
    duplicates: int
    """Behaviors whose event id was met just before."""
    deleted: int
    """Behaviors that happened before their user was deleted."""
    skipped: int
    """Rows that are no events."""
    next_row: int
    """Where a resumed run goes on."""
    fraction: float
    """How much of the file is done, 0 to 1."""
    finished: bool
    """Whether the whole file is done; False also at the end of a run that was stopped."""

    @property
    def events(self) -> int:
        """Events read."""
        return self.applied + self.replayed + self.duplicates + self.deleted


def backfill(
    path: Path | str,
    store: Store,
    topic: str,
    partitions: int,
    mapping: EventSettings | None = None,
    *,
    digest: bytes | None = None,
    on_bad: OnBad = "stop",
    resume: bool = True,
    on_progress: Callable[[BackfillProgress], None] | None = None,
    stop: threading.Event | None = None,
    clock: Callable[[], int] = wall_clock_ms,
    chunk_rows: int = CHUNK_ROWS,
    interruptions: Interruptions | None = None,
) -> BackfillProgress:
    """Apply the events of a file to the users' sequences, in the file's order.

    Args:
        path: the file (see `streaming.files.reader.EventFile`).
        store: where to.
        topic: the topic whose workers are to recluster the users.
        partitions: how many partitions it has.
        mapping: which column holds which of our fields.
        digest: of the bundle that the users are to be due for; None: for no other than they were.
        on_bad: whether a row that is no event stops the backfill or is skipped and counted.
        resume: go on where an earlier run of the same file ended. False reads it all again, and
            rows applied before are recognised one by one.
        on_progress: called after each chunk.
        stop: when set, the run ends after the chunk in hand.
        clock: the time in ms since epoch.
        chunk_rows: rows applied together.
        interruptions: outages of the store, after which rows are applied again, before later ones.

    Raises:
        SourceError: the file cannot be read, or a row is no event.
        StoreError: the store failed; what was applied stays, and a repeated call goes on there.
    """
    file = EventFile(
        path, mapping, on_bad=on_bad, batch_rows=chunk_rows, text_block=CHUNK_TEXT, now_ms=clock()
    )
    stop = stop or threading.Event()
    owners = [partition_owner(topic, number) for number in range(partitions)]
    bookmark = f"backfill/{file.identity:016x}"
    kept = store.get_bookmark(bookmark) if resume else None
    next_row = int(kept) if kept else 0
    total = Appended()
    progress = BackfillProgress(0, 0, 0, 0, 0, next_row, 0.0, finished=False)
    outages, trail = interruptions or Interruptions(), Trail()
    trail.passed(clock(), next_row)
    batches = file.batches(next_row)
    while True:
        if (since_ms := outages.take()) is not None:
            next_row = trail.at(since_ms) or 0
            log.warning("store was away, what it may have lost is applied again", row=next_row)
            batches = file.batches(next_row)
        if stop.is_set():
            return progress
        batch = next(batches, None)
        if batch is None:
            break
        groups = [
            Group(Source(file.identity, owners[partition]), appends)
            for partition, appends in group_appends(batch, partitions)
        ]
        append = functools.partial(store.append, groups, clock(), digest=digest)
        appended = _patiently(stop, append, outages)
        if appended is None:
            continue
        total += appended
        trail.passed(clock(), next_row)
        next_row = batch.next_row
        _patiently(stop, functools.partial(store.put_bookmark, bookmark, b"%d" % next_row), outages)
        progress = BackfillProgress(
            **asdict(total),
            skipped=file.skipped.total(),
            next_row=next_row,
            fraction=batch.fraction,
            finished=False,
        )
        if on_progress is not None:
            on_progress(progress)
    return replace(progress, skipped=file.skipped.total(), fraction=1.0, finished=True)


def group_appends(batch: EventBatch, partitions: int) -> Iterator[tuple[int, list[Append]]]:
    """A batch's events by partition and user: for each partition that has any, its appends.

    Within a partition users ascend by their UTF-8 bytes, the order of LMDB's keys; within a user
    events keep the file's order.
    """
    if not len(batch):
        return
    encoded = batch.users.dictionary_encode()
    names = encoded.dictionary
    partition = partition_numbers(names, partitions)
    by_name = np.empty(len(names), np.int64)
    by_name[pc.sort_indices(names).to_numpy()] = np.arange(len(names))
    users = np.lexsort((by_name, partition))  # distinct users in the order they are applied in
    place = np.empty(len(names), np.int32)
    place[users] = np.arange(len(names))
    places = place[encoded.indices.to_numpy()]  # per event
    order = np.argsort(places, kind="stable")

    behaviors = pack(batch)[order].view(f"V{BEHAVIOR.itemsize}").tolist()
    offsets = batch.rows[order].tolist()
    keys = _event_keys(batch, order)
    ends = np.cumsum(np.bincount(places, minlength=len(users))).tolist()
    appends = [
        Append(user, behaviors[start:end], keys[start:end], offsets[start:end])
        for user, start, end in zip(
            names.take(pa.array(users)).to_pylist(), [0, *ends], ends, strict=False
        )
    ]
    bounds = np.searchsorted(partition[users], np.arange(partitions + 1)).tolist()
    for number, (start, end) in enumerate(pairwise(bounds)):
        if end > start:
            yield number, appends[start:end]


def pack(batch: EventBatch) -> npt.NDArray[np.void]:
    """The batch's events as BEHAVIOR[n]. Each distinct item and category is hashed once."""
    packed = np.zeros(len(batch), BEHAVIOR)
    packed["item"] = _hashed(batch.items, item_key, np.uint64)
    packed["time"] = batch.times
    packed["action"] = batch.actions
    if batch.categories is not None:
        packed["category"] = _hashed(batch.categories, category_key, np.uint32)
    if batch.dwells is not None:
        packed["dwell"] = batch.dwells
    return packed


def partition_numbers(keys: Column, partitions: int) -> npt.NDArray[np.int32]:
    """i32[n]: the partition into which Kafka's default partitioner puts each key (string[n])."""
    return ((murmur2(keys) & 0x7FFFFFFF) % partitions).astype(np.int32)


def murmur2(keys: Column) -> npt.NDArray[np.uint32]:
    """u32[n]: Kafka's 32-bit murmur2 of each key (string[n], no nulls) in UTF-8.

    Same as ``org.apache.kafka.common.utils.Utils.murmur2``, four bytes of all keys at a time.

    >>> murmur2(pa.array(["21", "foobar"])).view(np.int32).tolist()
    [-973932308, -790332482]
    """
    keys = keys.cast(pa.binary())
    _, offsets_buffer, data_buffer = keys.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[keys.offset : keys.offset + len(keys) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8)
    starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets)
    m = np.uint32(0x5BD1E995)
    hashes = np.uint32(0x9747B28C) ^ lengths.astype(np.uint32)

    def gather(at: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        return data[at].astype(np.uint32)

    for word in range(int(lengths.max(initial=0)) // 4):
        some = np.flatnonzero(lengths >= 4 * word + 4)
        at = starts[some] + 4 * word
        k = gather(at) | gather(at + 1) << 8 | gather(at + 2) << 16 | gather(at + 3) << 24
        k *= m
        k ^= k >> 24
        k *= m
        hashes[some] = hashes[some] * m ^ k
    rest = lengths % 4
    ends = starts + lengths - rest
    for byte in (2, 1, 0):
        some = np.flatnonzero(rest > byte)
        hashes[some] ^= gather(ends[some] + byte) << (8 * byte)
    some = np.flatnonzero(rest)
    hashes[some] *= m
    hashes ^= hashes >> 13
    hashes *= m
    hashes ^= hashes >> 15
    return hashes


def _hashed(column: Column, key: Callable[[Any], int], kind: Any) -> npt.NDArray[Any]:
    encoded = pc.fill_null(column, "").dictionary_encode()
    keys = np.array([key(text) for text in encoded.dictionary.to_pylist()], kind)
    hashed: npt.NDArray[Any] = keys[encoded.indices.to_numpy()]
    return hashed


def _event_keys(batch: EventBatch, order: npt.NDArray[np.intp]) -> list[int]:
    if batch.event_ids is None:
        return [0] * len(batch)
    ids = batch.event_ids.take(pa.array(order)).to_pylist()
    return [event_key(text) for text in ids]


def _patiently(
    stop: threading.Event, operation: Callable[[], T], outages: Interruptions
) -> T | None:
    """Do a store operation, again and again while the store cannot be reached; None: earlier ones
    must be done again before it.
    """
    deadline = time.monotonic() + PATIENCE_S
    pause = RETRY_S
    while True:
        if outages.pending:
            return None
        try:
            return operation()
        except StoreUnavailable as error:
            if time.monotonic() >= deadline or stop.wait(pause):
                raise
            if pause == RETRY_S:
                log.warning("backfill waits for the store", error=str(error))
            pause = min(RETRY_MAX_S, pause * 2)
