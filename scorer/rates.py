"""Rates: how often somebody may ask."""

from __future__ import annotations

from typing import Final

NEW: Final = float("-inf")


class Rate:
    """So many times a second, and so many at once after a pause (a token bucket)."""

    __slots__ = ("_at", "_left", "burst", "per_s")

    def __init__(self, per_s: float, burst: float) -> None:
        self.per_s = per_s
        self.burst = burst
        self._left = burst
        self._at = NEW

    def wait_s(self, now: float) -> float:
        """Seconds until the next may be taken; 0: it is, now.

        >>> rate = Rate(per_s=2, burst=1)
        >>> rate.wait_s(0.0), rate.wait_s(0.0), rate.wait_s(0.5)
        (0.0, 0.5, 0.0)
        """
        passed = max(0.0, now - self._at)
        left = min(self.burst, self._left + passed * self.per_s)
        self._at = max(self._at, now)
        if left < 1:
            self._left = left
            return (1 - left) / self.per_s
        self._left = left - 1
        return 0.0
