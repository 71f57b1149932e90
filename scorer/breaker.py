"""When a store that does not answer is left alone, and what the log says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from infra.errors import StoreError, StoreUnavailable
from infra.telemetry import get_logger

FAILURES: Final = 3
"""Reads in a row that the store must leave unanswered before it is not asked: a single one may be
a slow moment, or one server of several that is away, and is nothing to all other users. Three wait
as long as three answers may take, once an outage."""

AWAY_S: Final = 1.0
"""How long the store is not asked then: rankings run one after another, and each would wait for it
as long as the first."""

TOLD_S: Final = 60.0
"""Least time between two lines of the log on reads that fail alone, however many do."""

log = get_logger(__name__)


class Breaker:
    """Counts the reads of a store that fail, and keeps the next ones from it for a while."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """Let everybody read.

        Args:
            monotonic: seconds.
        """
        self._monotonic = monotonic
        self._in_row = 0
        self._said = False
        """Whether the log has a line on the failures in a row."""
        self._outage = ""
        self._ask_again_at = 0.0
        self._tell_again_at: dict[type[StoreError], float] = {}

    def check(self) -> None:
        """Make sure that the store may be asked.

        Raises:
            StoreUnavailable: it did not answer just now, and is not to be asked.
        """
        if self._monotonic() < self._ask_again_at:
            raise StoreUnavailable(self._outage)

    def failed(self, error: StoreError) -> None:
        """Take note of a read that failed; its line of the log is one an outage."""
        if not isinstance(error, StoreUnavailable):
            self.answered()  # with a record that cannot be used
            self._tell("a read of the store failed", error)
            return
        self._in_row += 1
        if self._in_row >= FAILURES:
            self._outage = str(error)
            self._ask_again_at = self._monotonic() + AWAY_S
        if not self._said:
            self._said = self._tell("store does not answer", error, surely=self._in_row >= FAILURES)

    def answered(self) -> None:
        """Take note of a read that was answered."""
        if self._in_row >= FAILURES:
            log.info("store answers again")
        self._in_row = 0
        self._said = False

    def _tell(self, what: str, error: StoreError, *, surely: bool = False) -> bool:
        now, kind = self._monotonic(), type(error)
        if not surely and now < self._tell_again_at.get(kind, 0.0):
            return False
        self._tell_again_at[kind] = now + TOLD_S
        log.warning(what, error=str(error))
        return True
