"""Turns: which requests a process takes on, by the time they will need, and which it refuses.

What a request costs is guessed from its body's size, by what requests of its route took before. So
it can be refused on its head, before anything is spent on it: who cannot be answered in time is
told so while another process can still be tried.

A burst may wait as long as its deadlines allow. Once more comes than can be done, a queue helps
nobody: it stays as long as it may be, and everybody waits that long. Then no more wait than keep
the ranking thread busy, and those who are answered are answered about as quickly as ever.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, Literal, NamedTuple

from infra.metrics import ScorerMetrics
from scorer.limits import RETRY_AFTER_S, Refused

LEVELS: Final = 3
"""Levels of urgency: 0 goes first."""
NORMAL: Final = 1

STANDING: Final = (4.0, 2.0, 1.0)
"""How many usual requests may be ahead of one that is taken on while more comes than can be done,
by level: two keep the ranking thread busy whatever the event loop does meanwhile."""

FULL: Final = 1.2
"""Load from which on more comes than can be done, surely: clients of whom each waits for its answer
before it asks again keep a scorer at 1 and no more, and are all to be answered."""

MARGIN: Final = 0.8
"""How much of the time to its deadline a request may be expected to wait: costs are guesses."""

HEARD: Final = 0.5
"""Share of its time that a request has left when it is heard of, at least: how long the socket had
it is a guess, by what answers took lately. After a moment in which the machine stood still it is
far off; and were all refused by it, there would be no answer to correct it."""

LOAD_S: Final = 0.25
"""Time over which the load is told, at least: longer than a burst that deadlines leave time for."""

LOAD_REQUESTS: Final = 32
"""Requests over which it is told, at least: fewer are no measure of it."""

LEARNED: Final = 8
"""So many requests of a route tell what the next one takes. Until then that is what the quickest of
them took: whoever knows nothing must not refuse."""

SHARE: Final = 0.5
"""How much of the waiting time one client may take while there are others."""

OTHERS_S: Final = 1.0
"""A client who has asked for nothing so long is no other."""

RETRY_AT_MOST_S: Final = 10
"""Longest time after which a refused client is asked to come again."""

SHARE_OF_NEW: Final = 1 / 32
"""How much the newest request changes what the next is expected to cost."""

OUTLIER: Final = 8.0
"""A request that took so many times what was expected counts as this many: a moment in which the
machine stood still says nothing of the next request."""

NARROW: Final = 1 / 8
"""Spread of sizes, as a share of the usual one, from which on it tells more than the guess that
size does not matter."""

Reason = Literal["overload", "deadline", "client"]


class Head(NamedTuple):
    """What is known of a request before its body is read."""

    route: str
    size: int
    """Bytes of the body; 0: not told."""
    timeout_s: float | None = None
    """Time in which its sender wants the answer; None: it does not say."""
    level: int = NORMAL
    client: str = ""
    """Who sends it."""


class Turn:
    """A request that was taken on."""

    __slots__ = (
        "apart_s",
        "began_at",
        "cost_s",
        "deadline",
        "finished_at",
        "head",
        "taken_at",
        "timeout_s",
    )

    def __init__(
        self, head: Head, taken_at: float, timeout_s: float, deadline: float, cost_s: float
    ) -> None:
        self.head = head
        self.timeout_s = timeout_s
        self.taken_at = taken_at
        self.deadline = deadline
        """Seconds of the clock, by which it is to be answered."""
        self.cost_s = cost_s
        """What it is expected to take of the ranking thread."""
        self.apart_s = 0.0
        """Time in which it waited for the store while others could be ranked."""
        self.began_at: float | None = None
        """When the ranking thread began with it; None: it has not."""
        self.finished_at: float | None = None
        """When the ranking thread was done with it; None: it never came to it."""


this_turn: ContextVar[Turn | None] = ContextVar("this_turn", default=None)
"""The turn of the request that the current task answers."""


class Turns:
    """The admitted requests of one process, over all its routes and protocols. Used from its event
    loop only.
    """

    def __init__(
        self,
        max_waiting: int,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
        metrics: ScorerMetrics | None = None,
    ) -> None:
        """Begin without an idea of what requests cost.

        Args:
            max_waiting: requests that may wait, whatever they are expected to cost.
            deadline_s: time in which a request is answered that names none, and at most.
            clock: seconds.
            metrics: where it is told how long turns are waited for; None: nowhere.
        """
        self._metrics = metrics
        self.max_waiting = max_waiting
        self.deadline_s = deadline_s
        self._clock = clock
        self._costs: dict[str, Cost] = {}
        self._usual = Cost()
        self._taken = 0
        self._ahead = [0.0] * LEVELS
        """Seconds of work taken on and not done, by level."""
        self._of_client: dict[str, float] = {}
        """The same, by client who has some."""
        self._clients: list[tuple[str, float]] = [("", -math.inf), ("", -math.inf)]
        """The two clients who asked last, and when."""
        self._offered_s = 0.0
        """Seconds of work that lately came, as it is guessed; the newest counts most."""
        self._served_s = 0.0
        """The same of what was done."""
        self._load_at = clock()
        self._done_at = -math.inf
        self._lag_s = 0.0

    @property
    def load(self) -> float:
        """What lately came, as a share of what can be done: of the time that there was, or of what
        was done in it, whichever is less. The one is wrong on a machine that stands still now and
        then, where all seems to take long, the other after a burst.
        """
        return self._offered_s / max(self._load_over_s(), self._served_s)

    @property
    def retry_after_s(self) -> int:
        """When a refused client should come again: were so many times too many to come back evenly
        over as many seconds, they could be answered.
        """
        return min(RETRY_AT_MOST_S, max(1, math.ceil(self.load)))

    def now(self) -> float:
        """Seconds of the clock."""
        return self._clock()

    def deadline(self, head: Head) -> float:
        """When the request is to be answered, seconds of the clock, counted from when it came."""
        # The event loop hears of a request some time after the socket has it.
        timeout_s = self._timeout_s(head)
        return self._clock() + max(timeout_s - self._lag_s, HEARD * timeout_s)

    def refuses(self, head: Head, deadline: float) -> Reason | None:
        """Why a request is not taken on; None: it may be. Called once a request."""
        now = self._clock()
        cost_s = self._cost(head.route).of(head.size)
        self._note(head.client, cost_s, now)
        if self._taken > self.max_waiting:
            return "overload"
        if deadline <= now:
            return "deadline"
        if not self._taken:
            return None  # whatever it costs: nothing is learned from who is never served
        ahead_s = sum(self._ahead[: head.level + 1])
        left_s = MARGIN * (deadline - now) - cost_s
        if ahead_s > left_s:
            return "deadline"
        if self.load > FULL:
            left_s = min(left_s, STANDING[head.level] * self._usual.mean_s)
            if ahead_s > left_s:
                return "overload"
        own_s = self._of_client.get(head.client, 0.0)
        if own_s > SHARE * left_s and self._others(head.client, now):
            return "client"
        return None

    def expect(self, head: Head) -> Callable[[], None]:
        """Count a request that is not refused as one that waits until the returned function is
        called: heads come many at once, and none of theirs is taken while the others are judged.
        """
        cost_s = self._cost(head.route).of(head.size)
        self._enter(head, cost_s)
        return lambda: self._leave(head, cost_s)

    def take(self, head: Head, deadline: float) -> Turn:
        """Take a request on that is not refused; it is to be given back, whatever becomes of it."""
        cost_s = self._cost(head.route).of(head.size)
        turn = Turn(head, self._clock(), self._timeout_s(head), deadline, cost_s)
        self._enter(head, cost_s)
        return turn

    def admit(self, head: Head) -> Turn:
        """Take a request on, or raise `Refused` (429): for whoever has it as a whole."""
        deadline = self.deadline(head)
        reason = self.refuses(head, deadline)
        if reason is not None:
            raise self.refusal(reason)
        return self.take(head, deadline)

    def give_back(self, turn: Turn) -> None:
        """Note that a request has its answer, or never will, and learn from it what such cost."""
        self._leave(turn.head, turn.cost_s)
        if self._metrics is not None:
            if turn.began_at is not None:
                self._metrics.queue_seconds.observe(turn.began_at - turn.taken_at)
            if self._clock() > turn.deadline:
                self._metrics.deadline_misses.inc()
        if turn.finished_at is not None:
            self._learn(turn, turn.finished_at)

    def refusal(self, reason: Reason) -> Refused:
        """What is said to a request that is not taken on."""
        return Refused(429, reason, "request", TOLD[reason], self.retry_after_s)

    def _enter(self, head: Head, cost_s: float) -> None:
        self._taken += 1
        self._ahead[head.level] += cost_s
        self._of_client[head.client] = self._of_client.get(head.client, 0.0) + cost_s

    def _leave(self, head: Head, cost_s: float) -> None:
        self._taken -= 1
        if self._taken:
            self._ahead[head.level] = max(0.0, self._ahead[head.level] - cost_s)
            left_s = self._of_client.pop(head.client, 0.0) - cost_s
            if left_s > 1e-9:
                self._of_client[head.client] = left_s
        else:  # sums of many small numbers end at 0 here
            self._ahead = [0.0] * LEVELS
            self._of_client.clear()

    def _timeout_s(self, head: Head) -> float:
        """Time in which the request is to be answered."""
        if head.timeout_s is None:
            return self.deadline_s
        return min(head.timeout_s, self.deadline_s)

    def _learn(self, turn: Turn, finished_at: float) -> None:
        began = max(self._done_at, turn.taken_at + turn.apart_s)
        self._done_at = max(self._done_at, finished_at)
        cost_s = max(0.0, finished_at - began)
        self._fade(self._clock())
        self._served_s += turn.cost_s
        self._cost(turn.head.route).learn(turn.head.size, cost_s)
        self._usual.learn(turn.head.size, cost_s)
        self._lag_s += (max(0.0, self._clock() - finished_at) - self._lag_s) / 8

    def _cost(self, route: str) -> Cost:
        cost = self._costs.get(route)
        if cost is None:
            cost = self._costs[route] = Cost()
        return cost

    def _note(self, client: str, cost_s: float, now: float) -> None:
        """Take note of who asked, and for how much."""
        self._fade(now)
        self._offered_s += cost_s
        if client != self._clients[0][0]:
            self._clients.reverse()
        self._clients[0] = client, now

    def _fade(self, now: float) -> None:
        """Have what came and what was done count less, by the time since the last time."""
        left = math.exp((self._load_at - now) / self._load_over_s())
        self._offered_s *= left
        self._served_s *= left
        self._load_at = now

    def _load_over_s(self) -> float:
        """Seconds over which the load is told."""
        return max(LOAD_S, LOAD_REQUESTS * self._usual.mean_s)

    def _others(self, client: str, now: float) -> bool:
        """Whether somebody else than the client, who has just asked, did so lately."""
        other, at = self._clients[1]
        return other != client and now - at < OTHERS_S


def overdue(turn: Turn) -> Refused:
    """What is said to a request that was taken on and not answered by its deadline."""
    return Refused(
        503,
        "deadline",
        "request",
        f"was not scored within {turn.timeout_s:g} s; the scorer is overloaded or its store is "
        "slow",
        RETRY_AFTER_S,
    )


class Cost:
    """What requests of a route take, by their size: a line through those before, newest first."""

    __slots__ = ("_count", "_cov", "_least_s", "_size", "_var", "mean_s")

    def __init__(self) -> None:
        self.mean_s = 0.0
        """Seconds that the usual one takes."""
        self._count = 0
        self._least_s = 0.0
        self._size = 0.0
        self._var = 0.0
        self._cov = 0.0

    def of(self, size: int) -> float:
        """Seconds that one of so many bytes is expected to take.

        >>> cost = Cost()
        >>> for _ in range(200):
        ...     cost.learn(1000, 0.001)
        ...     cost.learn(9000, 0.003)
        >>> round(cost.of(5000), 4)
        0.002
        """
        if self._count < LEARNED:
            return self._least_s
        return self._line(size)

    def _line(self, size: int) -> float:
        if self._cov <= 0:
            return self.mean_s
        # No steeper than through nothing for no bytes, and flat where all have nearly one size.
        slope = self._cov / (self._var + (NARROW * self._size) ** 2)
        slope = min(slope, self.mean_s / self._size)
        # Smaller ones than ever seen still cost something.
        return max(self.mean_s / OUTLIER, self.mean_s + slope * (size - self._size))

    def learn(self, size: int, seconds: float) -> None:
        """Take note of what one of so many bytes took."""
        self._count += 1
        if self._count <= 2:  # the first pays for what is made once, so the second counts instead
            self.mean_s, self._least_s, self._size = seconds, seconds, float(size)
            return
        self._least_s = min(self._least_s, seconds)
        seconds = min(seconds, OUTLIER * self._line(size))
        by_size, by_cost = size - self._size, seconds - self.mean_s
        share = max(SHARE_OF_NEW, 1 / (self._count - 1))  # few are their mean
        self._size += share * by_size
        self.mean_s += share * by_cost
        rest = 1 - share
        self._var = rest * (self._var + share * by_size * by_size)
        self._cov = rest * (self._cov + share * by_size * by_cost)


TOLD: Final[dict[Reason, str]] = {
    "overload": "came while more was to be ranked than can be; try another, or add processes",
    "deadline": "could not be answered by its deadline, for those who wait; try another",
    "client": "is one of too many of its sender's that wait; others have their turn",
}
