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
from infra.store import Append, Appended, Version

TTL_MS = 1_000_000
FLUSHED_MS = 10_000
"""So long after their last write some stores tidy up."""
SOURCES = 3
OWNERS = 2
BUNDLES = 2
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
class Wait:
    ms: int


Operation = Send | PutInterests | MarkDue | Forget | Wait

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
    | st.builds(Wait, st.sampled_from([1, FLUSHED_MS, FLUSHED_MS, TTL_MS, TTL_MS, TTL_MS + 1]))
)
histories = st.lists(operations, min_size=1, max_size=12)
lengths = st.integers(1, 5 * SEGMENT) | st.sampled_from([63, 64, 65, 127, 128, 129, 191])
"""Behaviors that a store is configured to keep."""


def spread(i: int) -> int:
    """The i-th of distinct u64 keys whose bytes, packed side by side, also spell other keys."""
    return 1 + i // 2 << 8 * (i % 2)


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

    @property
    def version(self) -> Version:
        return Version(self.epoch, len(self.behaviors))

    def newest(self, length: int) -> list[bytes]:
        return self.behaviors[max(0, len(self.behaviors) - length) :]

    def lacking(self, bundle: int) -> int:
        """Behaviors in full segments that a bundle's state does not cover."""
        return max(0, sealed(len(self.behaviors)) - self.covered.get(bundle, 0))


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
        applied = replayed = duplicates = deleted = 0
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
            if key and key in record.event_keys[-RECENT_EVENTS:]:
                duplicates += 1
                continue
            applied += 1
            record.behaviors.append(behavior)
            if key:
                record.event_keys.append(key)
        if applied:
            record.owner = self.owner_keys[send.owner]
        full = sealed(len(record.behaviors))
        if full and send.bundle is not None and send.bundle not in record.covered:
            record.covered[send.bundle] = 0
            record.since[send.bundle] = self.now_ms
        if full > sealed(len(record.behaviors) - applied):
            for bundle in record.covered:
                record.since.setdefault(bundle, self.now_ms)
        if applied or duplicates or deleted:
            record.updated = self.now_ms
            self.record = record
        return Appended(applied, replayed, duplicates, deleted)

    def put_interests(self, put: PutInterests) -> Version | None:
        """The version of the interests to be stored; None: there is nobody to store them for.

        Where newer ones are there already, nothing is to change.
        """
        self._pass()
        record = self.known
        if record is None:
            return None
        covered = max(1, len(record.behaviors) - put.behind)
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
            max(self.now_ms, old.epoch + 1), self.now_ms, marks=old.marks, deleted=self.now_ms
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
