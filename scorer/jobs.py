"""Jobs: rankings that wait for their turn to compute, and the threads in which they do.

One computes at a time. Where the store is a server, a job stands aside while it waits for an
answer: the next one computes meanwhile, in another thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from scorer.turns import LEVELS, NORMAL, Turn, overdue


class Job:
    """Something to compute, and who waits for it in which event loop."""

    __slots__ = ("_compute", "_loop", "future", "turn", "wanted")

    def __init__(
        self, compute: Callable[[], Any], turn: Turn | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._compute = compute
        self._loop = loop
        self.turn = turn
        self.future: asyncio.Future[Any] = loop.create_future()
        """What it comes to; to be taken before it is computed."""
        self.wanted = True
        """Whether anybody still waits for it."""

    @property
    def level(self) -> int:
        """How urgent it is, 0 most."""
        return NORMAL if self.turn is None else self.turn.head.level

    def run(self) -> None:
        """Compute it, in the thread that calls, and tell whoever waits; not past its deadline."""
        turn, value = self.turn, None
        error: BaseException | None = None
        began_at = time.monotonic()
        if turn is not None:
            turn.began_at = began_at
        if turn is not None and began_at > turn.deadline:
            error = overdue(turn)
        else:
            try:
                value = self._compute()
            except BaseException as raised:  # noqa: BLE001  # whoever waits is to have it
                error = raised
            if turn is not None:
                turn.finished_at = time.monotonic()
        with contextlib.suppress(RuntimeError):  # its event loop has ended
            self._loop.call_soon_threadsafe(self._tell, value, error)
        del error  # which has this frame: what refers to itself stays, and a ranker with it

    def _tell(self, value: Any, error: BaseException | None) -> None:
        future = self.future
        del self.future  # for the same reason: it will have the error, whose frames have the job
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


class Jobs:
    """The jobs of a process that wait, the most urgent first, then in the order that they came."""

    def __init__(self) -> None:
        self._waiting: tuple[deque[Job], ...] = tuple(deque() for _ in range(LEVELS))
        # One a job that was put, and one a thread at the end: what threads sleep on.
        self._calls: SimpleQueue[bool] = SimpleQueue()
        self._computing = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, threads: int) -> None:
        """Have so many threads take jobs from now on; those that there are count."""
        for number in range(len(self._threads), threads):
            name = f"ranking-{number}"
            # One that the store keeps waiting is no reason not to end.
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def put(self, job: Job) -> None:
        """Have a job done when its turn comes."""
        self._waiting[job.level].append(job)
        self._calls.put(True)

    def close(self) -> None:
        """Do no more jobs; one under way is left to itself."""
        for waiting in self._waiting:
            waiting.clear()
        for _ in self._threads:
            self._calls.put(False)

    def _work(self) -> None:
        while self._calls.get():
            self._do_next()

    def _do_next(self) -> None:
        # A function of its own: a thread that waits for its next job, for hours perhaps, holds none
        # of what the last one was for.
        job = self._next()
        if job is None or not job.wanted:
            return
        with self._computing:
            _this.jobs, _this.turn = self, job.turn
            job.run()

    def _next(self) -> Job | None:
        for waiting in self._waiting:
            with contextlib.suppress(IndexError):  # closed meanwhile
                return waiting.popleft()
        return None


class _This(threading.local):
    """What the thread has to do with jobs; nothing, if it is none of theirs."""

    jobs: Jobs | None = None
    turn: Turn | None = None


_this = _This()


@contextlib.contextmanager
def standing_aside() -> Iterator[None]:
    """A context in which a job waits for something, and others compute meanwhile. In a thread that
    does no jobs it is none.
    """
    jobs, turn = _this.jobs, _this.turn
    if jobs is None:
        yield
        return
    computing, began = jobs._computing, time.monotonic()
    computing.release()
    try:
        yield
    finally:
        if turn is not None:
            turn.apart_s += time.monotonic() - began
        computing.acquire()
