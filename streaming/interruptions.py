"""Outages of the store, from when one is noticed until what it may have cost is made up for.

A database that writes to disk later than it answers may have lost what it acknowledged right before
an outage. The marks make it harmless to feed all of it again; but it must come before anything
newer, since later events of a user raise the mark over those that were lost. Interest states that
are lost cost time alone, and are made anew (`streaming.schedule`).
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from typing import Final

BACK_MS: Final = 30_000
"""How long before the outage events are fed again: longer than databases keep writes to themselves,
and than producers' clocks are off."""

TRAIL_MS: Final = 3 * BACK_MS
"""How long it is remembered where a source stood: longer than anybody goes back from the last
answer of a store."""

TRAIL_STEP_MS: Final = 1_000
"""Time between two places of it."""


class Interruptions:
    """An `infra.store.Interrupted` that remembers, for one who goes back. Safe to use from threads.

    >>> of_events = Interruptions()
    >>> of_states = of_events.follower()
    >>> of_events(90_000)
    >>> of_events.take(), of_events.take(), of_states.take()
    (60000, None, 60000)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since_ms: int | None = None
        self._followers: list[Interruptions] = []

    def follower(self) -> Interruptions:
        """Another one, for somebody else, that is told of all outages from now on."""
        follower = Interruptions()
        self._followers.append(follower)
        return follower

    def __call__(self, since_ms: int) -> None:
        """Take notice of an outage; ``since_ms`` is when the store last answered before."""
        with self._lock:
            self._since_ms = since_ms if self._since_ms is None else min(since_ms, self._since_ms)
        for follower in self._followers:
            follower(since_ms)

    @property
    def pending(self) -> bool:
        """Whether there was one after which nobody has gone back yet."""
        return self._since_ms is not None

    def take(self) -> int | None:
        """From when on all is to be done again, ms since epoch; None: nothing is. It is forgotten
        here: whoever takes it goes back.
        """
        with self._lock:
            since_ms, self._since_ms = self._since_ms, None
        return None if since_ms is None else since_ms - BACK_MS


class Trail:
    """Where a source of events stood in the last while: a place about every second.

    >>> trail = Trail()
    >>> for ms, offset in ((1_000, 0), (2_000, 10), (2_500, 20), (9_000, 30)):
    ...     trail.passed(ms, offset)
    >>> trail.at(1_999), trail.at(5_000), trail.at(0)
    (0, 10, 0)
    """

    def __init__(self) -> None:
        self._places: deque[tuple[int, int]] = deque()

    def passed(self, now_ms: int, offset: int) -> None:
        """Take note that all below an offset is applied by now, ms since epoch."""
        places = self._places
        if places and now_ms < places[-1][0] + TRAIL_STEP_MS:
            return
        places.append((now_ms, offset))
        while len(places) > 1 and places[1][0] < now_ms - TRAIL_MS:
            places.popleft()

    def at(self, moment_ms: int) -> int | None:
        """The last offset of which it is known that it was reached by that moment, at most; the
        first of all where that came later. None: it was nowhere yet.
        """
        before = [offset for ms, offset in self._places if ms <= moment_ms] or [
            offset for _, offset in islice(self._places, 1)
        ]
        return before[-1] if before else None
