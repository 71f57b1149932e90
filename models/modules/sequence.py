"""A batch of behavior sequences, and the candidates that they are read for.

Letters in shapes: R requests, L behaviors, B candidates, d embedding width, n items.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from models.modules.layers import unit
from models.modules.pooling import pool_bins


class Target(NamedTuple):
    """The candidates of each request."""

    embeddings: Tensor
    """f32[..., B, d]."""
    categories: Tensor
    """i64[..., B], 0 for none."""
    rows: Tensor
    """i64[..., B]: rows of the items, 0 where unknown."""


class BehaviorSequence:
    """The behaviors of R requests, newest last; padding stands in front.

    A behavior's embedding is the sum of its item's and those of what else is known of it. All
    come from small tables, and what is linear in them is best computed on the tables: a projection
    of n items is then gathered L times instead of computed R x L times.
    """

    def __init__(
        self,
        rows: Tensor,
        mask: Tensor,
        table: Tensor,
        *,
        newer: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
        feature_tables: Mapping[str, Tensor] | None = None,
        categories: Tensor | None = None,
    ) -> None:
        self.rows = rows
        """i64[R, L]: rows of the items; 0 where unknown and where padded."""
        self.mask = mask
        """bool[R, L]: False where padded."""
        self.table = table
        """f32[n + 1, d]: embeddings of all items."""
        self.newer = newer
        """bool[R, L], or None if none is: behaviors newer than the last offline stage."""
        self.features = dict(features or {})
        """Behavior features by name, i64[R, L]: rows in the feature's table."""
        self.feature_tables = dict(feature_tables or {})
        """Embeddings of the behavior features' values, by feature: f32[F, d]."""
        self._categories = categories

    @cached_property
    def embeddings(self) -> Tensor:
        """f32[R, L, d]: embeddings of the behaviors. Padding has row 0's; mask what you read."""
        return self._gather(self.table, self.feature_tables)

    @cached_property
    def items(self) -> Tensor:
        """f32[R, L, d]: embeddings of the behaviors' items alone."""
        return functional.embedding(self.rows, self.table)

    @cached_property
    def categories(self) -> Tensor:
        """i64[R, L]: categories of the behaviors' items; 0 for none and for padding."""
        if self._categories is None:
            return torch.zeros_like(self.rows)
        return self._categories[self.rows] * self.mask

    def project(self, weight: Tensor) -> Tensor:
        """The embeddings times ``weight`` f32[d, p]; -> f32[R, L, p]."""
        tables = {name: table @ weight for name, table in self.feature_tables.items()}
        return self._gather(self.table @ weight, tables)

    def directions(self, weight: Tensor) -> Tensor:
        """The embeddings times ``weight``, scaled to length 1; -> f32[R, L, p]."""
        if self.feature_tables:
            return unit(self.project(weight))
        return functional.embedding(self.rows, unit(self.table @ weight))

    def project_items(self, weight: Tensor) -> Tensor:
        """The items' embeddings times ``weight`` f32[d, p]; -> f32[R, L, p]."""
        return functional.embedding(self.rows, self.table @ weight)

    def pool_into(self, bins: Tensor, weights: Tensor, size: int) -> Tensor:
        """Weighted sums of behaviors, each into one bin of its request.

        Args:
            bins: i64[R, L] in [0, size); of padding it does not matter.
            weights: f32[R, L], 0 for padding.

        Returns:
            f32[R, size, d].
        """
        pooled = pool_bins(self.table, self.rows, bins, weights, size)
        for name, table in self.feature_tables.items():
            pooled = pooled + pool_bins(table, self.features[name], bins, weights, size)
        return pooled

    def latest(self, size: int) -> BehaviorSequence:
        """The newest ``size`` behaviors of each request."""
        keep = slice(max(self.rows.shape[1] - size, 0), None)
        # Gathered anew: the slope of a slice is as large as what it was cut from.
        return BehaviorSequence(
            self.rows[:, keep],
            self.mask[:, keep],
            self.table,
            newer=None if self.newer is None else self.newer[:, keep],
            features={name: rows[:, keep] for name, rows in self.features.items()},
            feature_tables=self.feature_tables,
            categories=self._categories,
        )

    def where(self, chosen: Tensor) -> BehaviorSequence:
        """The same behaviors, of which those outside of ``chosen`` bool[R, L] count as padding."""
        return BehaviorSequence(
            self.rows,
            self.mask & chosen,
            self.table,
            newer=self.newer,
            features=self.features,
            feature_tables=self.feature_tables,
            categories=self._categories,
        )

    def _gather(self, table: Tensor, feature_tables: Mapping[str, Tensor]) -> Tensor:
        gathered = functional.embedding(self.rows, table)
        for name, feature_table in feature_tables.items():
            gathered = gathered + functional.embedding(self.features[name], feature_table)
        return gathered
