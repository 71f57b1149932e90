"""The sequence record: a head that every append rewrites, and sealed segments that none does.

A head holds the counters, one mark per source, the keys of the newest events, and the unsealed
tail of the sequence. A full tail becomes a segment, so that an event costs at most about 1.5 KB of
writing however long the sequence is. Segment n holds the behaviors [64 n, 64 n + 64) of the user,
counted from the first event ever; a store keeps the newest of them in a ring.

Everything here is a pure function on bytes, shared by all stores.

Layout, little-endian::

    format u8 | marks u8 | event keys u8 | flags u8 | tail u16 | 2 unused bytes
    count u64 | epoch u64 | updated u64 | covered u64 | owner u64 | since u64
    marks      x (source key u64, offset i64)
    event keys x u64, oldest first
    tail       x BEHAVIOR, oldest first
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infra.behaviors import BEHAVIOR
from infra.errors import RecordTooLarge, StoreCorrupt
from infra.segments import SEGMENT, decode_segments, encode_segment
from infra.store import Append, Behaviors, StoredSequence, Version

RECENT_EVENTS: Final = 32
"""Event keys remembered per user to recognise an event that its producer sent twice. Producers
repeat within seconds; a user does not act 32 times in between."""

MAX_MARKS: Final = 255
"""Sources remembered per user: their number is one byte."""

_FORMAT: Final = 1
_HEADER: Final = struct.Struct("<BBBBHxxQQQQQQ")
_MARK: Final = struct.Struct("<Qq")
_KEY: Final = struct.Struct("<Q")
_HEADER_SIZE: Final = _HEADER.size
_BEHAVIOR_SIZE: Final = BEHAVIOR.itemsize
_SEALED_SIZE: Final = SEGMENT * _BEHAVIOR_SIZE
_OLDER_KEYS: Final = (RECENT_EVENTS - 1) * _KEY.size


@dataclass(slots=True)
class Head:
    """A user's head, decoded."""

    count: int
    """Behaviors ever applied."""
    epoch: int
    """When this head was created, ms since epoch."""
    updated: int
    """When something was last applied, ms since epoch."""
    covered: int
    """The count that the stored interest state covers; 0: there is none."""
    owner: int
    """Under which owner the user is due; meaningful where ``since`` is not 0."""
    since: int
    """Since when the user is due, ms since epoch; 0: they are not."""
    marks: dict[int, int]
    """Per source key: offset of the last event applied or recognised."""
    event_keys: tuple[int, ...]
    """Of the newest events that carry one, oldest first; at most `RECENT_EVENTS`."""
    tail: Behaviors
    """The newest behaviors, those not sealed yet, oldest first."""

    @property
    def version(self) -> Version:
        """The sequence's version."""
        return Version(self.epoch, self.count)

    def uncovered(self, interests: Version | None, length: int) -> int:
        """How many of the newest behaviors a profile shows beside an interest state of that
        version: all of the tail, and what is newer than the state, of at most ``length``.
        """
        covered = interests.count if interests and interests.epoch == self.epoch else 0
        return max(len(self.tail), min(self.count - covered, length))

    def segments(self, length: int) -> range:
        """Numbers of the segments that the newest ``length`` behaviors lie in, beside the tail."""
        sealed = self.count - len(self.tail)
        return range(max(0, self.count - length) // SEGMENT, sealed // SEGMENT)

    def newest(self, segments: Sequence[bytes], length: int, user: str) -> Behaviors:
        """The newest ``length`` behaviors (fewer where there are no more), oldest first, given the
        segments that `segments` numbers.

        Raises:
            StoreCorrupt: a segment is not what was written.
        """
        behaviors = self.tail
        if segments:
            behaviors = np.concatenate((decode_segments(segments, user), self.tail))
        return behaviors[max(0, len(behaviors) - length) :]


@dataclass(slots=True)
class Grown:
    """A head after an append, and what became of the behaviors (see `infra.store.Appended`)."""

    head: bytes | None
    """None: nothing changed."""
    applied: int
    replayed: int
    duplicates: int
    count: int
    """Behaviors ever applied."""
    was_due: tuple[int, int] | None
    """The owner and time under which the user was due before, if they were."""
    is_due: tuple[int, int] | None
    """The same of the user now."""


@dataclass(slots=True)
class Counters:
    """A head's counters, read without touching the rest; see `Head` for each."""

    count: int
    epoch: int
    updated: int
    covered: int
    owner: int
    since: int

    @property
    def waiting(self) -> int:
        """Behaviors in sealed segments that the stored interest state does not cover."""
        return max(0, sealed(self.count) - self.covered)


def grow(  # noqa: PLR0912  # the hottest loop of the worker; a call per branch would show
    head: bytes | None, source: int, owner: int, new: Append, now_ms: int
) -> Grown:
    """Apply ``new`` to a head; the tail is left unsealed.

    A user becomes due, under ``owner``, when that fills a segment, and at no other time: what is in
    the tail is read with the head anyway, and counts in a ranking behavior by behavior.

    Behaviors at or below the mark of ``source`` and event keys in the recent window are skipped, so
    that the sequence is the same however its events were cut into appends, and repeated.

    Raises:
        StoreCorrupt: the head cannot be understood.
        RecordTooLarge: the user was fed from more than 255 sources.
    """
    if head is None:
        marks = keys = tail = b""
        count = covered = since = old_owner = 0
        epoch = now_ms
        mark = -1
        at = -1
    else:
        n_marks, n_keys, _, count, epoch, _, covered, old_owner, since = _read_header(
            head, new.user
        )
        marks_end = _HEADER_SIZE + n_marks * 16
        keys_end = marks_end + n_keys * 8
        marks = head[_HEADER_SIZE:marks_end]
        keys = head[marks_end:keys_end]
        tail = head[keys_end:]
        at = _find(marks, source, 16)
        mark = _MARK.unpack_from(marks, at)[1] if at >= 0 else -1

    applied: list[bytes] = []
    replayed = duplicates = 0
    for behavior, event, offset in zip(new.behaviors, new.event_keys, new.offsets, strict=True):
        if offset <= mark:
            replayed += 1
            continue
        mark = offset
        if event:
            if _find(keys, event, 8) >= 0:
                duplicates += 1
                continue
            keys = keys[-_OLDER_KEYS:] + _KEY.pack(event)
        applied.append(behavior)
    was_due = (old_owner, since) if since else None
    if not applied and not duplicates:
        return Grown(None, 0, replayed, 0, count, was_due, was_due)

    if at >= 0:
        marks = marks[:at] + _MARK.pack(source, mark) + marks[at + 16 :]
    elif len(marks) < MAX_MARKS * 16:
        marks += _MARK.pack(source, mark)
    else:
        raise RecordTooLarge(
            f"user {new.user!r} has events from {MAX_MARKS} sources, no more can be remembered:"
            " merge the files before backfilling them"
        )
    if applied:
        tail += b"".join(applied)
        if not since and sealed(count + len(applied)) > sealed(count):
            since = now_ms
        count += len(applied)
    else:
        owner = old_owner
    grown = (
        _HEADER.pack(
            _FORMAT,
            len(marks) // 16,
            len(keys) // 8,
            0,
            len(tail) // _BEHAVIOR_SIZE,
            count,
            epoch,
            now_ms,
            covered,
            owner,
            since,
        )
        + marks
        + keys
        + tail
    )
    is_due = (owner, since) if since else None
    return Grown(grown, len(applied), replayed, duplicates, count, was_due, is_due)


def sealed(count: int) -> int:
    """How many of ``count`` behaviors lie in full segments."""
    return count // SEGMENT * SEGMENT


def sealed_part(sequence: StoredSequence) -> StoredSequence:
    """A sequence without what no full segment holds yet: what an interest state covers."""
    count = sealed(sequence.version.count)
    kept = len(sequence.behaviors) - (sequence.version.count - count)
    return StoredSequence(
        Version(sequence.version.epoch, count), sequence.behaviors[: max(0, kept)], sequence.marks
    )


def holds_segment(head: bytes) -> bool:
    """Whether the tail of a head that was read fills a segment, so that it is to be sealed."""
    return tail_length(head) >= SEGMENT


def tail_length(head: bytes) -> int:
    """Behaviors in the unsealed tail of a head that was read."""
    return int.from_bytes(head[4:6], "little")


def seal(head: bytes) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Move every full segment out of the tail of a head that was read: the trimmed head, and
    (number, bytes) per segment.
    """
    _, n_marks, n_keys, _, n_tail, count, epoch, updated, covered, owner, since = (
        _HEADER.unpack_from(head)
    )
    full = n_tail // SEGMENT
    if not full:
        return head, []
    start = len(head) - n_tail * _BEHAVIOR_SIZE
    first = (count - n_tail) // SEGMENT
    segments = [
        (first + i, encode_segment(head[start + i * _SEALED_SIZE : start + (i + 1) * _SEALED_SIZE]))
        for i in range(full)
    ]
    header = _HEADER.pack(
        _FORMAT,
        n_marks,
        n_keys,
        0,
        n_tail - full * SEGMENT,
        count,
        epoch,
        updated,
        covered,
        owner,
        since,
    )
    return header + head[_HEADER_SIZE:start] + head[start + full * _SEALED_SIZE :], segments


def read_counters(head: bytes, user: str) -> Counters:
    """A head's counters; ``user`` only names it in errors.

    Raises:
        StoreCorrupt: the head cannot be understood.
    """
    return Counters(*_read_header(head, user)[3:])


def expired(head: bytes, user: str, ttl_ms: int, now_ms: int) -> bool:
    """Whether the last event of the head's user is longer ago than ``ttl_ms``; 0: no such limit.

    Raises:
        StoreCorrupt: the head cannot be understood.
    """
    return ttl_ms > 0 and read_counters(head, user).updated + ttl_ms < now_ms


def cover(head: bytes, counters: Counters, covered: int, now_ms: int) -> bytes:
    """The head, whose counters are given, after interests that cover ``covered`` behaviors were
    stored: of a user who is not due, or due since now where a segment was sealed after those.
    """
    if counters.since and sealed(counters.count) > covered:
        return _replace(head, covered, counters.owner, now_ms)
    return _replace(head, covered, 0, 0)


def set_due(head: bytes, counters: Counters, owner: int, now_ms: int) -> bytes | None:
    """The head, whose counters are given, of a user who is due under ``owner``, since now if they
    were not; None where there is no full segment to make interests of.
    """
    if counters.count < SEGMENT:
        return None
    return _replace(head, counters.covered, owner, counters.since or now_ms)


def decode_head(head: bytes, user: str) -> Head:
    """A head in full; ``user`` only names it in errors.

    Raises:
        StoreCorrupt: the head cannot be understood.
    """
    n_marks, n_keys, n_tail, count, epoch, updated, covered, owner, since = _read_header(head, user)
    marks_end = _HEADER_SIZE + n_marks * 16
    keys_end = marks_end + n_keys * 8
    return Head(
        count=count,
        epoch=epoch,
        updated=updated,
        covered=covered,
        owner=owner,
        since=since,
        marks=dict(_MARK.iter_unpack(head[_HEADER_SIZE:marks_end])),
        event_keys=struct.unpack_from(f"<{n_keys}Q", head, marks_end),
        tail=np.frombuffer(head, BEHAVIOR, n_tail, keys_end),
    )


def ring_size(length: int) -> int:
    """Segments kept so that the newest ``length`` behaviors are whole: those they lie in, and one
    more, so that who has read a head still finds its segments when the next one is sealed.
    """
    return -(-length // SEGMENT) + 1


def _read_header(head: bytes, user: str) -> tuple[int, int, int, int, int, int, int, int, int]:
    """Marks, event keys and behaviors in the tail of a whole head, then its counters."""
    if len(head) < _HEADER_SIZE:
        raise StoreCorrupt(_corrupt(user, f"it has {len(head)} bytes"))
    form, n_marks, n_keys, _, n_tail, count, epoch, updated, covered, owner, since = (
        _HEADER.unpack_from(head)
    )
    if form != _FORMAT:
        raise StoreCorrupt(
            _corrupt(user, f"it has format {form}, this version reads format {_FORMAT}")
        )
    if len(head) != _HEADER_SIZE + n_marks * 16 + n_keys * 8 + n_tail * _BEHAVIOR_SIZE:
        raise StoreCorrupt(_corrupt(user, "its length does not fit its header"))
    return n_marks, n_keys, n_tail, count, epoch, updated, covered, owner, since


def _replace(head: bytes, covered: int, owner: int, since: int) -> bytes:
    fields = list(_HEADER.unpack_from(head))
    fields[8:11] = covered, owner, since
    return _HEADER.pack(*fields) + head[_HEADER_SIZE:]


def _find(packed: bytes, key: int, stride: int) -> int:
    """Position of a u64 key in packed entries of ``stride`` bytes that begin with it, or -1.

    bytes.find is 5x faster than unpacking; a hit across two entries is not one.
    """
    needle = _KEY.pack(key)
    at = packed.find(needle)
    while at >= 0 and at % stride:
        at = packed.find(needle, at + 1)
    return at


def _corrupt(user: str, why: str) -> str:
    return (
        f"the sequence record of user {user!r} cannot be read: {why};"
        " remove the user's record or restore the store"
    )
