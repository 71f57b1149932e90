"""What a sequence is made of: behaviors as packed records, and the keys of items and sources.

A stored behavior does not depend on any model: an item is kept as a 64-bit hash of its id, so a
new bundle with another vocabulary reads the same sequences. Two of ten million items collide with
probability 3e-6.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from unicodedata import category

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

MAX_ACTIONS: Final = 255
"""Most actions of a platform: a stored behavior holds the code of one in a byte, from 1."""

MAX_ACTION_BYTES: Final = 64
"""Longest name of an action, in UTF-8 bytes."""

_CONTROL: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode's categories of control characters, halves of pairs, and ends of lines."""


@dataclass(frozen=True, slots=True)
class ActionNames:
    """The actions that a platform declares, in the order of the codes under which they are stored.

    A code is the name's place, from 1. Stored behaviors hold codes alone, so a list that is in use
    may only grow at its end (`extends`): another order would give what is stored another meaning.

    Raises:
        ValueError: there is no name or too many, or a name is empty, too long, stands twice, or
            holds a control character.

    >>> actions = ActionNames(("view", "answered right", "answered wrong"))
    >>> actions.codes["answered wrong"], actions.name(2)
    (3, 'answered right')
    """

    names: tuple[str, ...]
    codes: Mapping[str, int] = field(init=False, repr=False, compare=False)
    """Each name's code."""

    def __post_init__(self) -> None:
        if not 0 < len(self.names) <= MAX_ACTIONS:
            raise ValueError(f"names {len(self.names)} actions; name 1 to {MAX_ACTIONS}")
        codes: dict[str, int] = {}
        for code, name in enumerate(self.names, 1):
            _check_action_name(name, code)
            if codes.setdefault(name, code) != code:
                raise ValueError(f"{name!r} stands twice, as names {codes[name]} and {code}")
        object.__setattr__(self, "codes", codes)

    def name(self, code: int) -> str | None:
        """The name of a stored code; None: none has it."""
        return self.names[code - 1] if 0 < code <= len(self.names) else None

    def extends(self, other: ActionNames) -> bool:
        """Whether this list begins with the other: all that was stored by that keeps its meaning.

        >>> ActionNames(("view", "buy", "like")).extends(ActionNames(("view", "buy")))
        True
        >>> ActionNames(("like", "view", "buy")).extends(ActionNames(("view", "buy")))
        False
        """
        return self.names[: len(other.names)] == other.names


def _check_action_name(name: str, place: int) -> None:
    if not name.strip():
        raise ValueError(f"name {place} is empty")
    if len(name.encode(errors="surrogatepass")) > MAX_ACTION_BYTES:
        raise ValueError(f"name {place} has more than {MAX_ACTION_BYTES} bytes")
    if any(category(character) in _CONTROL for character in name):
        raise ValueError(f"{name!r} holds a control character")


DEFAULT_ACTIONS: Final = ActionNames(
    (
        "view",
        "click",
        "cart",
        "purchase",
        "favorite",
        "like",
        "share",
        "rate",
        "play",
        "search",
    )
)
"""The actions where the settings declare no others."""


def item_key(item_id: str) -> int:
    """The 64-bit key under which an item stands in sequences."""
    return xxhash.xxh3_64_intdigest(item_id.encode())


def event_key(event_id: str | None) -> int:
    """The 64-bit key by which a repeated event is recognised; 0 means that it carried no id."""
    return xxhash.xxh3_64_intdigest(event_id.encode()) or 1 if event_id else 0


def category_key(category_id: str | None) -> int:
    """The 32-bit key of a category; 0 means that the event carried none."""
    return xxhash.xxh32_intdigest(category_id.encode()) or 1 if category_id else 0


MAX_DEAD: Final = 255
"""Earlier lives of a log whose marks are looked for; a user holds no more of any."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where events come from: one partition of a topic, in one life of its log."""

    key: int
    """u64 under which a sequence remembers the last offset applied (its mark). It holds the
    topic's id, so that a topic deleted and created again is another source, and the life of the
    partition's log, so that one that lost its tail and reuses offsets is, too."""
    owner: int
    """u64 under which due users are kept: the worker that consumes this partition reclusters
    them. It holds the topic's name, so that a re-created topic's worker finds them."""
    dead: tuple[int, ...] = ()
    """Keys of earlier lives of the log, the newest first. Nothing comes from them any more, so
    their marks go when this one's first is set."""


def partition_owner(topic: str, partition: int) -> int:
    """The owner key of a topic's partition (see `Source.owner`)."""
    return xxhash.xxh3_64_intdigest(f"{topic}/{partition}".encode())


def partition_source(topic: str, topic_id: str, partition: int, life: int = 0) -> Source:
    """The source of one partition of the topic that carries ``topic_id`` (Kafka's UUID).

    ``life`` counts how often the partition's log lost its tail and went on from there.
    """
    name = f"{topic_id}/{partition}"
    keys = [
        xxhash.xxh3_64_intdigest((f"{name}/{number}" if number else name).encode())
        for number in range(life, max(-1, life - 1 - MAX_DEAD), -1)
    ]
    return Source(keys[0], partition_owner(topic, partition), tuple(keys[1:]))
