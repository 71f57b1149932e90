"""Outages of the store, from when one is noticed until what it may have cost is fed again.

A database that writes to disk later than it answers may have lost what it acknowledged right before
an outage. The marks make it harmless to feed all of it again; but it must come before anything
newer, since later events of a user raise the mark over those that were lost.
"""

from __future__ import annotations

import threading
from typing import Final

BACK_MS: Final = 30_000
"""How long before the outage events are fed again: longer than databases keep writes to themselves,
and than producers' clocks are off."""


class Interruptions:
    """An `infra.store.Interrupted` that remembers. Safe to use from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since_ms: int | None = None

    def __call__(self, since_ms: int) -> None:
        """Take notice of an outage; ``since_ms`` is when the store last answered before."""
        with self._lock:
            self._since_ms = since_ms if self._since_ms is None else min(since_ms, self._since_ms)

    @property
    def pending(self) -> bool:
        """Whether there was one after which nobody has gone back yet."""
        return self._since_ms is not None

    def take(self) -> int | None:
        """From when on all is to be fed again, ms since epoch; None: nothing is. It is forgotten
        here: whoever takes it goes back.
        """
        with self._lock:
            since_ms, self._since_ms = self._since_ms, None
        return None if since_ms is None else since_ms - BACK_MS
