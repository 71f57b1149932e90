"""The store protocol: what every store promises, whichever database is behind it.

Two kinds of record per user. The *sequence* (a head plus sealed segments, `infra.records`) is
written by appends only. The *interest state* is opaque bytes here, ordered by `Version`; it covers
what lies in sealed segments. All stores pass one contract suite,
`tests/infra/stores/test_contract.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from infra.behaviors import Source

OPEN_WAIT_S: Final = 10.0
"""How long opening a store waits for a server: one that listens may not serve yet."""

MAX_USER_BYTES = 256
"""Longest user id in UTF-8 bytes; LMDB keys end at 511 bytes and carry a prefix."""


def wall_clock_ms() -> int:
    """The time in ms since epoch, UTC."""
    return time.time_ns() // 1_000_000


Behaviors = npt.NDArray[np.void]
"""Array of `infra.behaviors.BEHAVIOR`, oldest first."""


class Written(IntEnum):
    """What became of one `InterestWrite`; anything else raises."""

    STORED = 0
    STALE = 1  # the store held a newer state, which stays
    GONE = 2  # the user's sequence is not there any more, so the state was not stored


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """How recent a sequence or an interest state is; compares field by field.

    ``epoch`` is the time (ms) at which the user's head was created, so that the counts of a user
    whose expired record began anew do not lose against the old ones.
    """

    epoch: int
    count: int


@dataclass(slots=True)
class Append:
    """New behaviors of one user from one source, in the source's order."""

    user: str
    behaviors: list[bytes]
    """One packed BEHAVIOR (25 bytes) per event."""
    event_keys: list[int]
    """`event_key` per event; 0: the event carries no id and is not de-duplicated by it."""
    offsets: list[int]
    """The source's offset per event, strictly increasing."""


@dataclass(slots=True)
class Appended:
    """What one append call did, over all its users."""

    applied: int
    """Behaviors that entered a sequence."""
    replayed: int
    """Behaviors skipped because their offset was at or below the user's mark."""
    duplicates: int
    """Behaviors skipped because their event id is in the user's recent window."""
    counts: list[int]
    """Behaviors ever applied, per user in the order given."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A user as the scorer and the reclusterer read them, from one consistent snapshot."""

    version: Version
    """The sequence's version: its epoch and the behaviors ever applied."""
    recent: Behaviors
    """The newest behaviors, at least all those of the head (<= 64) and, where they are still
    kept, every one newer than the interest state."""
    interests: bytes | None
    """The interest state's payload; None: never clustered."""
    interests_version: Version | None


@dataclass(frozen=True, slots=True)
class StoredSequence:
    """A user's behavior sequence."""

    version: Version
    behaviors: Behaviors
    """The newest behaviors, at most the store's configured length, oldest first."""
    marks: dict[int, int]
    """Offset of the last event applied, by source key."""


@dataclass(frozen=True, slots=True)
class InterestWrite:
    """One user's new interest state."""

    user: str
    version: Version
    payload: bytes


class DueUser(NamedTuple):
    """A user of whom a segment was sealed that their interest state does not cover."""

    user: str
    since: int
    """When the first of those was sealed, ms since epoch (the writer's clock)."""
    waiting: int
    """Behaviors in such segments."""


class Store(Protocol):
    """Where sequences, interest states and due users live.

    Every method raises `StoreUnavailable` when the store cannot be reached, `StoreFull` when it
    has no room, `StoreCorrupt` when a record cannot be understood. Missing is not an error: it
    comes back as None or a code. A store is made in the process that uses it, after any fork, and
    may be used from several threads of it.
    """

    def append(self, source: Source, appends: Sequence[Append], now_ms: int) -> Appended:
        """Apply new behaviors to sequences; who fills a segment is due, under ``source.owner``.

        Per user the effect is atomic and idempotent: behaviors at or below the user's mark for
        ``source.key`` are skipped, as are event keys in the user's recent window. Behaviors that
        no full segment holds yet make nobody due: they are in the head, and whoever reads the user
        reads them. A failure leaves each user either untouched or fully applied; the caller repeats
        the whole call. ``appends`` names a user at most once.
        """
        ...

    def sequences(self, users: Sequence[str]) -> list[StoredSequence | None]:
        """The users' sequences, in order; None: unknown or expired."""
        ...

    def profiles(self, users: Sequence[str]) -> list[Profile | None]:
        """The users' newest behaviors and interest states, in order; None: unknown or expired."""
        ...

    def put_interests(self, writes: Sequence[InterestWrite], now_ms: int) -> list[Written]:
        """Store interest states, each unless a newer version is there (equal is replaced).

        A user whose sealed segments the state covers stops being due in the same atomic operation;
        otherwise they stay due since ``now_ms``. A failure leaves each state either old or new.
        """
        ...

    def due(self, owner: int, limit: int) -> list[DueUser]:
        """Up to ``limit`` due users of an owner, the longest due first."""
        ...

    def mark_due(self, owner: int, users: Sequence[str], now_ms: int) -> None:
        """Make users due under ``owner`` without an append (a new bundle, an owner that moved).

        Who is due already stays so since the same time; an unknown user is left out, and so is one
        without a full segment, of whom there is nothing to make interests of.
        """
        ...

    def users(self, after: str, limit: int) -> list[str]:
        """Up to ``limit`` users with a sequence, in a stable order, following ``after`` ("" from
        the start). For tools; a store without an order may return them in one page.
        """
        ...

    def get_position(self, name: str) -> bytes | None:
        """The bookmark of a resumable job, or None."""
        ...

    def put_position(self, name: str, position: bytes | None) -> None:
        """Keep (or, with None, remove) the bookmark of a resumable job."""
        ...

    def sweep(self, now_ms: int, limit: int) -> int:
        """Remove up to ``limit`` expired users where the database does not do so by itself;
        returns how many. One call may look at a part of the users only; the next goes on there.
        """
        ...

    def ping(self) -> None:
        """Prove that a read is answered and a write would be; raises `StoreError` otherwise."""
        ...

    def close(self) -> None:
        """Release everything; the store is unusable afterwards."""
        ...
