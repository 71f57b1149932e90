"""What the routes of a process answer from: its ranker, once loaded, and the thread it works in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from scorer.limits import RETRY_AFTER_S, Refused
from scorer.ranking import Ranker
from scorer.readiness import Readiness

T = TypeVar("T")


class Service:
    """The ranker of a process, the thread in which it works, and whether both are ready.

    Rankings run one after another in a thread of their own (one core a process). The event
    loop stays free to refuse, to answer probes and to notice deadlines while a large ranking
    computes or a store keeps one waiting.
    """

    def __init__(self, readiness: Readiness) -> None:
        self.readiness = readiness
        self._ranker: Ranker | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ranking")

    @property
    def ranker(self) -> Ranker:
        """The ranker; raises `Refused` (503) while it is being loaded."""
        if self._ranker is None:
            raise Refused(503, "loading", "model", "is being loaded; come again", RETRY_AFTER_S)
        return self._ranker

    def serve(self, ranker: Ranker, ask_store: Callable[[], str | None]) -> None:
        """Answer with this ranker from now on, and be ready. Called once, when loading is done.

        Args:
            ranker: warm, so that no request waits for what is made at first use.
            ask_store: reads something of the store and returns what is odd about it, or raises; for
                readiness.
        """
        self._ranker = ranker
        self.readiness.loaded(ask_store)

    async def run(self, job: Callable[[Ranker], T]) -> T:
        """The result of a job, which runs when its turn comes; cancelled before, it never runs."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, job, self.ranker)

    def close(self) -> None:
        """Accept no more jobs. One that the store keeps waiting is left to itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.readiness.close()
