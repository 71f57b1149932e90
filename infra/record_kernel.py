"""The kernel that appends to many heads at once, where behaviors just go to the end of the tail.

So it is with almost all users of a group, and `infra.records.grow` spends microseconds on each of
them, with the interpreter's lock. This runs outside it. It only knows how to say yes: what it gives
for a user is exactly what `grow` would give, and every other is left to that: whoever fills a
segment, becomes due or was deleted, whose events may have come before, whose head is damaged.

The layout is that of `infra.records`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from infra.arrays import I64, U8, U64
from infra.behaviors import Source
from infra.compiling import kernel
from infra.hashing import read_64, xxh3_64
from infra.records import CUT, RECENT_EVENTS
from infra.segments import SEGMENT
from infra.store import Append, Appends

_FORMAT: Final = 2
_LENGTH, _COUNT, _UPDATED, _OWNER, _DELETED, _HEADER = 4, 8, 24, 32, 40, 48
_COVERAGE, _MARK, _KEY, _BEHAVIOR, _CHECKSUM = 24, 16, 8, 25, 8
_TIME: Final = 8
_CUT: Final = np.uint64(CUT)


class _News(NamedTuple):
    """The appends of n users, e events in all, for the kernel."""

    behaviors: U8
    """u8[25 e]"""
    event_keys: U64
    """u64[e]"""
    offsets: I64
    """i64[e]"""
    ends: I64
    """i64[n]: behind the last event of each."""
    sources: U64
    """u64[n]: keys of the sources."""
    owners: U64
    """u64[n]: of the sources."""


class _Rules(NamedTuple):
    """What is the same for all users, for the kernel."""

    now_ms: int
    expired: int
    """Heads written before then have expired, ms since epoch."""
    bundle: np.uint64
    """For whom users with full segments are to be due; 0: nobody new."""


def grow_each(
    heads: Sequence[bytes],
    appends: Sequence[Append],
    places: Sequence[int] | I64,
    sources: Sequence[Source],
    now_ms: int,
    bundle: int = 0,
    ttl_ms: int = 0,
) -> list[bytes]:
    """The heads after an append to each, with all of its behaviors; empty: `grow` is to decide.

    Args:
        heads: of n users; where there is none, `new_head`.
        appends: one to each of them.
        places: from which of the sources each of them is.
        sources: their ``dead`` are not looked at: of a user who has marks, but none of the source,
            it is not sure.
        now_ms, bundle: as of `grow`.
        ttl_ms: see `infra.records.expired`.
    """
    of, columns = np.asarray(places, np.int64), Appends.of(appends)
    news = _News(
        columns.behaviors,
        columns.event_keys,
        columns.offsets,
        columns.ends,
        np.array([source.key for source in sources], np.uint64)[of],
        np.array([source.owner for source in sources], np.uint64)[of],
    )
    rules = _Rules(now_ms, now_ms - ttl_ms if ttl_ms else 0, np.uint64(bundle))
    sizes = np.fromiter(map(len, heads), np.int64)
    # As bytes that may be written: kernels are compiled anew for those that may not.
    old = np.frombuffer(bytearray().join(heads), np.uint8)
    new_sizes, new = _grow_kernel(old, sizes, news, rules)
    text, ends = new.tobytes(), np.cumsum(new_sizes).tolist()
    return [text[start:end] for start, end in pairwise([0, *ends])]


@cache
def warm() -> None:
    """Have the kernel compiled, once in a process."""
    grow_each([], [], [], [], 0)


@kernel
def _grow_kernel(old: U8, sizes: I64, news: _News, rules: _Rules) -> tuple[I64, U8]:
    """The sizes of the new heads, 0 where it is not sure, and the heads, one behind the other."""
    # As variables: a tuple of arrays that goes through the calls below would count references.
    behaviors, event_keys, offsets, ends, sources, owners = news
    now_ms, expired, bundle = rules
    # Each may get a mark, and its events' keys and behaviors.
    most = len(old) + len(sizes) * _MARK + len(offsets) * (_KEY + _BEHAVIOR)
    new, new_sizes = np.empty(most, np.uint8), np.zeros(len(sizes), np.int64)
    start, first, at = 0, 0, 0
    for user in range(len(sizes)):
        end, last = start + sizes[user], ends[user]
        keys, source, owner = event_keys[first:last], sources[user], owners[user]
        if (
            first < last
            and _is_whole(old, start, end)
            and np.int64(read_64(old, start + _UPDATED)) >= expired
            and _makes_nobody_due(old, start, last - first, owner, bundle)
            and _is_new(old, start, source, offsets[first], keys)
            and not _is_covered(old, start, behaviors, first, last)
        ):
            body = _copy_with(old, start, source, offsets[last - 1], keys, new, at)
            stop = _copy(behaviors, first * _BEHAVIOR, last * _BEHAVIOR, new, body)
            _count(new, at, last - first)
            _write_64(new, at + _UPDATED, np.uint64(now_ms))
            _write_64(new, at + _OWNER, owner)
            _write_64(new, stop, xxh3_64(new, at, stop - at))
            new_sizes[user] = stop + _CHECKSUM - at
            at = stop + _CHECKSUM
        start, first = end, last
    return new_sizes, new[:at]


@kernel
def _is_whole(old: U8, start: int, end: int) -> bool:
    """Whether a head is of this format, and what was written."""
    stop = end - _CHECKSUM
    if stop - start < _HEADER or old[start] != _FORMAT:
        return False
    _, _, tail = _places(old, start)
    if tail + _length(old, start) * _BEHAVIOR != stop:
        return False
    return bool(xxh3_64(old, start, stop - start) == read_64(old, stop))


@kernel
def _makes_nobody_due(
    old: U8, start: int, events: int, owner: np.uint64, bundle: np.uint64
) -> bool:
    """Whether so many behaviors stay in the tail, and its user is due where they were."""
    count = np.int64(read_64(old, start + _COUNT))
    if _length(old, start) + events >= SEGMENT or count % SEGMENT + events >= SEGMENT:
        return False
    coverages, (marks, _, _) = start + _HEADER, _places(old, start)
    if coverages < marks and owner != read_64(old, start + _OWNER):
        return False
    return bool(
        bundle == 0 or count < SEGMENT or _find(old, coverages, marks, _COVERAGE, bundle) < marks
    )


@kernel
def _is_new(old: U8, start: int, source: np.uint64, offset: int, keys: U64) -> bool:
    """Whether events, the first with that offset, are all applied and leave other marks alone."""
    if read_64(old, start + _DELETED) != 0:
        return False
    marks, old_keys, tail = _places(old, start)
    mark = _find(old, marks, old_keys, _MARK, source)
    if mark == old_keys and marks < old_keys:
        return False
    if offset <= (np.int64(read_64(old, mark + _KEY)) if mark < old_keys else -1):
        return False
    for place in range(len(keys)):
        if keys[place] == 0:
            continue
        if _find(old, old_keys, tail, _KEY, keys[place]) < tail:
            return False
        for before in range(place):
            if keys[before] == keys[place]:
                return False
    return True


@kernel
def _is_covered(old: U8, start: int, behaviors: U8, first: int, last: int) -> bool:
    """Whether one of the behaviors happened before the cut of a merged history."""
    marks, keys, _ = _places(old, start)
    mark = _find(old, marks, keys, _MARK, _CUT)
    if mark == keys:
        return False
    cut = np.int64(read_64(old, mark + _KEY))
    for event in range(first, last):
        if np.int64(read_64(behaviors, event * _BEHAVIOR + _TIME)) < cut:
            return True
    return False


@kernel
def _copy_with(
    old: U8, start: int, source: np.uint64, offset: int, keys: U64, new: U8, at: int
) -> int:
    """Copy a head up to the end of its tail, with another mark and more event keys; where that
    ends.
    """
    marks, old_keys, tail = _places(old, start)
    mark = _find(old, marks, old_keys, _MARK, source)
    end = _copy(old, start, mark, new, at)
    end = _write_64(new, end, source)
    end = _write_64(new, end, np.uint64(offset))
    if mark == old_keys:
        new[at + 1] += 1
    else:
        end = _copy(old, mark + _MARK, old_keys, new, end)
    added = 0
    for key in keys:
        added += key != 0
    kept = min((tail - old_keys) // _KEY, max(0, RECENT_EVENTS - added))
    new[at + 2] = kept + min(added, RECENT_EVENTS)
    end = _copy(old, tail - kept * _KEY, tail, new, end)
    for key in keys:
        if key != 0:
            if added <= RECENT_EVENTS:
                end = _write_64(new, end, key)
            added -= 1
    return _copy(old, tail, tail + _length(old, start) * _BEHAVIOR, new, end)


@kernel
def _count(new: U8, at: int, events: int) -> None:
    """Add so many behaviors to the numbers of a head; its tail stays below a segment."""
    new[at + _LENGTH] += events
    _write_64(new, at + _COUNT, read_64(new, at + _COUNT) + np.uint64(events))


@kernel
def _places(head: U8, start: int) -> tuple[int, int, int]:
    """Where the marks, the event keys and the tail of a head begin."""
    marks = start + _HEADER + head[start + 3] * _COVERAGE
    keys = marks + head[start + 1] * _MARK
    return marks, keys, keys + head[start + 2] * _KEY


@kernel
def _length(head: U8, start: int) -> int:
    """Behaviors in the tail of a head."""
    return int(head[start + _LENGTH]) | int(head[start + _LENGTH + 1]) << 8


@kernel
def _find(head: U8, at: int, end: int, stride: int, key: np.uint64) -> int:
    """Where the entry begins, of those from ``at`` on, that begins with a key; ``end``: none."""
    while at < end and read_64(head, at) != key:
        at += stride
    return at


@kernel
def _copy(old: U8, start: int, stop: int, new: U8, at: int) -> int:
    """Copy a part; where that ends."""
    for place in range(stop - start):
        new[at + place] = old[start + place]
    return at + stop - start


@kernel
def _write_64(new: U8, at: int, value: np.uint64) -> int:
    """Write a number, little-endian; where that ends."""
    for place in range(8):
        new[at + place] = (value >> np.uint64(8 * place)) & np.uint64(0xFF)
    return at + 8
