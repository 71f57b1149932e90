"""The store in a process's memory, for tests and for trying things; nothing survives it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from infra import records
from infra.behaviors import Source
from infra.store import (
    Append,
    Appended,
    Behaviors,
    DueUser,
    InterestWrite,
    Profile,
    StoredSequence,
    Version,
    Written,
    wall_clock_ms,
)


class MemoryStore:
    """`infra.store.Store` on dictionaries under one lock."""

    def __init__(
        self,
        *,
        length: int = 1000,
        ttl_s: float = 0,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._length = length
        self._ring = records.ring_size(length)
        self._ttl_ms = int(ttl_s * 1000)
        self._clock = clock
        self._lock = threading.Lock()
        self._heads: dict[str, bytes] = {}
        self._segments: dict[str, dict[int, bytes]] = {}
        self._interests: dict[str, tuple[Version, bytes]] = {}
        self._positions: dict[str, bytes] = {}

    def append(self, source: Source, appends: Sequence[Append], now_ms: int) -> Appended:
        total = Appended(0, 0, 0, [])
        with self._lock:
            for new in appends:
                head = self._heads.get(new.user)
                if head and records.expired(head, new.user, self._ttl_ms, now_ms):
                    self._forget(new.user)
                    head = None
                grown = records.grow(head, source.key, source.owner, new, now_ms)
                total.applied += grown.applied
                total.replayed += grown.replayed
                total.duplicates += grown.duplicates
                total.counts.append(grown.count)
                if grown.head is not None:
                    self._heads[new.user], full = records.seal(grown.head)
                    ring = self._segments.setdefault(new.user, {})
                    ring.update((number % self._ring, segment) for number, segment in full)
        return total

    def sequences(self, users: Sequence[str]) -> list[StoredSequence | None]:
        with self._lock:
            return [self._sequence(user) for user in users]

    def profiles(self, users: Sequence[str]) -> list[Profile | None]:
        with self._lock:
            return [self._profile(user) for user in users]

    def put_interests(self, writes: Sequence[InterestWrite], now_ms: int) -> list[Written]:
        with self._lock:
            return [self._put_interest(write, now_ms) for write in writes]

    def due(self, owner: int, limit: int) -> list[DueUser]:
        with self._lock:
            found = [
                DueUser(user, counters.since, counters.waiting)
                for user, head in self._heads.items()
                if (counters := records.read_counters(head, user)).since and counters.owner == owner
            ]
        return sorted(found, key=lambda due: (due.since, due.user))[:limit]

    def mark_due(self, owner: int, users: Sequence[str], now_ms: int) -> None:
        with self._lock:
            for user in users:
                head = self._heads.get(user)
                if head is None:
                    continue
                counters = records.read_counters(head, user)
                self._heads[user] = records.set_due(head, counters, owner, now_ms) or head

    def users(self, after: str, limit: int) -> list[str]:
        with self._lock:
            return sorted(user for user in self._heads if user > after)[:limit]

    def get_position(self, name: str) -> bytes | None:
        with self._lock:
            return self._positions.get(name)

    def put_position(self, name: str, position: bytes | None) -> None:
        with self._lock:
            if position is None:
                self._positions.pop(name, None)
            else:
                self._positions[name] = position

    def sweep(self, now_ms: int, limit: int) -> int:
        with self._lock:
            expired = [
                user
                for user, head in self._heads.items()
                if records.expired(head, user, self._ttl_ms, now_ms)
            ][:limit]
            for user in expired:
                self._forget(user)
        return len(expired)

    def ping(self) -> None:
        """Memory is always there."""

    def close(self) -> None:
        """Nothing to release."""

    def _sequence(self, user: str) -> StoredSequence | None:
        raw = self._live_head(user)
        if raw is None:
            return None
        head = records.decode_head(raw, user)
        return StoredSequence(head.version, self._newest(user, head, self._length), head.marks)

    def _profile(self, user: str) -> Profile | None:
        raw = self._live_head(user)
        if raw is None:
            return None
        head = records.decode_head(raw, user)
        version, payload = self._interests.get(user, (None, None))
        recent = self._newest(user, head, head.uncovered(version, self._length))
        return Profile(head.version, recent, payload, version)

    def _newest(self, user: str, head: records.Head, length: int) -> Behaviors:
        ring = self._segments.get(user, {})
        segments = [ring[number % self._ring] for number in head.segments(length)]
        return head.newest(segments, length, user)

    def _put_interest(self, write: InterestWrite, now_ms: int) -> Written:
        head = self._live_head(write.user)
        if head is None:
            return Written.GONE
        counters = records.read_counters(head, write.user)
        stored = self._interests.get(write.user)
        if counters.epoch != write.version.epoch or (stored and stored[0] > write.version):
            return Written.STALE
        self._interests[write.user] = write.version, write.payload
        self._heads[write.user] = records.cover(head, counters, write.version.count, now_ms)
        return Written.STORED

    def _live_head(self, user: str) -> bytes | None:
        head = self._heads.get(user)
        if head is None or records.expired(head, user, self._ttl_ms, self._clock()):
            return None
        return head

    def _forget(self, user: str) -> None:
        del self._heads[user]
        self._segments.pop(user, None)
        self._interests.pop(user, None)
