"""Sequences and the requests that point into them: the form in which all samples come.

A *request* is a moment of a user, right before one of their behaviors, and what may be ranked then.
Sequences are stored once per user, laid end to end; a request costs tens of bytes, however long
the sequence that it sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from infra.arrays import F32, I32, I64
from models.data.interactions import Interactions
from models.data.withholding import Withholding


@dataclass(frozen=True)
class Sequences:
    """Interactions by user: sequences laid end to end, each oldest first."""

    items: I32
    """i32[N]: rows of the behaviors' items."""
    times: I64
    """i64[N], seconds since epoch."""
    position: I64
    """i64[N]: where the behavior stands in the interactions' order of time."""
    start: I64
    """i64[N]: where the behavior's user starts."""
    basket: I64
    """i64[N]: where the behavior's basket (same user, same time) starts."""
    basket_end: I64
    """i64[N]: where that basket ends, exclusive."""

    @classmethod
    def of(cls, interactions: Interactions) -> Self:
        order = np.argsort(interactions.users, kind="stable")
        users = interactions.users[order]
        times = interactions.times[order]
        index = np.arange(len(order))
        new_user = np.diff(users, prepend=-1) != 0
        new_basket = new_user | (np.diff(times, prepend=-1) != 0)
        number = np.cumsum(new_basket) - 1
        starts = index[new_basket]
        ends = np.append(starts[1:], len(order))
        return cls(
            items=interactions.items[order],
            times=times,
            position=order,
            start=np.maximum.accumulate(np.where(new_user, index, 0)),
            basket=starts[number] if len(order) else index,
            basket_end=ends[number] if len(order) else index,
        )


class Requests(NamedTuple):
    """R requests with B candidates each; indices point into `Sequences`."""

    cut: I64
    """i64[R]: the request comes right before this behavior."""
    as_of: I64
    """i64[R]: the clustering covers the user's behaviors before this index."""
    bundle: I64
    """i64[R]: the bundle knows the interactions before this position."""
    candidates: I32
    """i32[R, B], the rows the items have (or will have) in the vocabulary."""
    labels: F32
    """f32[R, B]: 1 for positives."""
    weights: F32
    """f32[R, B]: 0 for candidates that do not count."""
    times: I64 | None = None
    """i64[R], seconds since epoch: when each was made. None: at the time of the behavior that it
    comes before, which an impression does not have."""
    withheld: Withholding | None = None
    """Items that the requests treat as unknown besides. None: none."""

    @property
    def negatives_a_positive(self) -> float:
        """Negatives that count for each positive that does; not a number without one."""
        positive = self.labels > 0
        positives = float(self.weights[positive].sum(dtype=np.float64))
        negatives = float(self.weights[~positive].sum(dtype=np.float64))
        return negatives / positives if positives else float("nan")

    def part(self, rows: slice | I64) -> Requests:
        """Some of the requests."""
        return Requests(
            cut=self.cut[rows],
            as_of=self.as_of[rows],
            bundle=self.bundle[rows],
            candidates=self.candidates[rows],
            labels=self.labels[rows],
            weights=self.weights[rows],
            times=None if self.times is None else self.times[rows],
            withheld=None if self.withheld is None else self.withheld.part(rows),
        )


def sampling_rate(training: Requests, evaluation: Requests) -> float:
    """Share of the negatives that training sees, where protocols draw them.

    What is ranked is what evaluation has: one positive among so many others. Training saves itself
    most of them.

    Args:
        training: requests of training.
        evaluation: requests as they are ranked.
    """
    learned, ranked = training.negatives_a_positive, evaluation.negatives_a_positive
    return learned / ranked if learned > 0 and ranked > 0 else 1.0  # not a number: one class only
