"""How far sources were fed, written behind the appends that reached it.

A position may lag behind what was applied (`infra.store.Store.positions`), so an append need not
wait for it: it is on its way when the append returns. The next one makes sure, before it writes
anything, that it is there: who is told of an outage must feed again what was lost before what is
newer (`infra.store.Interrupted`), whichever write met it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor


class Reached:
    """Positions of sources on their way to the servers; safe to use from threads.

    Those whose write failed are kept and written with the next ones, or by the next `settle`.
    """

    def __init__(self, write: Callable[[Mapping[int, int]], None]) -> None:
        """``write`` writes offsets by source key, and returns when they are there."""
        self._write = write
        self._lock = threading.Lock()
        self._unwritten: dict[int, int] = {}
        self._sent: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, "positions")

    def send(self, reached: Mapping[int, int]) -> None:
        """Have offsets written, without waiting for it; for those sent before, it waits.

        Raises:
            StoreError, SettingsError: those sent before were not written.
        """
        if not reached:
            return
        with self._lock:
            self._settle()
            for source, offset in reached.items():
                self._unwritten[source] = max(offset, self._unwritten.get(source, offset))
            self._begin()

    def settle(self) -> None:
        """Wait until all that was sent is written; raises as `send` does."""
        with self._lock:
            if self._unwritten and self._sent is None:  # a write failed
                self._begin()
            self._settle()

    def close(self) -> None:
        """Write no more."""
        self._pool.shutdown()

    def _begin(self) -> None:
        self._sent = self._pool.submit(self._write, dict(self._unwritten))

    def _settle(self) -> None:
        sent, self._sent = self._sent, None
        if sent is not None:
            sent.result()
            self._unwritten.clear()
