"""The store in a process's memory, for tests and for trying things; nothing survives it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from infra import records
from infra.errors import RecordDamaged, RecordNewer
from infra.segments import LOST
from infra.store import (
    AS_IT_COMES,
    Append,
    Appended,
    Claim,
    DueUser,
    Group,
    Held,
    History,
    Identity,
    InterestWrite,
    Merged,
    Profile,
    StoredSequence,
    StoreOptions,
    UserPage,
    Version,
    Written,
)
from infra.stores.identity import new_identity, require_any_id
from infra.stores.mending import Mending


class MemoryStore:
    """`infra.store.Store` on dictionaries under one lock."""

    local = True

    def __init__(self, options: StoreOptions = AS_IT_COMES) -> None:
        require_any_id(options, "the store at memory://")
        self.identity: Identity | None = new_identity(options)
        self._length = options.length
        self._ring = records.ring_size(options.length)
        self._ttl_ms = int(options.ttl_s * 1000)
        self._states_kept = options.states
        self._clock = options.clock
        self._mending = Mending(options.damage)
        self._lock = threading.Lock()
        self._heads: dict[str, bytes] = {}
        self._segments: dict[str, dict[int, bytes]] = {}
        self._states: dict[str, dict[int, bytes]] = {}
        self._bookmarks: dict[str, bytes] = {}
        self._positions: dict[int, int] = {}

    def append(
        self, groups: Sequence[Group], now_ms: int, *, digest: bytes | None = None
    ) -> Appended:
        bundle = records.bundle_key(digest) if digest else 0
        total = Appended()
        with self._lock:
            for group in records.in_pieces(groups):
                for new in group.appends:
                    total += self._append(group, new, now_ms, bundle)
                if group.reached is not None:
                    key = group.source.key
                    self._positions[key] = max(self._positions.get(key, -1), group.reached)
        return total

    def merge(
        self,
        histories: Sequence[History],
        claim: Claim,
        now_ms: int,
        *,
        digest: bytes | None = None,
    ) -> Merged:
        bundle = records.bundle_key(digest) if digest else 0
        total = Merged()
        with self._lock:
            for history in histories:
                total.add(self._merge(history, claim, now_ms, bundle))
        return total

    def positions(self, sources: Sequence[int]) -> list[int | None]:
        with self._lock:
            return [self._positions.get(source) for source in sources]

    def sequences(self, users: Sequence[str]) -> list[StoredSequence | None]:
        with self._lock:
            return [self._sequence(user) for user in users]

    def profiles(self, users: Sequence[str], digest: bytes) -> list[Profile | None]:
        bundle = records.bundle_key(digest)
        with self._lock:
            return [self._profile(user, bundle) for user in users]

    def interests(self, users: Sequence[str], digest: bytes) -> list[bytes | None]:
        bundle = records.bundle_key(digest)
        with self._lock:
            return [self._states.get(user, {}).get(bundle) for user in users]

    def put_interests(self, writes: Sequence[InterestWrite], now_ms: int) -> list[Written]:
        with self._lock:
            return [self._put_interest(write, now_ms) for write in writes]

    def due(self, owner: int, digest: bytes, limit: int) -> list[DueUser]:
        bundle = records.bundle_key(digest)
        found: list[DueUser] = []
        with self._lock:
            for user in self._heads:
                # There is no list: of a head of a later format nobody knows whether it is due.
                with contextlib.suppress(RecordNewer):
                    counters = self._counters(user)
                    if counters and counters.owner == owner and counters.coverage(bundle).since:
                        found.append(counters.due_user(user, bundle))
        return sorted(found, key=lambda due: (due.since, due.user))[:limit]

    def mark_due(self, owner: int, digest: bytes, users: Sequence[str], now_ms: int) -> int:
        bundle = records.bundle_key(digest)
        marked = 0
        with self._lock:
            for user in users:
                counters = self._counters(user)
                if counters is None:
                    continue
                if bundle not in self._states.get(user, {}):
                    counters.found(bundle, 0)
                changed = records.set_due(
                    self._heads[user], counters, owner, bundle, now_ms, states=self._states_kept
                )
                if changed.head is not None:
                    self._heads[user] = changed.head
                    marked += 1
        return marked

    def users(self, after: bytes, limit: int) -> UserPage:
        with self._lock:
            names = sorted(
                user.encode() for user, head in self._heads.items() if not records.is_deleted(head)
            )
        found = [name for name in names if name > after][: limit + 1]
        more = found[limit - 1] if len(found) > limit else None
        return UserPage([name.decode() for name in found[:limit]], more)

    def empty(self) -> bool:
        return not self.users(b"", 1).users

    def held(self, users: Sequence[str]) -> list[Held | None]:
        with self._lock:
            return [
                records.held(
                    self._heads.get(user),
                    user,
                    [len(segment) for segment in self._segments.get(user, {}).values()],
                    {bundle: len(state) for bundle, state in self._states.get(user, {}).items()},
                )
                for user in users
            ]

    def forget(self, users: Sequence[str], now_ms: int) -> int:
        known = 0
        with self._lock:
            for user in users:
                known += self._live_head(user) is not None
                old = self._heads.get(user)
                try:
                    if old and records.expired(old, user, self._ttl_ms, now_ms):
                        old = None
                    mark = records.delete(old, user, now_ms)
                except RecordDamaged as error:
                    self._mending.head(error)
                    mark = records.delete(None, user, now_ms)
                self._remove(user)
                self._heads[user] = mark
        return known

    def get_bookmark(self, name: str) -> bytes | None:
        with self._lock:
            return self._bookmarks.get(name)

    def put_bookmark(self, name: str, bookmark: bytes | None) -> None:
        with self._lock:
            if bookmark is None:
                self._bookmarks.pop(name, None)
            else:
                self._bookmarks[name] = bookmark

    def sweep(self, now_ms: int, limit: int) -> int:
        with self._lock:
            expired = [
                user
                for user, head in self._heads.items()
                if records.expired(head, user, self._ttl_ms, now_ms)
            ][:limit]
            for user in expired:
                self._remove(user)
        return len(expired)

    def ping(self) -> None:
        """Memory is always there."""

    def room(self) -> None:
        """It takes what the process may."""

    def cautions(self) -> Sequence[str]:
        return ["it is in the memory of its process, and ends with it"]

    def close(self) -> None:
        """Nothing to release."""

    def _append(self, group: Group, new: Append, now_ms: int, bundle: int) -> Appended:
        user, source = new.user, group.source
        head = self._heads.get(user)
        try:
            if head and records.expired(head, user, self._ttl_ms, now_ms):
                self._remove(user)
                head = None
            grown = records.grow(
                head,
                source.key,
                source.owner,
                new,
                now_ms,
                bundle,
                self._states_kept,
                source.dead,
            )
        except RecordDamaged as error:
            self._mending.head(error)
            self._remove(user)
            grown = records.grow(
                None, source.key, source.owner, new, now_ms, bundle, self._states_kept
            )
        if grown.head is not None:
            self._mend(user)
            self._heads[user], full = records.seal(grown.head, self._ring)
            ring = self._segments.setdefault(user, {})
            ring.update((number % self._ring, segment) for number, segment in full)
        return grown.appended

    def _merge(self, history: History, claim: Claim, now_ms: int, bundle: int) -> Merged:
        user = history.user
        old = self._heads.get(user)
        head, stored = None, records.NOTHING
        try:
            if old and not records.expired(old, user, self._ttl_ms, now_ms):
                head = records.decode_head(old, user)
                stored = self._newest(user, head, self._length).behaviors
        except RecordDamaged as error:
            self._mending.head(error)
        if head and head.claim and head.claim.job == claim.job:
            return Merged(merged_before=1)
        states = self._states_kept
        joined = records.merge(head, stored, history, claim, now_ms, self._ring, bundle, states)
        if joined.count:
            self._remove(user)
            self._mending.take(user)
            self._heads[user], full = joined.sealed()
            self._segments[user] = {number % self._ring: segment for number, segment in full}
        return joined.merged

    def _sequence(self, user: str) -> StoredSequence | None:
        head = self._decoded(user)
        if head is None:
            return None
        newest = self._newest(user, head, self._length)
        return StoredSequence(head.version, newest.behaviors, head.marks, newest.lost)

    def _profile(self, user: str, bundle: int) -> Profile | None:
        head = self._decoded(user)
        if head is None:
            return None
        state = self._states.get(user, {}).get(bundle)
        version = None
        if state is not None:
            version = Version(head.epoch, head.coverage(bundle).covered)
        newest = self._newest(user, head, head.uncovered(version, self._length))
        return Profile(head.version, newest.behaviors, state, version, newest.lost)

    def _newest(self, user: str, head: records.Head, length: int) -> records.Newest:
        ring = self._segments.get(user, {})
        segments = [ring.get(number % self._ring) for number in head.segments(length)]
        newest = head.newest(segments, length)
        self._mending.segments(user, newest.damaged)
        return newest

    def _put_interest(self, write: InterestWrite, now_ms: int) -> Written:
        user, bundle = write.user, records.bundle_key(write.digest)
        head = self._live_head(user)
        counters = self._counters(user)
        if head is None or counters is None:
            return Written.GONE
        covered = write.version.count
        if counters.epoch != write.version.epoch or counters.coverage(bundle).covered > covered:
            return Written.STALE
        changed = records.cover(head, counters, bundle, covered, now_ms, states=self._states_kept)
        assert changed.head is not None
        self._mend(user)
        self._heads[user] = changed.head
        states = self._states.setdefault(user, {})
        states[bundle] = write.payload
        for dropped in changed.dropped:
            states.pop(dropped, None)
        return Written.STORED

    def _mend(self, user: str) -> None:
        for number in self._mending.take(user):
            self._segments.setdefault(user, {})[number % self._ring] = LOST

    def _counters(self, user: str) -> records.Counters | None:
        head = self._live_head(user)
        try:
            return None if head is None else records.read_counters(head, user)
        except RecordDamaged as error:
            self._mending.head(error)
            return None

    def _decoded(self, user: str) -> records.Head | None:
        head = self._live_head(user)
        try:
            return None if head is None else records.decode_head(head, user)
        except RecordDamaged as error:
            self._mending.head(error)
            return None

    def _live_head(self, user: str) -> bytes | None:
        """The head of a user who is there: not expired, and not deleted."""
        head = self._heads.get(user)
        if head is None or records.is_deleted(head):
            return None
        try:
            if records.expired(head, user, self._ttl_ms, self._clock()):
                return None
        except RecordDamaged:  # whoever decodes it tells
            pass
        return head

    def _remove(self, user: str) -> None:
        """Remove all that is kept of a user."""
        self._heads.pop(user, None)
        self._segments.pop(user, None)
        self._states.pop(user, None)
