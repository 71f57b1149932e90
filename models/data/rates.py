"""Rates of items and users as of a request: the shares of positive behaviors, and no later ones.

A sample's own label must not be in what it sees, and neither may be what tells it: with the sample
taken out, an item's share is a little lower where its label is 1, which a network with an embedding
per item can learn to read. So a training request sees its item's rate as of its own moment, from
behaviors before it alone; validation, test and service see the whole training part's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infra.arrays import F32, I32, I64
from models.data.interactions import Interactions, count_before
from models.data.requests import Sequences
from models.features import Rates


@dataclass(frozen=True)
class RateCounts:
    """What rates of a data set are counted from."""

    rates: Rates
    size: int
    """N, behaviors of the data set."""
    positive_items: I64
    """Index of the positive behaviors by item (`count_before`)."""
    counted_items: I64
    """The same of all behaviors that count."""
    positive_until: I64
    """i64[N' + 1]: positive behaviors among the first ones of the sequences, laid end to end."""
    counted_until: I64
    """i64[N' + 1]: behaviors that count among them."""

    @classmethod
    def of(cls, interactions: Interactions, sequences: Sequences, rates: Rates) -> RateCounts:
        """Count a data set whose behaviors have actions."""
        actions = interactions.actions
        assert actions is not None
        positive, counted = (kind[actions] for kind in rates.kinds(interactions.action_names))
        until = [
            np.concatenate([[0], np.cumsum(chosen[sequences.position])])
            for chosen in (positive, counted)
        ]
        by_item = map(interactions.by_item, (positive, counted))
        return cls(rates, len(interactions), *by_item, *until)

    def of_items(self, items: I32, position: I64 | int) -> F32:
        """Rates of items by the first ``position`` behaviors; any shapes that broadcast."""
        positive, counted = (
            count_before(index, self.size, items, position)
            for index in (self.positive_items, self.counted_items)
        )
        return self.rates.of_items(positive, counted)

    def of_users(self, begin: I64, end: I64) -> F32:
        """Rates f32[R] of users by the behaviors [begin, end) of the sequences."""
        positive, counted = (
            until[end] - until[begin] for until in (self.positive_until, self.counted_until)
        )
        return self.rates.of_users(positive, counted)
