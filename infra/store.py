"""The store protocol: what every store promises, whichever database is behind it.

Two kinds of record per user. The *sequence* (a head plus sealed segments, `infra.records`) is
written by appends only. *Interest states* are opaque bytes here, one for each of the newest few
bundles that made one, named by the bundle's digest and ordered by `Version`; they cover what lies
in sealed segments. All stores pass one contract suite, `tests/infra/stores/test_contract.py`.

A record that is damaged or lost costs what it held, not the user: reads give what is left, the next
write mends it (an append begins anew where a head is damaged), and `Damage` is told. A record of a
format that only a newer version knows is no damage: it is refused (`StoreCorrupt`) and left alone.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain, pairwise
from typing import Final, NamedTuple, Protocol, overload

import msgspec
import numpy as np
import numpy.typing as npt

from infra.arrays import I64, U8, U64
from infra.behaviors import BEHAVIOR, Source

OPEN_WAIT_S: Final = 10.0
"""How long opening a store waits for a server: one that listens may not serve yet."""

MAX_USER_BYTES = 256
"""Longest user id in UTF-8 bytes; LMDB keys end at 511 bytes and carry a prefix."""

LAYOUT: Final = 2
"""Version of the layout of a store's records. Raised when an older reader would misread it."""

STATES: Final = 3
"""Bundles whose interest states are kept of a user, where nobody says otherwise."""


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
    whose expired record began anew, or whose history was merged, do not lose against the old ones.
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
    """The source's offset per event, never decreasing. Events of one offset are those of one
    record: all of them are in one append, and are applied at once or not at all."""

    def boundary(self, most: int) -> int:
        """Up to where to take events, so many at most, without cutting a record; more where it
        begins with a larger one.

        >>> new = Append("ann", [], [], [1, 2, 2, 2, 3])
        >>> new.boundary(2), new.boundary(4), new.part(1, 5).boundary(2)
        (1, 4, 3)
        """
        offsets = self.offsets
        stop = min(most, len(offsets))
        if stop == len(offsets) or offsets[stop - 1] != offsets[stop]:
            return stop
        first = bisect_left(offsets, offsets[stop])
        return first or bisect_right(offsets, offsets[stop])

    def part(self, start: int, stop: int) -> Append:
        """The events from ``start`` to ``stop``, those that there are."""
        if start == 0 and stop >= len(self.offsets):
            return self
        cut = slice(start, stop)
        return Append(self.user, self.behaviors[cut], self.event_keys[cut], self.offsets[cut])


class Appends(Sequence[Append]):
    """One append to each of n users, e events in all, as columns.

    What comes at once is mostly an event or two of each of many users. A store that takes columns
    makes no object of any of them; for others this is a sequence of `Append`.

    Args:
        users: n.
        behaviors: u8[25 e], packed BEHAVIORs, those of a user one behind the other.
        event_keys: u64[e], as of `Append`.
        offsets: i64[e], as of `Append`.
        ends: i64[n], behind the last event of each user.
    """

    __slots__ = ("behaviors", "ends", "event_keys", "offsets", "users")

    def __init__(
        self, users: Sequence[str], behaviors: U8, event_keys: U64, offsets: I64, ends: I64
    ) -> None:
        self.users = users
        self.behaviors = behaviors
        self.event_keys = event_keys
        self.offsets = offsets
        self.ends = ends

    @classmethod
    def of(cls, appends: Sequence[Append]) -> Appends:
        """Appends as columns; those that are columns as they are."""
        if isinstance(appends, Appends):
            return appends
        packed = bytearray().join(chain.from_iterable(new.behaviors for new in appends))
        return cls(
            [new.user for new in appends],
            np.frombuffer(packed, np.uint8),
            np.fromiter(chain.from_iterable(new.event_keys for new in appends), np.uint64),
            np.fromiter(chain.from_iterable(new.offsets for new in appends), np.int64),
            np.cumsum([len(new.offsets) for new in appends], dtype=np.int64),
        )

    @classmethod
    def joined(cls, parts: Sequence[Appends]) -> Appends:
        """The appends of several, one behind the other; a user of two is there twice."""
        if len(parts) < 2:
            return parts[0] if parts else cls.of([])
        before = np.cumsum([0] + [len(part.offsets) for part in parts])
        ends = [part.ends + shift for part, shift in zip(parts, before[:-1], strict=True)]
        return cls(
            [user for part in parts for user in part.users],
            np.concatenate([part.behaviors for part in parts]),
            np.concatenate([part.event_keys for part in parts]),
            np.concatenate([part.offsets for part in parts]),
            np.concatenate(ends),
        )

    def ordered(self, order: I64) -> Appends:
        """The same users in another order: ``order``, i64[n], names them by their places."""
        sizes = np.diff(self.ends, prepend=0)
        starts, sizes = (self.ends - sizes)[order], sizes[order]
        ends = np.cumsum(sizes)
        events = np.repeat(starts - ends + sizes, sizes) + np.arange(len(self.offsets))
        return Appends(
            [self.users[place] for place in order.tolist()],
            self.behaviors.reshape(-1, BEHAVIOR.itemsize)[events].reshape(-1),
            self.event_keys[events],
            self.offsets[events],
            ends,
        )

    def part(self, start: int, stop: int) -> Appends:
        """The users from ``start`` to ``stop``, those that there are; nothing is copied of their
        events.
        """
        ends = self.ends[start:stop]
        first = int(self.ends[start - 1]) if start and len(ends) else 0
        last = int(ends[-1]) if len(ends) else 0
        size = BEHAVIOR.itemsize
        return Appends(
            self.users[start:stop],
            self.behaviors[first * size : last * size],
            self.event_keys[first:last],
            self.offsets[first:last],
            ends - first,
        )

    @property
    def longest(self) -> int:
        """Events of the user who has most."""
        return int(np.diff(self.ends, prepend=0).max(initial=0))

    def __len__(self) -> int:
        return len(self.users)

    @overload
    def __getitem__(self, place: int) -> Append: ...

    @overload
    def __getitem__(self, place: slice) -> list[Append]: ...

    def __getitem__(self, place: int | slice) -> Append | list[Append]:
        if isinstance(place, slice):
            return list(self)[place]
        place = range(len(self))[place]  # from behind, too; raises where there is none
        return next(iter(self.part(place, place + 1)))

    def __iter__(self) -> Iterator[Append]:
        packed, size = self.behaviors.tobytes(), BEHAVIOR.itemsize
        behaviors = [packed[at : at + size] for at in range(0, len(packed), size)]
        keys, offsets = self.event_keys.tolist(), self.offsets.tolist()
        for user, (start, end) in zip(self.users, pairwise([0, *self.ends.tolist()]), strict=True):
            yield Append(user, behaviors[start:end], keys[start:end], offsets[start:end])


@dataclass(slots=True)
class Group:
    """What is applied of one source at once."""

    source: Source
    appends: Sequence[Append]
    """At most one a user."""
    reached: int | None = None
    """Offset up to which the source is dealt with once these are applied, events that became no
    behaviors included; None: nothing is remembered of the source as a whole."""


@dataclass(slots=True)
class Appended:
    """What became of the behaviors of one append call, over all its groups and users."""

    applied: int = 0
    """Behaviors that entered a sequence."""
    replayed: int = 0
    """Behaviors skipped because their offset was at or below the user's mark."""
    duplicates: int = 0
    """Behaviors skipped because their event id is in the user's recent window."""
    deleted: int = 0
    """Behaviors skipped because their user was deleted after they happened."""
    covered: int = 0
    """Behaviors skipped because they happened before the cut up to which a user's history was
    merged: it is as the job that merged it has it."""

    def __add__(self, other: Appended) -> Appended:
        return Appended(
            self.applied + other.applied,
            self.replayed + other.replayed,
            self.duplicates + other.duplicates,
            self.deleted + other.deleted,
            self.covered + other.covered,
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """What a job says of the users whose histories it has: all before the cut is as I have it."""

    job: int
    """u64 by which a sequence remembers whose history it has."""
    cut: int
    """ms since epoch. What happened before is the job's, from then on it is the stream's."""


@dataclass(slots=True)
class History:
    """What a job has of one user from before its cut."""

    user: str
    owner: int
    """Under whom the user is due then (`infra.behaviors.Source.owner`)."""
    behaviors: bytes
    """Packed BEHAVIOR records, oldest first: all, or the newest of them, at least the store's
    length and a segment."""
    older: int = 0
    """How many there were before these, whole segments of them: a multiple of 64."""


@dataclass(slots=True)
class Merged:
    """What became of the histories of one merge call."""

    users: int = 0
    """Users whose sequences begin with the job's history now."""
    merged_before: int = 0
    """Users of whom the job had been merged already; nothing changed."""
    behaviors: int = 0
    """Behaviors of the histories that were merged, those beyond the store's length included."""
    replaced: int = 0
    """Stored behaviors from before the cut in whose place the histories came."""
    kept: int = 0
    """Stored behaviors from the cut on, which follow the histories."""
    deleted: int = 0
    """Behaviors left out because their user was deleted after they happened."""

    def add(self, other: Merged) -> None:
        """Count what became of others as well."""
        self.users += other.users
        self.merged_before += other.merged_before
        self.behaviors += other.behaviors
        self.replaced += other.replaced
        self.kept += other.kept
        self.deleted += other.deleted


@dataclass(frozen=True, slots=True)
class Profile:
    """A user as the scorer reads them, from one consistent snapshot."""

    version: Version
    """The sequence's version: its epoch and the behaviors ever applied."""
    recent: Behaviors
    """The newest behaviors: those that no full segment holds (< 64) and, where they are still kept,
    every one newer than the interest state; less those ``lost``."""
    interests: bytes | None
    """The payload of the bundle's interest state; None: it made none."""
    interests_version: Version | None
    lost: int = 0
    """Behaviors that would be among ``recent``, but their record is damaged."""


@dataclass(frozen=True, slots=True)
class StoredSequence:
    """A user's behavior sequence."""

    version: Version
    behaviors: Behaviors
    """The newest behaviors, at most the store's configured length, oldest first; less those
    ``lost``."""
    marks: dict[int, int]
    """Offset of the last event applied, by source key."""
    lost: int = 0
    """Behaviors that would be among them, but their record is damaged."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a store holds of a user, deleted ones aside, whether they have expired or not."""

    behaviors: int
    sources: int
    """From which events were applied: as many marks are kept."""
    due: int
    """Bundles that the user is due for."""
    states: dict[str, int]
    """Bytes of each interest state, by the first half of its bundle's digest, in hexadecimal."""
    bytes: int
    """Of all records, without their keys and what the database adds."""


@dataclass(frozen=True, slots=True)
class InterestWrite:
    """One user's new interest state."""

    user: str
    digest: bytes
    """Of the bundle that made it."""
    version: Version
    payload: bytes


class UserPage(NamedTuple):
    """A part of a store's users."""

    users: list[str]
    after: bytes | None
    """Where the next page begins; None: there is none. Cursors compare, as bytes, in the order of
    the listing."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a store says of itself, written when it was made."""

    name: str
    """For people."""
    id: str
    """128 random bits in hexadecimal, which tell this store from every other."""
    layout: int
    """Version of the layout of its records (`LAYOUT`)."""
    length: int
    """Behaviors that it keeps per user, at least; fixed, since segments lie in a ring of it."""
    ttl_s: float
    """The TTL that it was last opened with, for writing."""
    actions: tuple[str, ...] = ()
    """The platform's names of actions, in the order of their codes."""
    created_ms: int
    """When it was made, ms since epoch."""


class DueUser(NamedTuple):
    """A user of whom a segment was sealed that a bundle's interest state does not cover."""

    user: str
    since: int
    """When the first of those was sealed, ms since epoch (the writer's clock)."""
    waiting: int
    """Behaviors in such segments."""


class Damage(Protocol):
    """Told of each record that cannot be read; whoever opens a store decides who hears of it."""

    def __call__(self, kind: str, line: str) -> None:
        """Take notice: ``kind`` is head or segment, ``line`` says whose and what is wrong."""


def unheard(kind: str, line: str) -> None:
    """A `Damage` that nobody hears of."""


class Interrupted(Protocol):
    """Told when a store stops to answer, or is found to have been started anew; whoever opens it
    decides who hears of it.

    What it acknowledged shortly before may be lost when it answers again, where the database writes
    to disk later than it answers. Whoever can, feeds that again, from some seconds before
    ``since_ms`` on and *before* anything newer: later events of a user raise the mark over those
    that were lost, and below it they stay out. What is still there does not come in twice.
    """

    def __call__(self, since_ms: int) -> None:
        """Take notice: in the thread whose call found it, before that call returns or raises. So
        whoever looks before each append misses no outage in which a call failed; a `ping` finds
        the others. Be quick, and leave the store alone. ``since_ms`` is when it last answered
        before, ms since epoch.
        """


def unheeded(since_ms: int) -> None:
    """An `Interrupted` that nobody hears of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How a store is opened, whichever database is behind it."""

    read_only: bool = False
    """Whether it is only read, and so never made, written or locked."""
    length: int = 1000
    """Behaviors kept per user; in an existing store at most what it was made with."""
    ttl_s: float = 0
    """A user without events for so many seconds is forgotten; 0: never."""
    states: int = STATES
    """Bundles whose interest states are kept of a user."""
    name: str = "lifelong"
    """For people; given to a store when it is made."""
    id: str | None = None
    """The `Identity.id` that it must have; None: any."""
    actions: tuple[str, ...] = ()
    """The platform's names of actions, which must go on where those of the store end."""
    damage: Damage = unheard
    """Told of damaged records."""
    interrupted: Interrupted = unheeded
    """Told when the store stops to answer. One within the process never does."""
    clock: Callable[[], int] = wall_clock_ms
    """The time in ms since epoch, by which records expire."""


AS_IT_COMES: Final = StoreOptions()
"""The options of whoever asks for nothing."""


LOW: Final = 0.8
"""Share of its room from which on it is time to give a store more."""


class Room(Protocol):
    """How much of what a store may hold it does."""

    @property
    def share(self) -> float:
        """0: nothing; at 1 it takes no more."""

    @property
    def readers(self) -> float | None:
        """Share of the places for readers that are taken; None: there is no limit."""

    @property
    def told(self) -> str:
        """Of what it is a share, and what to do to have more, in words."""


class Store(Protocol):
    """Where sequences, interest states and due users live.

    Every method raises `StoreUnavailable` when the store cannot be reached, `StoreFull` when it
    has no room, `StoreCorrupt` when a record is of a format that this version does not know.
    Missing is not an error: it comes back as None or a code. A store is made in the process that
    uses it, after any fork, and may be used from several threads of it. One that was opened for
    reading alone writes nothing, also on opening, and raises StoreUnavailable where it is told to.
    """

    @property
    def identity(self) -> Identity | None:
        """What the store says of itself; None: it was opened for reading, and is of a version that
        wrote no identity.
        """

    @property
    def local(self) -> bool:
        """Whether reads are answered within this process, in microseconds: whoever has more to do
        does it afterwards, not meanwhile.
        """

    def append(
        self, groups: Sequence[Group], now_ms: int, *, digest: bytes | None = None
    ) -> Appended:
        """Apply new behaviors of several sources; who fills a segment is due.

        They are due under the owner of the source, for every bundle that has made states of them,
        and for the one named by ``digest``; also where a segment was full before and that bundle
        has none. Per user the effect is atomic and idempotent: behaviors at or below the user's
        mark for the source are skipped, as are event keys in the user's recent window, and what
        happened before the user was deleted, or before the cut of their merged history. Behaviors
        that no full segment holds yet make nobody due: they are in the head, and whoever reads the
        user reads them.

        A failure leaves each user either untouched or fully applied (stores with transactions: all
        untouched), and `positions` never ahead; the caller repeats the whole call.
        """
        ...

    def merge(
        self,
        histories: Sequence[History],
        claim: Claim,
        now_ms: int,
        *,
        digest: bytes | None = None,
    ) -> Merged:
        """Have users' sequences begin with what a job has of them, whatever is appended meanwhile.

        Per user, in one atomic step: the sequence becomes the job's behaviors, followed by the
        stored ones that happened at the cut or later, in their order, under a new epoch. So the
        interest states, which covered another sequence, are gone, and users with a full segment are
        due under their history's owner, for the bundles of those states and for ``digest``. The
        marks of sources stay; from then on behaviors from before the cut stay out. A user who
        carries the job's mark already is left alone, and so is one of whom the job has nothing
        since they were deleted. No user may be there twice.

        A failure leaves each user as before or merged; the caller repeats the call.
        """
        ...

    def positions(self, sources: Sequence[int]) -> list[int | None]:
        """How far the store itself was fed: per source key the highest offset reached by an
        append; None: nothing of it. Where the database cannot write it with the behaviors, it may
        lag behind them.
        """
        ...

    def sequences(self, users: Sequence[str]) -> list[StoredSequence | None]:
        """The users' sequences, in order; None: unknown, expired or deleted."""
        ...

    def profiles(self, users: Sequence[str], digest: bytes) -> list[Profile | None]:
        """The users' newest behaviors and a bundle's interest states, in order; None: unknown,
        expired or deleted.
        """
        ...

    def interests(self, users: Sequence[str], digest: bytes) -> list[bytes | None]:
        """The payloads of a bundle's interest states, in order, without the rest; None: none."""
        ...

    def put_interests(self, writes: Sequence[InterestWrite], now_ms: int) -> list[Written]:
        """Store interest states, each unless that bundle's newer one is there (equal is replaced).

        A user keeps the states of so many bundles as the store was opened for; the one longest not
        written goes when another bundle's is stored. A user whose sealed segments the state covers
        stops being due for the bundle in the same atomic operation; otherwise they stay due since
        ``now_ms``. A failure leaves each state either old or new.
        """
        ...

    def due(self, owner: int, digest: bytes, limit: int) -> list[DueUser]:
        """Up to ``limit`` users of an owner who are due for a bundle, the longest due first."""
        ...

    def mark_due(self, owner: int, digest: bytes, users: Sequence[str], now_ms: int) -> int:
        """Make those of the users due under ``owner`` whose sealed segments no state of the bundle
        covers, and who are not due yet; returns how many that were. What covers them is looked for
        in the states themselves: one that the store has lost covers nothing.
        """
        ...

    def users(self, after: bytes, limit: int) -> UserPage:
        """About ``limit`` users with a sequence, in an order of the store's own that does not
        change, from a cursor on (b"": the first).
        """
        ...

    def empty(self) -> bool:
        """Whether no user has a sequence."""
        ...

    def held(self, users: Sequence[str]) -> list[Held | None]:
        """What is held of users, in order; None: nothing, or only when they were deleted."""
        ...

    def forget(self, users: Sequence[str], now_ms: int) -> int:
        """Delete users; returns how many had a sequence.

        All of them is gone but a mark of when, so that events up to ``now_ms`` (by their own time)
        that arrive later stay out. The mark lasts as long as a sequence would.
        """
        ...

    def get_bookmark(self, name: str) -> bytes | None:
        """How far a resumable job came, or None."""
        ...

    def put_bookmark(self, name: str, bookmark: bytes | None) -> None:
        """Keep (or, with None, remove) how far a resumable job came."""
        ...

    def sweep(self, now_ms: int, limit: int) -> int:
        """Remove up to ``limit`` expired users where the database does not do so by itself;
        returns how many. One call may look at a part of the users only; the next goes on there.
        """
        ...

    def ping(self) -> None:
        """Prove that a read is answered and, unless the store was opened for reading, that a write
        and `due` would be; raises `StoreError` otherwise.
        """
        ...

    def room(self) -> Room | None:
        """How much room there is; None: that cannot be told."""
        ...

    def cautions(self) -> Sequence[str]:
        """By what of its configuration it may lose what it has acknowledged, one line each."""
        ...

    def close(self) -> None:
        """Release everything; the store is unusable afterwards."""
        ...
