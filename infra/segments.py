"""Sealed segments as bytes: 64 behaviors as columns, and only those columns that say something.

A behavior takes 25 bytes in the tail of a head, where it is appended; in a segment, which is
written once and read often, some 12. LMDB keeps four to five segments on a page then, where it kept
one or two.

Layout, little-endian::

    checksum u32 (xxh32 of all that follows) | flags u8 | action u8 | 2 unused bytes | base i64
    items     u64[64]
    times     u32[64], ms after base; with flag 1 i64[64], and base is 0
    category  u32[64], with flag 2; else none has one
    dwell     u32[64], with flag 4; else all are 0
    action    u8[64], with flag 8; else all have the header's

Segments of 1,600 bytes, as they were written before, are 64 BEHAVIOR records; they are read alike.
A segment that was found damaged is replaced by the one byte `LOST`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import xxhash

from infra.behaviors import BEHAVIOR
from infra.store import Behaviors

SEGMENT: Final = 64
"""Behaviors in a sealed segment: few enough that a head, which holds up to 63, stays under 2 KB,
and so many that a sequence of 1,000 is 16 reads."""

LOST: Final = b"\0"
"""In the place of a segment that could not be read: it is known to be lost."""

ENCODED_TOGETHER: Final = 3
"""From so many segments on it is faster to look at all of them at once than at each."""

_PLAIN: Final = SEGMENT * BEHAVIOR.itemsize
_CHECKSUM: Final = struct.Struct("<I")
_HEADER: Final = struct.Struct("<BBxxq")
_WIDE, _CATEGORY, _DWELL, _ACTION = 1, 2, 4, 8
_RECORDS: Final = -1
"""In the place of flags: the segment is of 64 BEHAVIOR records."""
_NARROW: Final = 2**32 - 1


def encode_segments(behaviors: bytes) -> list[bytes]:
    """Segments of packed BEHAVIOR records, 64 for each: `encode_segment` of many, told apart for
    all of them at once.
    """
    rows = np.frombuffer(behaviors, BEHAVIOR).reshape(-1, SEGMENT)
    if len(rows) < ENCODED_TOGETHER:
        return [encode_segment(row.tobytes()) for row in rows]
    times, actions = rows["time"], rows["action"]
    first, latest = times.min(axis=1), times.max(axis=1)
    wide = latest - first > _NARROW
    bases = np.where(wide, 0, first)
    flags = np.where(wide, _WIDE, 0)
    flags |= np.where(rows["category"].any(axis=1), _CATEGORY, 0)
    flags |= np.where(rows["dwell"].any(axis=1), _DWELL, 0)
    flags |= np.where((actions != actions[:, :1]).any(axis=1), _ACTION, 0)
    items, narrow = rows["item"].copy(), (times - bases[:, None]).astype("<u4")
    segments = []
    for place, (flag, action, base) in enumerate(
        zip(flags.tolist(), actions[:, 0].tolist(), bases.tolist(), strict=True)
    ):
        columns = [items[place].tobytes()]
        columns.append((times if flag & _WIDE else narrow)[place].tobytes())
        if flag & _CATEGORY:
            columns.append(rows["category"][place].tobytes())
        if flag & _DWELL:
            columns.append(rows["dwell"][place].tobytes())
        if flag & _ACTION:
            columns.append(actions[place].tobytes())
        segments.append(_joined(flag, action, base, columns))
    return segments


def encode_segment(behaviors: bytes) -> bytes:
    """A segment of 64 packed BEHAVIOR records."""
    rows = np.frombuffer(behaviors, BEHAVIOR)
    times = rows["time"]
    base, latest = int(times.min()), int(times.max())
    actions = rows["action"]
    flags = 0
    if latest - base > _NARROW:
        flags, base = _WIDE, 0
    columns = [rows["item"].tobytes()]
    columns.append(times.tobytes() if flags else (times - base).astype("<u4").tobytes())
    for name, flag in (("category", _CATEGORY), ("dwell", _DWELL)):
        if rows[name].any():
            flags |= flag
            columns.append(rows[name].tobytes())
    if (actions != actions[0]).any():
        flags |= _ACTION
        columns.append(actions.tobytes())
    return _joined(flags, int(actions[0]), base, columns)


def _joined(flags: int, action: int, base: int, columns: Sequence[bytes]) -> bytes:
    body = b"".join((_HEADER.pack(flags, action, base), *columns))
    return _CHECKSUM.pack(xxhash.xxh32_intdigest(body)) + body


class Decoded(NamedTuple):
    """What is left of segments."""

    behaviors: Behaviors
    """Of those that are whole, one after the other."""
    lost: list[int]
    """Places of the others among those given."""
    damaged: dict[int, str]
    """Those of them of which nobody knew, and what is wrong."""


def decode_segments(segments: Sequence[bytes | None]) -> Decoded:
    """The behaviors of segments; None stands for one that is missing."""
    (decoded,) = decode_each([segments])
    return decoded


def decode_each(users: Sequence[Sequence[bytes | None]]) -> list[Decoded]:
    """The behaviors of several users' segments: read together, they cost each less than alone."""
    segments = [segment for of in users for segment in of]
    kinds = _alike(segments) or list(map(_kind, segments))
    behaviors = np.zeros((len(segments), SEGMENT), BEHAVIOR)
    for kind in set(kinds):
        if isinstance(kind, str):
            continue
        if kinds.count(kind) == len(kinds):
            _decode(kind, b"".join(segments), behaviors, slice(None))  # type: ignore[arg-type]
        else:
            places = [place for place, other in enumerate(kinds) if other == kind]
            run = b"".join([segments[place] for place in places])  # type: ignore[misc]
            _decode(kind, run, behaviors, places)
    end = 0
    decoded = []
    for of in users:
        begin, end = end, end + len(of)
        decoded.append(_left(behaviors[begin:end], kinds[begin:end]))
    return decoded


def _alike(segments: Sequence[bytes | None]) -> list[int | str]:
    """`_kind` of each, where all are whole and of one kind, as those of one platform mostly are:
    found out for all at once. Empty: they are not.
    """
    if not segments or None in segments:
        return []
    size = len(segments[0])  # type: ignore[arg-type]
    flags = segments[0][4] if size > _CHECKSUM.size else 0  # type: ignore[index]
    if {size} != set(map(len, segments)) or size != _SIZES.get(flags):  # type: ignore[arg-type]
        return []
    rows = np.frombuffer(b"".join(segments), _layout(flags))  # type: ignore[arg-type]
    digests = list(map(xxhash.xxh32_intdigest, [one[4:] for one in segments]))  # type: ignore[index]
    if rows["checksum"].tolist() != digests or (rows["flags"] != flags).any():
        return []
    return [flags] * len(segments)


def _left(behaviors: Behaviors, kinds: list[int | str]) -> Decoded:
    """What is left of a user's segments, BEHAVIOR[n,64], some of which perhaps are lost."""
    lost = [place for place, kind in enumerate(kinds) if isinstance(kind, str)]
    if not lost:
        return Decoded(behaviors.reshape(-1), lost, {})
    damaged = {place: str(kinds[place]) for place in lost if kinds[place]}
    return Decoded(np.delete(behaviors, lost, axis=0).reshape(-1), lost, damaged)


def _decode(kind: int, run: bytes, behaviors: Behaviors, places: list[int] | slice) -> None:
    """Write n whole segments of one kind, joined, into their rows of BEHAVIOR[*,64] zeros."""
    if kind == _RECORDS:
        behaviors[places] = np.frombuffer(run, BEHAVIOR).reshape(-1, SEGMENT)
        return
    rows = np.frombuffer(run, _layout(kind))
    behaviors["item"][places] = rows["item"]
    behaviors["time"][places] = rows["base"][:, None] + rows["time"]
    if kind & _CATEGORY:
        behaviors["category"][places] = rows["category"]
    if kind & _DWELL:
        behaviors["dwell"][places] = rows["dwell"]
    behaviors["action"][places] = rows["action"] if kind & _ACTION else rows["only"][:, None]


def _kind(segment: bytes | None) -> int | str:
    """The flags of a whole segment, or _RECORDS. A str: it cannot be read, and why; empty: that is
    known.
    """
    if segment is None:
        return "is missing"
    size = len(segment)
    if size == _PLAIN:
        return _RECORDS
    if segment == LOST:
        return ""
    flags = segment[4] if size > _CHECKSUM.size else 0
    if size != _SIZES.get(flags):
        return f"has {size} bytes"
    if xxhash.xxh32_intdigest(segment[4:]) != _CHECKSUM.unpack_from(segment)[0]:
        return "fails its checksum"
    return flags


@cache
def _layout(flags: int) -> np.dtype[Any]:
    fields: list[tuple[Any, ...]] = [
        ("checksum", "<u4"),
        ("flags", "u1"),
        ("only", "u1"),
        ("unused", "<u2"),
        ("base", "<i8"),
        ("item", "<u8", SEGMENT),
        ("time", "<i8" if flags & _WIDE else "<u4", SEGMENT),
    ]
    for flag, name, kind in (
        (_CATEGORY, "category", "<u4"),
        (_DWELL, "dwell", "<u4"),
        (_ACTION, "action", "u1"),
    ):
        if flags & flag:
            fields.append((name, kind, SEGMENT))
    return np.dtype(fields)


_SIZES: Final = {flags: _layout(flags).itemsize for flags in range(2 * _ACTION)}
"""Bytes of a segment, by its flags."""
