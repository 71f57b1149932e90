"""The ledger: what was done to the scorer and when, and so which answers are right at a moment.

Times are seconds of `time.monotonic`. Whoever writes is the thread that injects; others read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

NOTICED_S: Final = 6.0
"""Longest time after which a process knows that its store has gone, was replaced or is back: it
looks each second, and the breaker leaves a store alone for another; the rest is for a machine that
has much else to do."""

KILLED_S: Final = 1.0
"""Longest time from a kill until all of its connections are seen to be closed."""


@dataclass
class Span:
    """A time in which something was so."""

    began: float
    ended: float = math.inf

    def meets(self, began: float, ended: float) -> bool:
        """Whether it shares a moment with another."""
        return self.began <= ended and began <= self.ended


@dataclass
class Told:
    """What was in a place from some moment on."""

    at: float
    what: str


@dataclass
class Ledger:
    """All that was done."""

    kills: list[float] = field(default_factory=list)
    """Serving processes killed."""
    down: list[Span] = field(default_factory=list)
    """While the scorer as a whole need not take connections, nor keep them."""
    cut: list[Span] = field(default_factory=list)
    """While a process that was told to stop need not keep its connections any more, having had its
    time: on a busy machine it may take longer."""
    leave: list[Span] = field(default_factory=list)
    """While it is to say that it is not ready, since it was told to stop."""
    away: list[Span] = field(default_factory=list)
    """While there was no store."""
    unsure: list[Span] = field(default_factory=list)
    """While there may have been one, or none: it was slow, or came back."""
    refuses: list[Told] = field(default_factory=list)
    """ "refuse" or "degrade": what becomes of rankings without the store."""
    stores: list[Told] = field(default_factory=list)
    """The store in its place."""
    versions: list[Told] = field(default_factory=list)
    """The version of the bundle in its place."""
    bursts: list[Span] = field(default_factory=list)
    """Overload."""

    @contextmanager
    def noting(self, spans: list[Span]) -> Iterator[Span]:
        """A span that lasts as long as the block."""
        span = Span(time.monotonic())
        spans.append(span)
        try:
            yield span
        finally:
            span.ended = time.monotonic()

    def killed(self, began: float, ended: float) -> bool:
        """Whether a kill explains a connection lost in this time, or what is as good as one."""
        cut = any(span.meets(began - KILLED_S, ended) for span in self.cut)
        return cut or any(began - KILLED_S <= at <= ended for at in self.kills)

    def is_down(self, began: float, ended: float) -> bool:
        """Whether the whole scorer was down at some time of these."""
        return any(span.meets(began - KILLED_S, ended) for span in self.down)

    def may_lack_store(self, began: float, ended: float) -> bool:
        """Whether an answer of this time may be made without a store."""
        return any(span.meets(began - NOTICED_S, ended) for span in (*self.away, *self.unsure))

    def lacks_store(self, began: float, ended: float) -> bool:
        """Whether an answer of this time must be made without a store."""
        return any(span.began + NOTICED_S <= began and ended <= span.ended for span in self.away)

    def refusing(self, began: float, ended: float) -> set[str]:
        """What becomes of rankings without the store, in this time."""
        return during(self.refuses, began, ended, 0)

    def stores_at(self, began: float, ended: float) -> set[str]:
        """The stores that may have been read."""
        return during(self.stores, began, ended, NOTICED_S)

    def versions_at(self, began: float, ended: float, late_s: float) -> set[str]:
        """The versions that may have been in service."""
        return during(self.versions, began, ended, late_s)


def during(told: list[Told], began: float, ended: float, late_s: float) -> set[str]:
    """What was in a place, as known to somebody who hears of it late.

    >>> sorted(during([Told(0, "a"), Told(10, "b")], 12, 13, late_s=5))
    ['a', 'b']
    >>> sorted(during([Told(0, "a"), Told(10, "b")], 16, 17, late_s=5))
    ['b']
    """
    ends = [*(one.at for one in told[1:]), math.inf]
    return {
        one.what
        for one, end in zip(told, ends, strict=True)
        if one.at <= ended and began <= end + late_s
    }
