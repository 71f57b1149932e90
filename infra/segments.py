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
from itertools import groupby
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

_PLAIN: Final = SEGMENT * BEHAVIOR.itemsize
_CHECKSUM: Final = struct.Struct("<I")
_HEADER: Final = struct.Struct("<BBxxq")
_WIDE, _CATEGORY, _DWELL, _ACTION = 1, 2, 4, 8
_RECORDS: Final = -1
"""In the place of flags: the segment is of 64 BEHAVIOR records."""
_NARROW: Final = 2**32 - 1


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
    body = b"".join((_HEADER.pack(flags, int(actions[0]), base), *columns))
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
    behaviors = np.zeros(len(segments) * SEGMENT, BEHAVIOR)
    lost: list[int] = []
    damaged: dict[int, str] = {}
    at = place = 0
    # Those of one user are mostly alike, and are read together then.
    for kind, alike in groupby(map(_kind, segments)):
        end = place + len(list(alike))
        if isinstance(kind, str):
            lost += range(place, end)
            if kind:
                damaged |= dict.fromkeys(range(place, end), kind)
        else:
            size = (end - place) * SEGMENT
            _decode(kind, b"".join(segments[place:end]), behaviors[at : at + size])  # type: ignore[arg-type]
            at += size
        place = end
    return Decoded(behaviors[:at], lost, damaged)


def _decode(kind: int, run: bytes, part: Behaviors) -> None:
    """Write n whole segments of one kind, joined, as behaviors."""
    if kind == _RECORDS:
        part[:] = np.frombuffer(run, BEHAVIOR)
        return
    rows = np.frombuffer(run, _layout(kind))
    shape = len(rows), SEGMENT
    part["item"].reshape(shape)[:] = rows["item"]
    np.add(rows["base"][:, None], rows["time"], out=part["time"].reshape(shape))
    if kind & _CATEGORY:
        part["category"].reshape(shape)[:] = rows["category"]
    if kind & _DWELL:
        part["dwell"].reshape(shape)[:] = rows["dwell"]
    part["action"].reshape(shape)[:] = rows["action"] if kind & _ACTION else rows["only"][:, None]


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
