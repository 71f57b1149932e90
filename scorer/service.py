"""What the routes of a process answer from: its ranker, once loaded, and the thread it works in."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Final, TypeVar

from scorer.jobs import Job, Jobs
from scorer.limits import RETRY_AFTER_S, Refused
from scorer.ranking import Ranker
from scorer.readiness import Readiness
from scorer.traces import this_trace
from scorer.turns import this_turn

T = TypeVar("T")

READERS: Final = 32
"""Threads of a process whose store is a server: so many rankings can wait for it at once. At 5 ms
a read they could bring 6,400 users a second, more than a process ranks for."""


class Service:
    """The ranker of a process, the threads in which it works, and whether both are ready.

    One ranking computes at a time (one core a process), the most urgent first. The event loop stays
    free to refuse, to answer probes and to notice deadlines while a large ranking computes. Where
    the store is a server, rankings that wait for it stand aside, and others compute meanwhile.
    """

    def __init__(self, readiness: Readiness) -> None:
        self.readiness = readiness
        self._ranker: Ranker | None = None
        self._jobs = Jobs()

    @property
    def ranker(self) -> Ranker:
        """The ranker; raises `Refused` (503) while it is being loaded."""
        if self._ranker is None:
            raise Refused(503, "loading", "model", "is being loaded; come again", RETRY_AFTER_S)
        return self._ranker

    def serve(self, ranker: Ranker, ask_store: Callable[[], str | None]) -> None:
        """Answer with this ranker from now on, and be ready. Called once, when loading is done;
        then `replace`.

        Args:
            ranker: warm, so that no request waits for what is made at first use.
            ask_store: reads something of the store and returns what is odd about it, or raises; for
                readiness.
        """
        self._ranker = ranker
        self._jobs.start(1 if ranker.reads_locally else READERS)
        self.readiness.loaded(ask_store)

    def replace(self, ranker: Ranker) -> None:
        """Answer the requests from now on with another ranker, a warm one of the same store; those
        that wait get theirs from the one before. For any thread.
        """
        self._ranker = ranker

    async def run(self, job: Callable[[Ranker], T], ranker: Ranker | None = None) -> T:
        """The result of a job, which runs when its turn comes; cancelled before, it never runs.
        What it logs names the request as what is logged here does.

        Args:
            ranker: what to answer from, if the request has named it; None: what is in service.

        Raises:
            Refused: the deadline of `this_turn` passed first.
        """
        ranker, context = ranker or self.ranker, contextvars.copy_context()
        if (trace := this_trace.get()) is not None:
            job = trace.computing(job)
        wanted = Job(lambda: context.run(job, ranker), this_turn.get(), asyncio.get_running_loop())
        self._jobs.put(wanted)
        try:
            return await wanted.future  # type: ignore[no-any-return]
        finally:
            wanted.wanted = False

    def close(self) -> None:
        """Accept no more jobs. One that the store keeps waiting is left to itself."""
        self._jobs.close()
        self.readiness.close()
