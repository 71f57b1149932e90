"""Whether a process can answer rankings, asked by probes as often as they like."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from infra.errors import StoreError, one_line, typed_line, without_places
from infra.metrics import ScorerMetrics
from infra.telemetry import get_logger

CHECK_INTERVAL_S: Final = 1.0
"""Shortest time between two questions to the store, however many probes come."""

CHECK_TIMEOUT_S: Final = 1.0
"""A store that takes longer to answer does not answer; rankings could not wait for it either."""

LOADING: Final = "the bundle is being loaded"
STOPPING: Final = "the process is stopping"

log = get_logger(__name__)


class Readiness:
    """Why a process is not ready, if it is not. Used from its event loop.

    A store that does not answer makes a process unready whose rankings would be refused; one that
    degrades them goes on, and warns. All scorers have the same store: if each said that it is not
    ready, nobody would be left to answer.
    """

    def __init__(
        self,
        metrics: ScorerMetrics,
        *,
        degrades: bool = False,
        interval_s: float = CHECK_INTERVAL_S,
        timeout_s: float = CHECK_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._degrades = degrades
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._ask: Callable[[], str | None] | None = None
        self._loading = LOADING
        self._stopping = False
        self._found: str | None = None
        self._told = ""
        self._found_at = float("-inf")
        self._check: asyncio.Future[_Said] | None = None
        self._warning: str | None = None
        self.bundle_warning: str | None = None
        """What a person should know of the bundle (`extractor.reloading`); None: nothing."""
        self.certificate_warning: str | None = None
        """What a person should know of the files for TLS (`scorer.tls`); None: nothing."""
        # A thread of its own: the scoring thread may be the one that the store keeps waiting.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="readiness")
        for gauge in (metrics.ready, metrics.store_answers, metrics.store_empty):
            gauge.set(0)

    @property
    def warnings(self) -> list[str]:
        """What a person should know of a process that is ready all the same, as of the last time
        it was asked.
        """
        warnings = (self._warning, self.bundle_warning, self.certificate_warning)
        return [one for one in warnings if one is not None]

    def loaded(self, ask: Callable[[], str | None]) -> None:
        """Note that the bundle is loaded and warm; ``ask`` reads something of the store and raises,
        or returns a warning where nobody is in it.

        It must not write: a full store has rankings in it all the same, and a scorer has no
        business in the way of the workers' writes. So `Store.ping` of one opened for reading alone.
        """
        self._ask = ask
        self._found_at = float("-inf")

    def waits_for(self, reason: str) -> None:
        """Tell from now on what loading waits for."""
        self._loading = reason

    def stopping(self) -> None:
        """Be not ready from now on: no more requests are wanted, those under way are finished.

        Called from a signal handler, hence no lock here, and the gauge has one.
        """
        self._stopping = True

    async def reason(self) -> str | None:
        """Why the process is not ready; None: it is."""
        if self._stopping:
            self._metrics.ready.set(0)
            return STOPPING
        if self._ask is None:
            return self._loading
        if self._clock() - self._found_at >= self._interval_s:
            trouble, warning, error = await self._asked(self._ask)
            if error and error != self._told:
                log.warning("store does not answer readiness", error=error)
            self._told = error
            self._metrics.store_answers.set(trouble is None)
            self._metrics.store_empty.set(warning is not None)
            if self._degrades and trouble is not None:
                trouble, warning = None, f"rankings are degraded: {trouble}"
            self._found = trouble
            self._warning = warning
            self._found_at = self._clock()
            self._metrics.ready.set(self._found is None)
        return self._found

    async def _asked(self, ask: Callable[[], str | None]) -> _Said:
        """The answer of the one question under way, which probes share."""
        if self._check is None:
            loop = asyncio.get_running_loop()
            self._check = loop.run_in_executor(self._thread, _ask_store, ask)
        check = self._check
        await asyncio.wait((check,), timeout=self._timeout_s)
        if not check.done():
            return _Said(f"the store has not answered for {self._timeout_s:g} s")
        if self._check is check:
            self._check = None
        return check.result()

    def close(self) -> None:
        """Ask no more; a question under way is left to itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Said(NamedTuple):
    """What a question to the store came to."""

    trouble: str | None = None
    """Why the store cannot be read; None: it can."""
    warning: str | None = None
    """What is odd about it; None: nothing."""
    error: str = ""
    """The trouble with the store's place, which is for the log: anybody may probe."""


def _ask_store(ask: Callable[[], str | None]) -> _Said:
    try:
        return _Said(warning=ask())
    except StoreError as error:
        return _Said(f"the store does not answer: {without_places(error)}", error=one_line(error))
    except Exception as error:  # noqa: BLE001  # whatever it is, a store that raises is no use
        return _Said(f"the store does not answer: {type(error).__name__}", error=typed_line(error))
