"""When a client asks again what a scorer could not answer now."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import Final

from scorer.client.errors import ScorerUnavailable


@dataclass(frozen=True, slots=True)
class Retries:
    """When a client asks again what a scorer could not answer now."""

    most: int = 2
    """Times that one request is asked again, at most."""
    share: float = 0.1
    """Retries for each request, in the long run: where many fail, asking all of them again would be
    the load that keeps the scorers down."""
    saved: float = 10.0
    """Retries that may come at once after a time without any."""
    pause_s: float = 0.05
    """Pause before the first, doubled with each further one, where the scorer names none."""


NO_RETRIES: Final = Retries(most=0)


class Budget:
    """What a client may yet ask again. May be used from several threads."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._saved = retries.saved
        self._changing = threading.Lock()

    def begin(self) -> None:
        """Note a new request."""
        if self._retries.most:
            with self._changing:
                self._saved = min(self._saved + self._retries.share, self._retries.saved)

    def pause_s(self, again: int, error: ScorerUnavailable, deadline: float) -> float | None:
        """Seconds to wait before asking again; None: do not.

        Args:
            again: how often this request was asked again already.
            error: what came of the last time.
            deadline: until when the answer is of use, by the monotonic clock.
        """
        if again >= self._retries.most:
            return None
        pause_s = error.retry_after_s
        if pause_s is None:
            pause_s = self._retries.pause_s * 2**again
        # Of many that were refused at once, not all come again at once.
        pause_s *= random.uniform(1.0, 1.5)
        if time.monotonic() + pause_s >= deadline:
            return None
        with self._changing:
            if self._saved < 1:
                return None
            self._saved -= 1
        return pause_s
