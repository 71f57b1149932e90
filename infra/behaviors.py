"""What a sequence is made of: behaviors as packed records, and the keys of items and sources.

A stored behavior does not depend on any model: an item is kept as a 64-bit hash of its id, so a
new bundle with another vocabulary reads the same sequences. Two of ten million items collide with
probability 3e-6.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import xxhash

BEHAVIOR: Final = np.dtype(
    [
        ("item", "<u8"),
        ("time", "<i8"),
        ("category", "<u4"),
        ("dwell", "<u4"),
        ("action", "u1"),
    ]
)
"""One stored behavior, 25 bytes: item key, event time (ms since epoch, UTC), category key
(0: none), dwell time (ms), action code."""

pack_behavior: Final = struct.Struct("<QqIIB").pack
"""``pack_behavior(item, time_ms, category, dwell_ms, action) -> bytes`` in BEHAVIOR's layout."""

ACTIONS: Final = {
    "view": 1,
    "click": 2,
    "cart": 3,
    "purchase": 4,
    "favorite": 5,
    "like": 6,
    "share": 7,
    "rate": 8,
    "play": 9,
    "search": 10,
}
"""Known actions and their stored codes. Codes are never reused."""


def item_key(item_id: str) -> int:
    """The 64-bit key under which an item stands in sequences."""
    return xxhash.xxh3_64_intdigest(item_id.encode())


def event_key(event_id: str | None) -> int:
    """The 64-bit key by which a repeated event is recognised; 0 means that it carried no id."""
    return xxhash.xxh3_64_intdigest(event_id.encode()) or 1 if event_id else 0


def category_key(category_id: str | None) -> int:
    """The 32-bit key of a category; 0 means that the event carried none."""
    return xxhash.xxh32_intdigest(category_id.encode()) or 1 if category_id else 0


@dataclass(frozen=True, slots=True)
class Source:
    """Where events come from: one partition of a topic, or one backfilled file."""

    key: int
    """u64 under which a sequence remembers the last offset applied (its mark). It holds the
    topic's id, so that a topic deleted and created again is another source."""
    owner: int
    """u64 under which due users are kept: the worker that consumes this partition reclusters
    them. It holds the topic's name, so that a re-created topic's worker finds them."""


def partition_owner(topic: str, partition: int) -> int:
    """The owner key of a topic's partition (see `Source.owner`)."""
    return xxhash.xxh3_64_intdigest(f"{topic}/{partition}".encode())


def partition_source(topic: str, topic_id: str, partition: int) -> Source:
    """The source of one partition of the topic that carries ``topic_id`` (Kafka's UUID)."""
    return Source(
        key=xxhash.xxh3_64_intdigest(f"{topic_id}/{partition}".encode()),
        owner=partition_owner(topic, partition),
    )
