"""The sequence record: a head that every append rewrites, and sealed segments that none does.

A head holds the counters, one mark per source, the keys of the newest events, how far the interest
states of bundles cover the sequence, and its unsealed tail. A full tail becomes a segment, so that
an event costs at most about 1.5 KB of writing however long the sequence is. Segment n holds the
behaviors [64 n, 64 n + 64) of the user, counted from the first event ever; a store keeps the newest
of them in a ring.

Everything here is a pure function on bytes, shared by all stores.

Layout, format 2, little-endian::

    format u8 | marks u8 | event keys u8 | coverages u8 | tail u16 | 2 unused bytes
    count u64 | epoch u64 | updated u64 | owner u64 | deleted u64
    coverages  x (bundle u64, covered u64, since u64), the one longest not written first
    marks      x (source key u64, offset i64)
    event keys x u64, oldest first
    tail       x BEHAVIOR, oldest first
    checksum u64 (xxh3 of all before it; so it is in every later format)

Two marks are no sources' but tell of a history that was merged: under `CUT` the time before which
nothing is applied any more, under `JOB` whose history it is. Versions that know neither leave them
alone, as marks of sources that are silent.

Format 1 had no coverages and no checksum; its heads are read, as of users of whom no state is
known, and written anew with the next change.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import xxhash

from infra.behaviors import BEHAVIOR
from infra.errors import RecordDamaged, RecordNewer, RecordTooLarge
from infra.segments import SEGMENT, Decoded, decode_segments, encode_segment, encode_segments
from infra.store import (
    STATES,
    Append,
    Appended,
    Appends,
    Behaviors,
    Claim,
    DueUser,
    Group,
    Held,
    History,
    Merged,
    StoredSequence,
    Version,
)

RECENT_EVENTS: Final = 32
"""Event keys remembered per user to recognise an event that its producer sent twice. Producers
repeat within seconds; a user does not act 32 times in between."""

MAX_TAIL: Final = (1 << 16) - 1
"""Behaviors in a tail, sealed or not: their number is two bytes."""

MAX_MARKS: Final = 255
"""Sources remembered per user: their number is one byte."""

CUT: Final = 0x7A41_C0DE_0000_0C07
"""Key of the mark that tells before which time (ms since epoch) all is as a merged history has it.
"""

JOB: Final = 0x7A41_C0DE_0000_0B0B
"""Key of the mark that tells whose history was merged last: `Claim.job`."""

MOST_AT_ONCE: Final = 1 << 15
"""Events of one user that are applied at once: with the tail before them they must fit the tail's
length, which has two bytes, until they are sealed. A bot has as many in a backlog."""

_FORMAT: Final = 2
_HEADER: Final = struct.Struct("<BBBBHxxQQQQQ")
_HEADER_1: Final = struct.Struct("<BBBBHxxQQQQQQ")
_NUMBERS: Final = struct.Struct("<QQQQQ")
_COVERAGE: Final = struct.Struct("<QQQ")
_MARK: Final = struct.Struct("<Qq")
_JOB_MARK: Final = struct.Struct("<QQ")
_KEY: Final = struct.Struct("<Q")
_UPDATED: Final = struct.Struct("<Q")
_UPDATED_AT: Final = 24
_CHECKSUM: Final = struct.Struct("<Q")
_NO_COUNT: Final = bytes(8)
_FORMAT_BYTE: Final = bytes([_FORMAT])
_TIME: Final = struct.Struct("<8xq")
_FIRST_MS: Final = -(1 << 63)
"""The time before which nothing happened."""
_BEHAVIOR_SIZE: Final = BEHAVIOR.itemsize
_SEALED_SIZE: Final = SEGMENT * _BEHAVIOR_SIZE
_OLDER_KEYS: Final = (RECENT_EVENTS - 1) * _KEY.size


_Numbers = tuple[int, int, int, int, int]
"""count, epoch, updated, owner, deleted."""


class DueKey(NamedTuple):
    """Under what a user is listed as due."""

    bundle: int
    owner: int
    since: int


class Coverage(NamedTuple):
    """How far one bundle's interest state covers a sequence."""

    bundle: int
    """`bundle_key` of its digest."""
    covered: int
    """The count that the stored state covers; 0: there is none."""
    since: int
    """Since when the user is due for the bundle, ms since epoch; 0: they are not."""


@dataclass(slots=True)
class Counters:
    """A head's numbers, without its marks, event keys and tail."""

    count: int
    """Behaviors ever applied; 0: the user was deleted, and this is what remembers it."""
    epoch: int
    """When this head was created, ms since epoch."""
    updated: int
    """When something was last applied, ms since epoch."""
    owner: int
    """Under which owner the user is due, where they are."""
    deleted: int
    """When the user was last deleted, ms since epoch; 0: never. What happened up to then stays
    out."""
    coverages: list[Coverage]
    """One per bundle of which a state is kept or wanted, the one longest not written first."""

    @property
    def version(self) -> Version:
        """The sequence's version."""
        return Version(self.epoch, self.count)

    @property
    def due(self) -> set[DueKey]:
        """Where the user is listed as due."""
        return {DueKey(c.bundle, self.owner, c.since) for c in self.coverages if c.since}

    def coverage(self, bundle: int) -> Coverage:
        """A bundle's coverage; of nothing where it has none."""
        for coverage in self.coverages:
            if coverage.bundle == bundle:
                return coverage
        return Coverage(bundle, 0, 0)

    def is_due(self, bundle: int, owner: int, since: int) -> bool:
        """Whether the user is listed as due there: `due`, of one place."""
        return owner == self.owner and since == self.coverage(bundle).since

    def lacks(self, bundle: int) -> bool:
        """Whether sealed segments are not covered by the bundle's state, and nobody is told yet."""
        _, covered, since = self.coverage(bundle)
        return not since and sealed(self.count) > covered

    def found(self, bundle: int, covered: int) -> None:
        """Take note that the bundle's state, as it is there, covers no more than so many behaviors,
        whatever the head tells: stores lose what they have acknowledged.
        """
        self.coverages = [
            c._replace(covered=min(c.covered, covered)) if c.bundle == bundle else c
            for c in self.coverages
        ]

    def due_user(self, user: str, bundle: int) -> DueUser:
        """The user as due for a bundle."""
        _, covered, since = self.coverage(bundle)
        return DueUser(user, since, max(0, sealed(self.count) - covered))


class Newest(NamedTuple):
    """The newest behaviors of a user, as far as their records are whole."""

    behaviors: Behaviors
    lost: int
    """Behaviors missing among them."""
    damaged: dict[int, str]
    """Numbers of segments that were found damaged, and what is wrong."""


@dataclass(slots=True)
class Head(Counters):
    """A user's head, decoded."""

    marks: dict[int, int]
    """Per source key: offset of the last event applied or recognised."""
    claim: Claim | None
    """Of the job whose history was merged last, with the latest cut of any; None: none was."""
    event_keys: tuple[int, ...]
    """Of the newest events that carry one, oldest first; at most `RECENT_EVENTS`."""
    tail: Behaviors
    """The newest behaviors, those not sealed yet, oldest first."""

    def uncovered(self, interests: Version | None, length: int) -> int:
        """How many of the newest behaviors a profile shows beside an interest state of that
        version: what fills no segment, and what is newer than the state, of at most ``length``.
        """
        covered = interests.count if interests and interests.epoch == self.epoch else 0
        return max(self.count % SEGMENT, min(self.count - covered, length))

    @property
    def has_segments(self) -> bool:
        """Whether behaviors lie in segments, and not in the tail."""
        return self.count > len(self.tail)

    def segments(self, length: int) -> range:
        """Numbers of the segments that the newest ``length`` behaviors lie in, beside the tail."""
        full = self.count - len(self.tail)
        return range(max(0, self.count - length) // SEGMENT, full // SEGMENT)

    def sealed_segments(self, length: int) -> range:
        """Those numbers, and the numbers of the full segments in the tail."""
        return range(max(0, self.count - length) // SEGMENT, self.count // SEGMENT)

    def newest(self, segments: Sequence[bytes | None], length: int) -> Newest:
        """The newest ``length`` behaviors (fewer where there are no more), oldest first.

        Args:
            segments: those that `segments` numbers; None: missing.
            length: how many.
        """
        return self.joined(decode_segments(segments), length)

    def joined(self, decoded: Decoded, length: int) -> Newest:
        """`newest`, of segments that were decoded."""
        if not len(decoded.behaviors) and not decoded.lost:
            return Newest(self.tail[max(0, len(self.tail) - length) :], 0, {})
        first = self.segments(length).start
        # Behaviors of the first segment that are older than the newest ``length``.
        older = max(0, self.count - length - first * SEGMENT)
        lost = len(decoded.lost) * SEGMENT
        if 0 in decoded.lost:
            lost, older = lost - older, 0
        # By bytes: numpy would compare the types of arrays of records field by field.
        joined = decoded.behaviors[older:].tobytes() + self.tail.tobytes()
        behaviors = np.frombuffer(joined, BEHAVIOR)
        damaged = {first + place: what for place, what in decoded.damaged.items()}
        return Newest(behaviors, lost, damaged)


@dataclass(slots=True)
class Changed:
    """A head that was rewritten."""

    head: bytes | None
    """None: nothing changed."""
    undue: set[DueKey]
    """Where the user is not listed as due any more."""
    due: set[DueKey]
    """Where they are now."""
    dropped: list[int]
    """Bundles whose states are to be removed."""


@dataclass(slots=True)
class Grown:
    """A head after an append, and what became of the behaviors (see `infra.store.Appended`)."""

    head: bytes | None
    """None: nothing changed."""
    applied: int
    replayed: int
    duplicates: int
    deleted: int
    covered: int
    undue: set[DueKey]
    """Where the user is not listed as due any more."""
    due: set[DueKey]
    """Where they are now."""

    @property
    def appended(self) -> Appended:
        """What became of the behaviors, as stores tell it."""
        return Appended(self.applied, self.replayed, self.duplicates, self.deleted, self.covered)


@dataclass(slots=True)
class Joined:
    """A sequence after a merge; the interest states that were there are to be removed."""

    count: int
    """Behaviors; 0: nothing changed."""
    tail: bytes
    """The newest of them, packed: whole segments, and what fills none."""
    merged: Merged
    undue: set[DueKey]
    """Where the user is not listed as due any more."""
    due: set[DueKey]
    """Where they are now."""
    numbers: _Numbers = (0, 0, 0, 0, 0)
    coverages: bytes = b""
    marks: bytes = b""
    keys: bytes = b""

    def head(self) -> bytes:
        """The head with all of the tail, unsealed.

        Raises:
            RecordTooLarge: a head holds less.
        """
        if len(self.tail) > MAX_TAIL * _BEHAVIOR_SIZE:
            raise RecordTooLarge(
                f"a history of {len(self.tail) // _BEHAVIOR_SIZE} behaviors cannot be merged here:"
                f" {MAX_TAIL} are written at once; make a store of a smaller store.length"
            )
        return _pack(self.numbers, self.coverages, self.marks, self.keys, self.tail)

    def sealed(self) -> tuple[bytes, list[tuple[int, bytes]]]:
        """The head, and (number, bytes) of each segment."""
        full = len(self.tail) // _SEALED_SIZE
        if not full:
            return self.head(), []
        first = (self.count - len(self.tail) // _BEHAVIOR_SIZE) // SEGMENT
        segments = encode_segments(self.tail[: full * _SEALED_SIZE])
        rest = self.tail[full * _SEALED_SIZE :]
        head = _pack(self.numbers, self.coverages, self.marks, self.keys, rest)
        return head, list(enumerate(segments, first))


NOWHERE: Final[set[DueKey]] = set()

NOTHING: Final[Behaviors] = np.empty(0, BEHAVIOR)
"""The behaviors of a user of whom nothing is stored."""


def bundle_key(digest: bytes) -> int:
    """The u64 by which heads and keys name a bundle: the first half of its digest."""
    return int.from_bytes(digest[:8], "little")


def new_head(now_ms: int) -> bytes:
    """The head of a user of whom there is nothing yet."""
    return _pack((0, now_ms, now_ms, 0, 0), b"", b"", b"", b"")


def grow(  # noqa: C901, PLR0912, PLR0915  # the hottest loop of the worker; a call per branch would show
    head: bytes | None,
    source: int,
    owner: int,
    new: Append,
    now_ms: int,
    bundle: int = 0,
    states: int = STATES,
    dead: tuple[int, ...] = (),
) -> Grown:
    """Apply ``new`` to a head; the tail is left unsealed.

    When that fills a segment the user becomes due, under ``owner``, for every bundle that has a
    coverage. A user with a full segment gets one for ``bundle``, and is due for it. What is in the
    tail is read with the head anyway, and counts in a ranking behavior by behavior.

    Behaviors at or below the mark of ``source`` and event keys in the recent window are skipped, so
    that the sequence is the same however its events were cut into appends, and repeated; so is what
    happened before the user was deleted, or before the cut of their merged history. The marks of
    ``dead`` sources go when the first of ``source`` is set, so that a log that begins anew again
    and again leaves one mark a user, not one each time.

    Raises:
        RecordDamaged: the head is not what was written.
        RecordNewer: it is of a later format.
        RecordTooLarge: the user was fed from more than 255 sources.
    """
    if head is None:
        coverages = marks = keys = tail = b""
        count = updated = deleted = old_owner = 0
        epoch = now_ms
        mark = at = cut_at = -1
    else:
        (
            (count, epoch, updated, old_owner, deleted),
            coverages_at,
            marks_at,
            keys_at,
            tail_at,
            end,
        ) = _parse(head, new.user)
        coverages = head[coverages_at:marks_at]
        marks = head[marks_at:keys_at]
        keys = head[keys_at:tail_at]
        tail = head[tail_at:end]
        at = _find(marks, source, 16)
        mark = _MARK.unpack_from(marks, at)[1] if at >= 0 else -1
        cut_at = _find(marks, CUT, 16)

    not_before = _MARK.unpack_from(marks, cut_at)[1] if cut_at >= 0 else _FIRST_MS
    if deleted:
        not_before = max(not_before, deleted + 1)
    replayed = duplicates = late = covered = 0
    all_new = None
    if new.offsets and new.offsets[0] > mark and not _any_before(new.behaviors, not_before):
        all_new = _with_keys(keys, new.event_keys)
    if all_new is not None:
        applied, keys, mark = new.behaviors, all_new, new.offsets[-1]
    else:
        applied = []
        known = mark  # that of the whole append: events of one record have one offset
        for behavior, event, offset in zip(new.behaviors, new.event_keys, new.offsets, strict=True):
            if offset <= known:
                replayed += 1
                continue
            mark = offset
            time = _TIME.unpack_from(behavior)[0]
            if time < not_before:
                if deleted and time <= deleted:
                    late += 1
                else:
                    covered += 1
                continue
            if event:
                if _find(keys, event, 8) >= 0:
                    duplicates += 1
                    continue
                keys = keys[-_OLDER_KEYS:] + _KEY.pack(event)
            applied.append(behavior)

    old_coverages = coverages
    full = sealed(count + len(applied))
    if full:
        wanted = bundle and _find(coverages, bundle, 24) < 0
        if wanted or (coverages and full > sealed(count)):
            of = _coverages(coverages)
            if wanted:
                of = _with_coverage(of, Coverage(bundle, 0, now_ms), states)
            if full > sealed(count):
                of = _all_due(of, now_ms)
            coverages = _packed(of)
    moved = bool(applied or duplicates or late or covered)
    if not moved and coverages == old_coverages:
        return Grown(None, 0, replayed, 0, 0, 0, NOWHERE, NOWHERE)

    if moved:
        updated = now_ms
        if at < 0 and dead:
            marks = _without(marks, dead)
        if at >= 0:
            marks = marks[:at] + _MARK.pack(source, mark) + marks[at + 16 :]
        elif len(marks) < MAX_MARKS * 16:
            marks += _MARK.pack(source, mark)
        else:
            raise _too_many_sources(new.user)
    if applied:
        tail += b"".join(applied)
        count += len(applied)
    else:
        owner = old_owner
    undue = due = NOWHERE
    if coverages and (coverages != old_coverages or owner != old_owner):
        before, after = _due_keys(old_coverages, old_owner), _due_keys(coverages, owner)
        undue, due = before - after, after - before
    numbers = count, epoch, updated, owner, deleted
    grown = _pack(numbers, coverages, marks, keys, tail)
    return Grown(grown, len(applied), replayed, duplicates, late, covered, undue, due)


def merge(
    head: Head | None,
    stored: Behaviors,
    history: History,
    claim: Claim,
    now_ms: int,
    ring: int,
    bundle: int = 0,
    states: int = STATES,
) -> Joined:
    """Put a job's history in the place of what a user's sequence has from before the cut.

    Args:
        head: as it is; None: there is none, or it cannot be read.
        stored: the newest behaviors of the sequence.
        history: not empty.
        claim: of the job.
        now_ms: the time, which is the new epoch where that is later than the old one.
        ring: segments that the store keeps; what fills older ones is left out.
        bundle, states: as of `grow`.

    Raises:
        RecordTooLarge: the user was fed from 254 sources.
    """
    tail, older, deleted = history.behaviors, history.older, 0
    if head is not None and head.deleted:
        rows = np.frombuffer(tail, BEHAVIOR)
        alive = rows["time"] > head.deleted
        if not alive.all():
            deleted = older + len(rows) - int(alive.sum())
            tail, older = rows[alive].tobytes(), 0
            if not tail:
                return Joined(0, b"", Merged(deleted=deleted), NOWHERE, NOWHERE)
    behaviors = older + len(tail) // _BEHAVIOR_SIZE
    kept = 0
    if len(stored):
        follows = stored[stored["time"] >= claim.cut]
        tail, kept = tail + follows.tobytes(), len(follows)
    count = behaviors + kept
    begin = older
    if count - older > ring * SEGMENT:
        begin = max(older, SEGMENT * (count // SEGMENT - ring))
    coverages: list[Coverage] = []
    sources: dict[int, int] = {}
    keys: tuple[int, ...] = ()
    epoch, was_due, was_deleted, cut = now_ms, NOWHERE, 0, claim.cut
    if head is not None:
        epoch, was_due, was_deleted = max(now_ms, head.epoch + 1), head.due, head.deleted
        sources, keys = head.marks, head.event_keys
        coverages = [Coverage(c.bundle, 0, 0) for c in head.coverages]
        cut = max(cut, head.claim.cut if head.claim else cut)
    if len(sources) + 2 > MAX_MARKS:
        raise _too_many_sources(history.user)
    if sealed(count):
        if bundle and all(c.bundle != bundle for c in coverages):
            coverages = _with_coverage(coverages, Coverage(bundle, 0, 0), states)
        coverages = _all_due(coverages, now_ms)
    marks = _MARK.pack(CUT, cut) + _JOB_MARK.pack(JOB, claim.job)
    if sources:
        marks = b"".join(_MARK.pack(*mark) for mark in sources.items()) + marks
    packed = _packed(coverages) if coverages else b""
    is_due = _due_keys(packed, history.owner) if coverages else NOWHERE
    return Joined(
        count,
        tail[(begin - older) * _BEHAVIOR_SIZE :] if begin > older else tail,
        Merged(1, 0, behaviors, len(stored) - kept, kept, deleted),
        was_due - is_due,
        is_due - was_due,
        (count, epoch, now_ms, history.owner, was_deleted),
        packed,
        marks,
        struct.pack(f"<{len(keys)}Q", *keys) if keys else b"",
    )


def _any_before(behaviors: Sequence[bytes], time_ms: int) -> bool:
    """Whether one of them happened before that time."""
    if time_ms == _FIRST_MS:
        return False
    return any(_TIME.unpack_from(behavior)[0] < time_ms for behavior in behaviors)


def _too_many_sources(user: str) -> RecordTooLarge:
    return RecordTooLarge(
        f"user {user!r} has events from {MAX_MARKS} sources, no more can be remembered: topics made"
        " anew, and partitions, are one each; fill a new store"
    )


def _with_keys(keys: bytes, events: Sequence[int]) -> bytes | None:
    """The recent keys after events whose keys all are new; None: not all are."""
    found = [event for event in events if event]
    if not found:
        return keys
    known = struct.unpack(f"<{len(keys) // _KEY.size}Q", keys)
    if len({*known, *found}) < len(known) + len(found):
        return None
    newest = found[-RECENT_EVENTS:]
    return (keys + struct.pack(f"<{len(newest)}Q", *newest))[-RECENT_EVENTS * _KEY.size :]


def sealed(count: int) -> int:
    """How many of ``count`` behaviors lie in full segments."""
    return count // SEGMENT * SEGMENT


def may_lack(head: bytes) -> bool:
    """Whether behaviors of a head may lie in full segments: only then it may lack a state. Nothing
    of it is checked, so this costs a tenth of reading its numbers; most users have no segment.
    """
    return head[:1] != _FORMAT_BYTE or int.from_bytes(head[8:16], "little") >= SEGMENT


def sealed_part(sequence: StoredSequence) -> StoredSequence:
    """A sequence without what no full segment holds yet: what an interest state covers."""
    count = sealed(sequence.version.count)
    kept = len(sequence.behaviors) - (sequence.version.count - count)
    return StoredSequence(
        Version(sequence.version.epoch, count),
        sequence.behaviors[: max(0, kept)],
        sequence.marks,
        sequence.lost,
    )


def holds_segment(head: bytes) -> bool:
    """Whether the tail of a head that was read fills a segment, so that it is to be sealed."""
    return tail_length(head) >= SEGMENT


def has_coverages(head: bytes) -> bool:
    """Whether a head that is whole says of any bundle how far its states cover the sequence."""
    return head[0] != 1 and head[3] > 0


def tail_length(head: bytes) -> int:
    """Behaviors in the unsealed tail of a head that was read."""
    return int.from_bytes(head[4:6], "little")


def seal(head: bytes, most: int | None = None) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Move every full segment out of the tail of a head that was read: the trimmed head, and
    (number, bytes) per segment, of the ``most`` newest.
    """
    numbers = full_numbers(head)
    older = range(0) if most is None else numbers[:-most]
    return trim(head, len(numbers)), full_segments(head, older)


def in_pieces(groups: Sequence[Group]) -> Sequence[Group]:
    """Groups of which no append has more than `MOST_AT_ONCE` events of a user: those of one that
    had come in a later group of the same source.
    """
    if max((_longest(group.appends) for group in groups), default=0) <= MOST_AT_ONCE:
        return groups
    pieces = []
    for group in groups:
        rest: Sequence[Append] = group.appends
        while rest:
            stops = [new.boundary(MOST_AT_ONCE) for new in rest]
            pairs = list(zip(rest, stops, strict=True))
            pieces.append(Group(group.source, [new.part(0, stop) for new, stop in pairs]))
            rest = [
                new.part(stop, len(new.offsets)) for new, stop in pairs if stop < len(new.offsets)
            ]
        pieces.append(Group(group.source, [], group.reached))
    return pieces


def _longest(appends: Sequence[Append]) -> int:
    """Events of the user who has most."""
    if isinstance(appends, Appends):
        return appends.longest
    return max((len(new.offsets) for new in appends), default=0)


def full_numbers(head: bytes) -> range:
    """Numbers of the full segments in the tail of a head that was read."""
    first = (_NUMBERS.unpack_from(head, 8)[0] - tail_length(head)) // SEGMENT
    return range(first, first + tail_length(head) // SEGMENT)


def full_segments(head: bytes, but: Sequence[int] = ()) -> list[tuple[int, bytes]]:
    """(number, bytes) of every full segment in the tail of a head that was read, less some."""
    _, _, _, _, tail_at, end = _parse(head, "")
    tail = head[tail_at:end]
    return [
        (number, encode_segment(tail[i * _SEALED_SIZE : (i + 1) * _SEALED_SIZE]))
        for i, number in enumerate(full_numbers(head))
        if number not in but
    ]


def trim(head: bytes, segments: int) -> bytes:
    """A head that was read, without the first so many full segments of its tail."""
    if not segments:
        return head
    numbers, coverages_at, marks_at, keys_at, tail_at, end = _parse(head, "")
    return _pack(
        numbers,
        head[coverages_at:marks_at],
        head[marks_at:keys_at],
        head[keys_at:tail_at],
        head[tail_at + segments * _SEALED_SIZE : end],
    )


def read_counters(head: bytes, user: str) -> Counters:
    """A head's numbers; ``user`` only names it in errors.

    Raises:
        RecordDamaged: the head is not what was written.
        RecordNewer: it is of a later format.
    """
    numbers, coverages_at, marks_at, *_ = _parse(head, user)
    return Counters(*numbers, _coverages(head[coverages_at:marks_at]))


def expired(head: bytes, user: str, ttl_ms: int, now_ms: int) -> bool:
    """Whether the last event of the head's user is longer ago than ``ttl_ms``; 0: no such limit.
    Of a later format, whose numbers may be others, no head is.

    Raises:
        RecordDamaged: the head seems expired, but is not what was written.
    """
    if not ttl_ms or len(head) < _UPDATED_AT + _UPDATED.size:
        return False
    if _UPDATED.unpack_from(head, _UPDATED_AT)[0] + ttl_ms >= now_ms:
        return False
    try:
        _parse(head, user)
    except RecordNewer:
        return False
    return True


def is_deleted(head: bytes) -> bool:
    """Whether a head only remembers that its user was deleted."""
    if head[8:16] != _NO_COUNT or head[0] != _FORMAT:
        return False
    try:
        return _parse(head, "")[0][0] == 0
    except RecordDamaged:
        return False


def cover(
    head: bytes, counters: Counters, bundle: int, covered: int, now_ms: int, *, states: int = STATES
) -> Changed:
    """The head, whose numbers are given, after a bundle's state that covers ``covered`` behaviors
    was stored: of a user who is not due for it, or due since now where a segment was sealed after
    those. Of the others ``states - 1`` stay, those last written.
    """
    since = now_ms if sealed(counters.count) > covered else 0
    others = [c for c in counters.coverages if c.bundle != bundle]
    stored = [c.bundle for c in others if c.covered]
    dropped = stored[: max(0, len(stored) - states + 1)]
    kept = [c for c in others if c.bundle not in dropped]
    return _covered(head, counters, [*kept, Coverage(bundle, covered, since)], dropped)


def set_due(
    head: bytes, counters: Counters, owner: int, bundle: int, now_ms: int, *, states: int = STATES
) -> Changed:
    """The head, whose numbers are given, of a user who is due for a bundle under ``owner`` since
    now; unchanged where they are due for it already, or no sealed segment is uncovered.
    """
    if not counters.lacks(bundle):
        return Changed(None, NOWHERE, NOWHERE, [])
    new = Coverage(bundle, counters.coverage(bundle).covered, now_ms)
    if any(c.bundle == bundle for c in counters.coverages):
        coverages = [new if c.bundle == bundle else c for c in counters.coverages]
    else:
        coverages = _with_coverage(counters.coverages, new, states)
    return _covered(head, counters, coverages, [], owner)


def held(
    head: bytes | None, user: str, segments: Sequence[int], states: Mapping[int, int]
) -> Held | None:
    """What is held of a user.

    Args:
        head: as stored; None: there is none.
        user: only named in errors.
        segments: the bytes of each.
        states: the bytes of each, by `bundle_key`.
    """
    if head is None or is_deleted(head):
        return None
    behaviors, sources, due = SEGMENT * len(segments), 0, 0
    with suppress(RecordDamaged):  # what else is there counts all the same
        found = decode_head(head, user)
        # Some stores keep those of a segment in the tail, too, until they know it is on disk.
        behaviors = max(behaviors + found.count % SEGMENT, len(found.tail))
        sources = len(found.marks)
        due = sum(coverage.since > 0 for coverage in found.coverages)
    named = {bundle.to_bytes(8, "little").hex(): size for bundle, size in states.items()}
    return Held(behaviors, sources, due, named, len(head) + sum(segments) + sum(states.values()))


def delete(head: bytes | None, user: str, now_ms: int) -> bytes:
    """What is left of a user's head when they are deleted: the time, and the marks, so that neither
    what happened before nor what was applied before comes in again.
    """
    marks, epoch = b"", 0
    if head is not None:
        (_, epoch, *_), _, marks_at, keys_at, *_ = _parse(head, user)
        marks = head[marks_at:keys_at]
    return _pack((0, max(now_ms, epoch + 1), now_ms, 0, now_ms), b"", marks, b"", b"")


def decode_head(head: bytes, user: str) -> Head:
    """A head in full; ``user`` only names it in errors.

    Raises:
        RecordDamaged: the head is not what was written.
        RecordNewer: it is of a later format.
    """
    numbers, coverages_at, marks_at, keys_at, tail_at, end = _parse(head, user)
    marks = dict(_MARK.iter_unpack(head[marks_at:keys_at]))
    job, cut = marks.pop(JOB, 0), marks.pop(CUT, None)
    return Head(
        *numbers,
        _coverages(head[coverages_at:marks_at]),
        marks=marks,
        claim=None if cut is None else Claim(job % (1 << 64), cut),
        event_keys=struct.unpack_from(f"<{(tail_at - keys_at) // 8}Q", head, keys_at),
        tail=np.frombuffer(head, BEHAVIOR, (end - tail_at) // _BEHAVIOR_SIZE, tail_at),
    )


def ring_size(length: int) -> int:
    """Segments kept so that the newest ``length`` behaviors are whole: those they lie in, and one
    more, so that who has read a head still finds its segments when the next one is sealed.
    """
    return -(-length // SEGMENT) + 1


_Parsed = tuple[_Numbers, int, int, int, int, int]
"""A whole head: its numbers, where its coverages, marks, event keys and tail begin, and where the
tail ends. A plain tuple, since naming its fields takes as long as finding them."""


def _parse(head: bytes, user: str) -> _Parsed:
    form = head[0] if head else 0
    if form == 1:
        return _parse_1(head, user)
    end = len(head) - _CHECKSUM.size
    if end < _HEADER.size:
        raise _damaged(user, f"it has {len(head)} bytes")
    if xxhash.xxh3_64_intdigest(memoryview(head)[:end]) != _CHECKSUM.unpack_from(head, end)[0]:
        raise _damaged(user, "it fails its checksum")
    if form != _FORMAT:
        raise RecordNewer(
            f"the sequence record of user {user!r} has format {form}, this version reads up to"
            f" {_FORMAT}: use the version that wrote it, or a later one"
        )
    numbers = _NUMBERS.unpack_from(head, 8)
    marks, keys, tail, fits = _places(head)
    if end != fits:
        raise _damaged(user, "its length does not fit its header")
    return numbers, _HEADER.size, marks, keys, tail, end


def _places(head: bytes) -> tuple[int, int, int, int]:
    """Where the marks, the event keys and the tail of a head begin that is known to be whole, and
    where the tail ends.
    """
    marks = _HEADER_1.size if head[0] == 1 else _HEADER.size + head[3] * _COVERAGE.size
    keys = marks + head[1] * 16
    tail = keys + head[2] * 8
    return marks, keys, tail, tail + tail_length(head) * _BEHAVIOR_SIZE


def _parse_1(head: bytes, user: str) -> _Parsed:
    if len(head) < _HEADER_1.size:
        raise _damaged(user, f"it has {len(head)} bytes")
    *_, count, epoch, updated, _, owner, _ = _HEADER_1.unpack_from(head)
    marks, keys, tail, end = _places(head)
    if len(head) != end:
        raise _damaged(user, "its length does not fit its header")
    return (count, epoch, updated, owner, 0), marks, marks, keys, tail, end


def _pack(
    numbers: _Numbers,
    coverages: bytes,
    marks: bytes,
    keys: bytes,
    tail: bytes,
) -> bytes:
    header = _HEADER.pack(
        _FORMAT,
        len(marks) // 16,
        len(keys) // 8,
        len(coverages) // 24,
        len(tail) // _BEHAVIOR_SIZE,
        *numbers,
    )
    body = header + coverages + marks + keys + tail
    return body + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body))


def _covered(
    head: bytes,
    counters: Counters,
    coverages: list[Coverage],
    dropped: list[int],
    owner: int | None = None,
) -> Changed:
    """The head with other coverages, and perhaps another owner."""
    packed = _packed(coverages)
    owner = counters.owner if owner is None else owner
    numbers = counters.count, counters.epoch, counters.updated, owner, counters.deleted
    marks, keys, tail, end = _places(head)
    written = _pack(numbers, packed, head[marks:keys], head[keys:tail], head[tail:end])
    before, after = counters.due, _due_keys(packed, owner)
    return Changed(written, before - after, after - before, dropped)


def _coverages(packed: bytes) -> list[Coverage]:
    return [Coverage(*fields) for fields in _COVERAGE.iter_unpack(packed)]


def _packed(coverages: list[Coverage]) -> bytes:
    return b"".join(_COVERAGE.pack(*coverage) for coverage in coverages)


def _due_keys(coverages: bytes, owner: int) -> set[DueKey]:
    return {
        DueKey(bundle, owner, since)
        for bundle, _, since in _COVERAGE.iter_unpack(coverages)
        if since
    }


def _with_coverage(coverages: list[Coverage], new: Coverage, states: int) -> list[Coverage]:
    """Coverages with a new one, in whose place another goes that only waits for its state, too,
    where there are many: bundles that nobody extracts any more must not pile up.
    """
    kept = list(coverages)
    if len(kept) > states:
        waiting = next((coverage for coverage in kept if not coverage.covered), None)
        if waiting is not None:
            kept.remove(waiting)
    return [*kept, new]


def _all_due(coverages: list[Coverage], now_ms: int) -> list[Coverage]:
    return [Coverage(bundle, covered, since or now_ms) for bundle, covered, since in coverages]


def _find(packed: bytes, key: int, stride: int) -> int:
    """Position of a u64 key in packed entries of ``stride`` bytes that begin with it, or -1.

    bytes.find is 5x faster than unpacking; a hit across two entries is not one.
    """
    needle = _KEY.pack(key)
    at = packed.find(needle)
    while at >= 0 and at % stride:
        at = packed.find(needle, at + 1)
    return at


def _without(marks: bytes, dead: tuple[int, ...]) -> bytes:
    """Packed marks less those of some sources."""
    return b"".join(
        _MARK.pack(source, offset)
        for source, offset in _MARK.iter_unpack(marks)
        if source not in dead
    )


def _damaged(user: str, why: str) -> RecordDamaged:
    return RecordDamaged(user, f"the sequence record of user {user!r} is damaged: {why}")
