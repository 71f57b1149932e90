"""Damaged records, from when a read comes upon them until a write mends them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from infra.errors import RecordDamaged
from infra.store import Damage
from infra.telemetry import get_logger

if TYPE_CHECKING:
    from prometheus_client import Counter

MOST_USERS: Final = 10_000
"""Users remembered whose segments are to be mended. Beyond it the first ones are forgotten, and
come up again when they are read."""

LOGGED_S: Final = 1.0
"""Least time between two lines of the log: where a disk fails, there are many."""

log: Final = get_logger(__name__)


class Mending:
    """What a store has read of damaged records: each is told of once, and mended with the next
    write of its user. Safe to use from threads.
    """

    def __init__(self, damage: Damage) -> None:
        self._damage = damage
        self._lock = threading.Lock()
        self._segments: dict[str, dict[int, str]] = {}
        self._heads: dict[str, None] = {}

    def head(self, error: RecordDamaged) -> None:
        """A head cannot be read; who writes its user next begins anew."""
        with self._lock:
            new = error.user not in self._heads
            self._heads[error.user] = None
            if len(self._heads) > MOST_USERS:
                del self._heads[next(iter(self._heads))]
        if new:
            self._damage("head", str(error))

    def segments(self, user: str, damaged: dict[int, str]) -> None:
        """Segments cannot be read, by number and why."""
        if not damaged:
            return
        with self._lock:
            known = self._segments.setdefault(user, {})
            new = {number: what for number, what in damaged.items() if number not in known}
            known |= new
            if len(self._segments) > MOST_USERS:
                del self._segments[next(iter(self._segments))]
        for number, what in new.items():
            self._damage("segment", f"segment {number} of user {user!r} {what}")

    @property
    def waiting(self) -> bool:
        """Whether there is anything to mend."""
        return bool(self._segments or self._heads)

    def take(self, user: str) -> list[int]:
        """Numbers of the segments that are to be mended now, of a user whose head was written."""
        if user not in self._segments and user not in self._heads:
            return []
        with self._lock:
            self._heads.pop(user, None)
            return list(self._segments.pop(user, {}))


def counted(counter: Counter) -> Damage:
    """A `Damage` that counts by kind, and logs at most once in `LOGGED_S`."""
    logged_at = -LOGGED_S

    def damage(kind: str, line: str) -> None:
        nonlocal logged_at
        counter.labels(kind).inc()
        now = time.monotonic()
        if now - logged_at >= LOGGED_S:
            logged_at = now
            log.error("stored record damaged, going on with what is left", kind=kind, what=line)

    return damage
