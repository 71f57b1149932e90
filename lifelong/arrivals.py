"""Requests that arrive when they are due, whether earlier ones were answered or not (an open loop).

Arrivals are drawn beforehand, and a latency counts from when its request was due: a generator that
waits for answers would ask a slow server less, and call it fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infra.arrays import F64, Array


@dataclass(frozen=True, slots=True)
class Answers:
    """What became of a load's requests, one value each."""

    seconds: float
    """How long the load was offered, or took."""
    due: F64
    """f64[n]: when each was due, s from the beginning."""
    latency: F64
    """f64[n]: from when each was due to its answer, s; infinite without one."""
    status: Array
    """i64[n]: HTTP status; 0 without an answer."""

    def after(self, seconds: float) -> Answers:
        """Those that were due later."""
        late = self.due >= seconds
        return Answers(
            self.seconds - seconds, self.due[late], self.latency[late], self.status[late]
        )

    @property
    def rate(self) -> float:
        """Requests offered a second."""
        return len(self.due) / self.seconds

    def goodput(self, deadline_s: float) -> float:
        """Rankings a second that came within a deadline."""
        good = (self.status == 200) & (self.latency <= deadline_s)
        return float(np.count_nonzero(good)) / self.seconds

    def share(self, status: int) -> float:
        """The share of a status."""
        return float(np.mean(self.status == status)) if len(self.status) else 0.0

    def quantile_ms(self, q: float, status: int = 200) -> float:
        """A quantile of the latencies of answers of a status, ms; 0: there are none."""
        of_status = self.latency[self.status == status]
        return 1000 * float(np.quantile(of_status, q)) if len(of_status) else 0.0


def drawn(rate: float, seconds: float, seed: int) -> F64:
    """f64[n]: arrivals at random (Poisson's), s from the beginning, in order."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))
