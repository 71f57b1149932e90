"""Negatives of the next-item protocol: items drawn at random beside the one that was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from infra.arrays import F32, F64, I32, I64, Bools
from infra.compiling import fast_kernel
from infra.errors import TrainingError
from models.data.interactions import Interactions
from models.data.protocols import NextItem
from models.data.requests import Sequences

TRIES: Final = 200
"""Draws of one negative before the user's remaining items are looked up instead."""


@dataclass(frozen=True)
class Negatives:
    """A source of negatives, drawn from a pool without the excluded, none twice in a request."""

    pool: I32
    """i32[P]: an item occurs as often as it should be drawn."""
    excluded: I32
    """i32[X]: runs of items that are never drawn together, each run ascending."""
    begin: I64
    """i64[N]: where the run of each behavior of the sequences begins."""
    end: I64
    """i64[N]: where that run ends, exclusive."""

    @classmethod
    def of(
        cls,
        interactions: Interactions,
        sequences: Sequences,
        n_training: int,
        known: Bools,
        protocol: NextItem,
    ) -> Negatives:
        """The negatives of a protocol on data whose first ``n_training`` behaviors train.

        Args:
            interactions: those of the training part in front.
            sequences: the same by user.
            n_training: behaviors of the training part.
            known: bool[n + 1], items with a behavior in the training part.
            protocol: how many are drawn, from what, and without what.

        Raises:
            TrainingError: the training part has no more items than a request has negatives.
        """
        wanted = max(protocol.negatives, protocol.evaluation_negatives)
        n_known = int(np.count_nonzero(known))
        if n_known <= wanted:
            raise TrainingError(
                f"the training part has {n_known} items, too few for {wanted} negatives; "
                "lower protocol.negatives and protocol.evaluation_negatives"
            )
        if protocol.sampling == "uniform":
            pool = np.flatnonzero(known).astype(np.int32)
        else:
            pool = interactions.items[:n_training]
        n = len(known)
        by_user = sequences.start * n + sequences.items
        by_user.sort()
        exclude = protocol.exclude
        if exclude == "auto":
            exclude = "basket" if (by_user[1:] == by_user[:-1]).any() else "seen"
        if exclude == "seen":
            # As many entries as behaviors: the runs of users stand where their sequences do.
            begin, end = sequences.start, _user_ends(sequences)
            return cls(pool, (by_user % n).astype(np.int32), begin, end)
        by_basket = sequences.basket * n + sequences.items
        by_basket.sort()
        excluded = (by_basket % n).astype(np.int32)
        return cls(pool, excluded, sequences.basket, sequences.basket_end)

    def draw(
        self, cut: I64, positives: I32, count: int, rng: np.random.Generator
    ) -> tuple[I32, F32]:
        """Candidates i32[R, 1 + count], the positive first, and their weights f32[R, 1 + count].

        Where a user leaves fewer items to draw, the missing ones are row 0 of weight 0.

        Args:
            cut: i64[R].
            positives: i32[R].
            count: negatives a request.
        """
        candidates = np.zeros((len(cut), 1 + count), np.int32)
        candidates[:, 0] = positives
        weights = np.zeros(candidates.shape, np.float32)
        weights[:, 0] = 1
        begin, end = self.begin[cut], self.end[cut]
        _draw(self.pool, self.excluded, begin, end, rng, candidates, weights)
        for r in np.flatnonzero(weights.min(axis=1) == 0):  # few: nearly everything is excluded
            taken = np.concatenate([self.excluded[begin[r] : end[r]], candidates[r]])
            items, chances = self._shares
            chances = np.where(np.isin(items, taken), 0.0, chances)
            missing = np.flatnonzero(weights[r] == 0)[: np.count_nonzero(chances)]
            if len(missing):
                drawn = rng.choice(items, len(missing), replace=False, p=chances / chances.sum())
                candidates[r, missing] = drawn
                weights[r, missing] = 1
        return candidates, weights

    @cached_property
    def _shares(self) -> tuple[I32, F64]:
        items, counts = np.unique(self.pool, return_counts=True)
        return items, counts / len(self.pool)


def _user_ends(sequences: Sequences) -> I64:
    """i64[N]: where the behavior's user ends, exclusive."""
    starts = np.unique(sequences.start)
    ends = np.append(starts[1:], len(sequences.start))
    return np.repeat(ends, ends - starts)


@fast_kernel
def _draw(
    pool: I32,
    excluded: I32,
    begin: I64,
    end: I64,
    rng: np.random.Generator,
    candidates: I32,
    weights: F32,
) -> None:
    """Fill the candidates behind the first with items of the pool that are neither among
    ``excluded[begin:end]`` (ascending) nor in the request already; weight 0 where none was found.
    """
    for r in range(len(begin)):
        for b in range(1, candidates.shape[1]):
            for _ in range(TRIES):
                item = pool[int(rng.random() * len(pool))]
                low, high = begin[r], end[r]
                while low < high:
                    middle = (low + high) // 2
                    if excluded[middle] < item:
                        low = middle + 1
                    else:
                        high = middle
                good = low == end[r] or excluded[low] != item
                for other in range(b):
                    good = good and candidates[r, other] != item
                if good:
                    candidates[r, b] = item
                    weights[r, b] = 1
                    break
