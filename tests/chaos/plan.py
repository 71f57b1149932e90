"""The plan of a run: which faults, in which order, and when; drawn from the seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Injection:
    """One fault of a plan."""

    fault: str
    share: float
    """Share of the events until the next fault that are sent before this one."""
    seed: int
    """Of all that the fault draws."""
    awaited: bool
    """Whether all workers are to be ready again before the next one: else it may come while some
    start."""


def draw_plan(seed: int, faults: Sequence[str], extra: int) -> list[Injection]:
    """Every fault once and ``extra`` of them again, in an order of the seed's."""
    chance = random.Random(seed)
    drawn = [*faults, *chance.choices(faults, k=extra)]
    chance.shuffle(drawn)
    return [
        Injection(one, chance.uniform(0.1, 0.6), chance.getrandbits(32), chance.random() < 0.5)
        for one in drawn
    ]
