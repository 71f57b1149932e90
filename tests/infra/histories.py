"""Histories of one user, and a model of what they leave behind: plain lists, nothing is packed.

A history is a list of operations, drawn by Hypothesis. `Model` says after each what a store must
answer. `tests/infra/test_records.py` holds the record's bytes against it,
`tests/infra/stores/test_contract.py` each store.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from infra.behaviors import pack_behavior
from infra.records import RECENT_EVENTS, sealed
from infra.segments import SEGMENT
from infra.store import Append, Appended, Claim, History, Merged, Version

TTL_MS = 1_000_000
FLUSHED_MS = 10_000
"""So long after their last write some stores tidy up."""
SOURCES = 3
OWNERS = 2
BUNDLES = 2
JOBS = 2
EVENT_IDS = 3 * RECENT_EVENTS // 2
"""Few, so that ids come again just inside the window, and just outside."""


@dataclass(frozen=True)
class Send:
    """Events arrive from a source, some perhaps again."""

    source: int
    owner: int
    back: int
    """How many offsets before the source's next one they begin: a replay, in part or as a whole."""
    number: int
    step: int
    """From one offset to the next; compaction leaves gaps."""
    first_id: int | None
    """Their event ids count up from it, and from the last go on with the first; None: no ids."""
    bundle: int | None = 0
    """For which the users are to be due; None: for no other than they were."""
    age: int = 0
    """How many ms ago they happened."""
    sealed: bool = True
    """Whether the store gets to sealing the tail; one that crashes before leaves it long."""


@dataclass(frozen=True)
class PutInterests:
    """A bundle's interests are stored that cover all behaviors but so many, and at least one."""

    behind: int
    bundle: int = 0


@dataclass(frozen=True)
class MarkDue:
    owner: int
    bundle: int = 0


@dataclass(frozen=True)
class Forget:
    """The user is deleted."""


@dataclass(frozen=True)
class Merge:
    """A job's history is merged."""

    job: int
    owner: int
    behaviors: tuple[int, int]
    """How many it gives, and how many older ones not, which are beyond what a store keeps."""
    age: int
    """How many ms ago the newest of them happened; each was 1 ms after the one before."""
    back: int
    """By so many ms the cut is before now."""
    bundle: int | None = 0


@dataclass(frozen=True)
class Wait:
    ms: int


Operation = Send | PutInterests | MarkDue | Forget | Merge | Wait

sends = st.builds(
    Send,
    source=st.integers(0, SOURCES - 1),
    owner=st.integers(0, OWNERS - 1),
    back=st.sampled_from([0, 0, 1, 2, 7, 1000]),
    number=st.integers(1, 4) | st.integers(1, 3 * SEGMENT) | st.sampled_from([63, 64, 65]),
    step=st.integers(1, 2),
    first_id=st.none() | st.integers(0, EVENT_IDS - 1),
    bundle=st.none() | st.integers(0, BUNDLES - 1),
    age=st.sampled_from([0, 0, 0, 3]),
    sealed=st.booleans(),
)
operations: st.SearchStrategy[Operation] = (
    sends
    | sends
    | sends
    | st.builds(
        PutInterests, st.sampled_from([0, 1, 5, SEGMENT, 1000]), st.integers(0, BUNDLES - 1)
    )
    | st.builds(MarkDue, st.integers(0, OWNERS - 1), st.integers(0, BUNDLES - 1))
    | st.builds(Forget)
    | st.builds(
        Merge,
        job=st.integers(1, JOBS),
        owner=st.integers(0, OWNERS - 1),
        behaviors=st.tuples(
            st.integers(1, 4) | st.integers(1, 5 * SEGMENT) | st.sampled_from([63, 64, 65]),
            st.just(0),
        )
        | st.tuples(st.just(6 * SEGMENT + 1), st.sampled_from([SEGMENT, 1000 * SEGMENT])),
        age=st.integers(1, 10),
        back=st.integers(0, 5),
        bundle=st.none() | st.integers(0, BUNDLES - 1),
    )
    | st.builds(Wait, st.sampled_from([1, FLUSHED_MS, FLUSHED_MS, TTL_MS, TTL_MS, TTL_MS + 1]))
)
histories = st.lists(operations, min_size=1, max_size=12)
lengths = st.integers(1, 5 * SEGMENT) | st.sampled_from([63, 64, 65, 127, 128, 129, 191])
"""Behaviors that a store is configured to keep."""


def spread(i: int) -> int:
    """The i-th of distinct u64 keys whose bytes, packed side by side, also spell other keys."""
    return 1 + i // 2 << 8 * (i % 2)


def time_of(behavior: bytes) -> int:
    """When a packed behavior happened, ms since epoch."""
    return int.from_bytes(behavior[8:16], "little", signed=True)


@dataclass
class Record:
    """What is known of a user whose time is not over."""

    epoch: int
    updated: int
    behaviors: list[bytes] = field(default_factory=list)
    """Every one ever applied."""
    marks: dict[int, int] = field(default_factory=dict)
    event_keys: list[int] = field(default_factory=list)
    """Every one ever applied."""
    owner: int = 0
    covered: dict[int, int] = field(default_factory=dict)
    """By bundle."""
    since: dict[int, int] = field(default_factory=dict)
    """By bundle, where they are due."""
    deleted: int = 0
    """When; 0: never."""
    older: int = 0
    """Behaviors of a merged history that nobody has any more."""
    claim: Claim | None = None

    @property
    def count(self) -> int:
        return self.older + len(self.behaviors)

    @property
    def version(self) -> Version:
        return Version(self.epoch, self.count)

    def newest(self, length: int) -> list[bytes]:
        return self.behaviors[max(0, len(self.behaviors) - length) :]

    def lacking(self, bundle: int) -> int:
        """Behaviors in full segments that a bundle's state does not cover."""
        return max(0, sealed(self.count) - self.covered.get(bundle, 0))


class Model:
    """A user, as the operations so far have left them. Each takes 1 ms.

    ``source_keys`` and ``owner_keys`` are what the operations' small numbers stand for.
    """

    def __init__(self, user: str, source_keys: list[int], owner_keys: list[int]) -> None:
        self.user = user
        self.source_keys = source_keys
        self.owner_keys = owner_keys
        self.now_ms = TTL_MS
        self.record: Record | None = None
        self._next_offsets = [0] * len(source_keys)
        self._sent = 0

    def events(self, send: Send) -> Append:
        """The events that an operation sends; no two behaviors are alike."""
        self._pass()
        start = max(0, self._next_offsets[send.source] - send.back)
        offsets = list(range(start, start + send.number * send.step, send.step))
        ids = range(send.number)
        time_ms = self.now_ms - send.age
        behaviors = [pack_behavior(self._sent + i, time_ms, 0, 0, 1) for i in ids]
        keys = [0] * send.number
        if send.first_id is not None:
            keys = [spread((send.first_id + i) % EVENT_IDS) for i in ids]
        self._sent += send.number
        self._next_offsets[send.source] = max(self._next_offsets[send.source], offsets[-1] + 1)
        return Append(self.user, behaviors, keys, offsets)

    def append(self, send: Send, events: Append) -> Appended:
        """Apply events: how many were applied, replayed, and so on."""
        record = self.record or Record(self.now_ms, self.now_ms)
        source = self.source_keys[send.source]
        applied = replayed = duplicates = deleted = covered = 0
        for behavior, key, offset in zip(
            events.behaviors, events.event_keys, events.offsets, strict=True
        ):
            if source in record.marks and offset <= record.marks[source]:
                replayed += 1
                continue
            record.marks[source] = offset
            if record.deleted and self.now_ms - send.age <= record.deleted:
                deleted += 1
                continue
            if record.claim and self.now_ms - send.age < record.claim.cut:
                covered += 1
                continue
            if key and key in record.event_keys[-RECENT_EVENTS:]:
                duplicates += 1
                continue
            applied += 1
            record.behaviors.append(behavior)
            if key:
                record.event_keys.append(key)
        if applied:
            record.owner = self.owner_keys[send.owner]
        full = sealed(record.count)
        if full and send.bundle is not None and send.bundle not in record.covered:
            record.covered[send.bundle] = 0
            record.since[send.bundle] = self.now_ms
        if full > sealed(record.count - applied):
            for bundle in record.covered:
                record.since.setdefault(bundle, self.now_ms)
        if applied or duplicates or deleted or covered:
            record.updated = self.now_ms
            self.record = record
        return Appended(applied, replayed, duplicates, deleted, covered)

    def history(self, merge: Merge) -> tuple[History, Claim]:
        """What a job has of the user; no two behaviors are alike, nor like those that are sent."""
        self._pass()
        number, older = merge.behaviors
        cut = self.now_ms - merge.back
        newest = min(cut, self.now_ms - merge.age + 1)
        times = range(newest - number, newest)
        items = range(self._sent, self._sent + number)
        self._sent += number
        behaviors = b"".join(
            pack_behavior(item, time, 0, 0, 1) for item, time in zip(items, times, strict=True)
        )
        history = History(self.user, self.owner_keys[merge.owner], behaviors, older)
        return history, Claim(merge.job, cut)

    def merge(self, merge: Merge, history: History, claim: Claim, length: int) -> Merged:
        """Merge it into what a store keeps that has the newest ``length`` behaviors."""
        old = self.record or Record(self.now_ms, self.now_ms)
        if old.claim and old.claim.job == claim.job:
            return Merged(merged_before=1)
        packed = history.behaviors
        rows = [packed[at : at + 25] for at in range(0, len(packed), 25)]
        older, deleted = history.older, 0
        alive = [row for row in rows if time_of(row) > old.deleted] if old.deleted else rows
        if len(alive) < len(rows):
            deleted = older + len(rows) - len(alive)
            older = 0
        if not alive:
            return Merged(deleted=deleted)
        stored = old.newest(length)
        follows = [row for row in stored if time_of(row) >= claim.cut]
        epoch = max(self.now_ms, old.epoch + 1) if self.record else self.now_ms
        new = Record(epoch, self.now_ms, [*alive, *follows], dict(old.marks), older=older)
        new.event_keys, new.deleted = list(old.event_keys), old.deleted
        new.owner = history.owner
        new.covered = dict.fromkeys(old.covered, 0)
        cut = max(claim.cut, old.claim.cut) if old.claim else claim.cut
        new.claim = Claim(claim.job, cut)
        if sealed(new.count):
            if merge.bundle is not None:
                new.covered.setdefault(merge.bundle, 0)
            new.since = dict.fromkeys(new.covered, self.now_ms)
        self.record = new
        return Merged(1, 0, older + len(alive), len(stored) - len(follows), len(follows), deleted)

    def put_interests(self, put: PutInterests) -> Version | None:
        """The version of the interests to be stored; None: there is nobody to store them for.

        Where newer ones are there already, nothing is to change.
        """
        self._pass()
        record = self.known
        if record is None:
            return None
        covered = max(1, record.count - put.behind)
        if covered >= record.covered.get(put.bundle, 0):
            record.covered[put.bundle] = covered
            record.since.pop(put.bundle, None)
            if record.lacking(put.bundle):
                record.since[put.bundle] = self.now_ms
        return Version(record.epoch, covered)

    def mark_due(self, mark: MarkDue) -> int:
        """Whether the user was marked: 0 or 1."""
        self._pass()
        record = self.known
        if record is None or mark.bundle in record.since or not record.lacking(mark.bundle):
            return 0
        record.owner = self.owner_keys[mark.owner]
        record.covered.setdefault(mark.bundle, 0)
        record.since[mark.bundle] = self.now_ms
        return 1

    def forget(self) -> int:
        """Whether there was a sequence: 0 or 1."""
        self._pass()
        known = self.known is not None
        old = self.record or Record(0, 0)
        self.record = Record(
            max(self.now_ms, old.epoch + 1),
            self.now_ms,
            marks=old.marks,
            deleted=self.now_ms,
            claim=old.claim,
        )
        return known

    @property
    def known(self) -> Record | None:
        """The user's record, unless it only remembers that they were deleted."""
        return self.record if self.record and self.record.behaviors else None

    def wait(self, wait: Wait) -> None:
        self._pass(wait.ms)

    def _pass(self, ms: int = 1) -> None:
        """Let time go by, and with it, perhaps, the user's."""
        self.now_ms += ms
        if self.record is not None and self.record.updated + TTL_MS < self.now_ms:
            self.record = None
