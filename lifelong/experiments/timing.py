"""How the experiments time: all methods in turns, on one core, by processor time.

Processor time is that of all threads of the process together, so that what else the machine does at
the moment does not count; on an idle machine it is the time that passes. Ratios are taken round by
round, since the speed of a machine drifts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

Name = TypeVar("Name")


@dataclass(frozen=True)
class Times:
    """Times of one method, a value a round, in seconds."""

    processor: list[float] = field(default_factory=list)
    passed: list[float] = field(default_factory=list)
    """Times by the wall clock."""

    def ratio(self, other: Times) -> float:
        """Median over the rounds: how many times as long as the other this took."""
        pairs = zip(self.processor, other.processor, strict=True)
        return median(one / another for one, another in pairs)


def time_in_turns(
    systems: Mapping[Name, Callable[[], object]], rounds: int, warm_up: int = 1
) -> dict[Name, Times]:
    """Call every system once a round; the first ``warm_up`` rounds do not count."""
    times = {name: Times() for name in systems}
    for number in range(-warm_up, rounds):
        for name, system in systems.items():
            began, passing = time.process_time(), time.perf_counter()
            system()
            spent, passed = time.process_time() - began, time.perf_counter() - passing
            if number >= 0:
                times[name].processor.append(spent)
                times[name].passed.append(passed)
    return times
