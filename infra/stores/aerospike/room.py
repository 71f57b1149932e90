"""How much of a user one record takes, by the limit that the server sets."""

from __future__ import annotations

from typing import Final, NamedTuple

from infra.behaviors import BEHAVIOR
from infra.segments import SEGMENT

SLICE: Final = 8192
"""Most behaviors of one user appended at once. Only a bot has more, and a failure amid its slices
leaves the first ones applied, which the repeated call skips by their offsets. A merged history is
written as a whole, whatever a record takes of it."""

_BESIDE_TAIL: Final = 8 << 10
"""Bytes of a sequence record beside the tail, at most: marks of 255 sources take half of it."""


class Room(NamedTuple):
    """How many behaviors of a user are kept in their head until it is trimmed."""

    slice: int
    """Most behaviors applied in one write."""
    tail: int
    """Full segments in the tail before it; more are trimmed at once, flushed or not."""

    @classmethod
    def of(cls, limit: int, ring: int) -> Room:
        """Of records up to ``limit`` bytes, in a store that keeps so many segments: none of more is
        ever written to a tail, so mostly there is room for all.

        >>> Room.of(1 << 20, 17), Room.of(128 << 10, 17), Room.of(128 << 10, 158)
        (Room(slice=8192, tail=17), Room(slice=8192, tail=17), Room(slice=2368, tail=38))
        """
        segments = max(3, (limit - _BESIDE_TAIL) // (SEGMENT * BEHAVIOR.itemsize))
        if ring < segments:  # the rest of the tail, which fills no segment, takes part of one
            return cls(SLICE, ring)
        tail = segments // 2
        return cls(min(SLICE, (segments - tail - 1) * SEGMENT), tail)
