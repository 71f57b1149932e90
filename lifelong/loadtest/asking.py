"""Rankings that are asked for when they are due, over several scorers in turn."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from infra.arrays import F64
from infra.errors import LifelongError, RequestError, one_line
from lifelong.arrivals import Answers
from scorer.client import AsyncRankClient, ScorerError

UNDER_WAY: Final = 400
"""Requests under way at once, at most; a further one waits, and that counts."""

OUTRUN: Final = (
    "not sent in time, with as many under way as may be: ask for less, or from several machines"
)


@dataclass
class Asked:
    """What became of the rankings."""

    answers: Answers
    sent: F64
    """f64[n]: from when each was due to when it was sent, s: what this side adds to latencies."""
    degraded: int = 0
    histories: Counter[str] = field(default_factory=Counter)
    """Rankings by what was known of the user."""
    said: dict[int, str] = field(default_factory=dict)
    """The first error of each status."""

    @property
    def errors(self) -> float:
        """The share of those that were not answered with a ranking."""
        return 1.0 - self.answers.share(200)

    def report(self) -> dict[str, Any]:
        """Its figures."""
        statuses = Counter(self.answers.status.tolist())
        n = max(1, len(self.answers.status))
        good = statuses[200]
        return {
            "asked": len(self.answers.status),
            "per_s": round(self.answers.rate, 1),
            "p50_ms": round(self.answers.quantile_ms(0.5), 2) if good else None,
            "p99_ms": round(self.answers.quantile_ms(0.99), 2) if good else None,
            "sent_late_p99_ms": round(1000 * float(np.quantile(self.sent, 0.99)), 2)
            if len(self.sent)
            else None,
            "errors": round(self.errors, 5) if len(self.answers.status) else 0.0,
            "statuses": {str(one): round(many / n, 5) for one, many in sorted(statuses.items())},
            "degraded": round(self.degraded / max(1, good), 5),
            "histories": {
                kind: round(many / max(1, good), 5) for kind, many in sorted(self.histories.items())
            },
            "said": {str(status): line for status, line in sorted(self.said.items())},
        }


async def ask_all(
    clients: Sequence[AsyncRankClient],
    due: F64,
    seconds: float,
    users: Sequence[str],
    candidates: Sequence[Sequence[str]],
    rng: np.random.Generator,
    timeout_s: float,
) -> Asked:
    """Ask for a ranking at each of the times in ``due``, s from now, for users drawn at random.

    One that could not be sent for ``timeout_s`` is not sent any more, so that all ends in time.
    """
    n = len(due)
    of = rng.integers(len(users), size=n).tolist()
    asked = Asked(Answers(seconds, due, np.full(n, np.inf), np.zeros(n, np.int64)), np.zeros(n))
    turns = asyncio.Semaphore(UNDER_WAY)
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def ask(number: int, at: float) -> None:
        async with turns:
            late = asked.sent[number] = loop.time() - began - at
            if late > timeout_s:
                asked.said.setdefault(0, OUTRUN)
                return
            client = clients[number % len(clients)]
            try:
                answer = await client.rank(users[of[number]], candidates[number % len(candidates)])
            except (ScorerError, RequestError) as error:
                asked.answers.status[number] = error.status
                asked.said.setdefault(error.status, one_line(error))
            else:
                asked.answers.latency[number] = loop.time() - began - at
                asked.answers.status[number] = 200
                asked.degraded += answer.degraded
                asked.histories[answer.history] += 1

    try:
        async with asyncio.TaskGroup() as group:
            for number, at in enumerate(due.tolist()):
                await asyncio.sleep(max(0.0, at - (loop.time() - began)))
                group.create_task(ask(number, at))
    except* LifelongError as errors:
        raise errors.exceptions[0] from None
    return asked
