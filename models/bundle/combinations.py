"""What a network sees of a behavior beside its item, as one row of one table.

A behavior has a value of each feature (its action, how long it took, how old it is), and its
embedding is the sum of theirs. Services number the combinations of values, so that whoever tells
behaviors apart compares one number, and whoever adds embeddings adds one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod
from typing import Final, NamedTuple

import numpy as np

from infra.arrays import F32, U16, Array
from models.features import AGE_BUCKETS, DWELL_BUCKETS

ACTION: Final = "action"
DWELL: Final = "dwell"
AGE: Final = "age"

MOST: Final = np.iinfo(np.uint16).max + 1
"""Combinations that a bundle may have: a row is stored in two bytes at most."""


class Combinations(NamedTuple):
    """The combinations of the values of behavior features.

    >>> seen = Combinations.of(["action", "dwell"], actions=2)
    >>> seen.number, seen.dtype
    (48, 'uint8')
    >>> seen.rows({"action": np.array([0, 2]), "dwell": np.array([3, 15])})
    array([ 3, 47], dtype=uint16)
    """

    heights: dict[str, int]
    """How many values each feature has, the unknown one with them, in the order of the schema."""

    @classmethod
    def of(cls, names: Sequence[str], actions: int) -> Combinations:
        """Those of features by name, where there are so many actions beside the unknown one."""
        heights = {ACTION: actions + 1, DWELL: DWELL_BUCKETS, AGE: AGE_BUCKETS}
        return cls({name: heights[name] for name in names})

    @property
    def number(self) -> int:
        """F, how many there are; 1 without any feature."""
        return prod(self.heights.values())

    @property
    def dtype(self) -> str:
        """Element type under which rows are stored."""
        return "uint8" if self.number <= np.iinfo(np.uint8).max + 1 else "uint16"

    def rows(self, values: Mapping[str, Array]) -> U16:
        """u16[n]: the rows of behaviors, by each feature's values [n]."""
        first, *others = self.heights
        rows = values[first].astype(np.uint16)
        for name in others:
            rows = rows * np.uint16(self.heights[name]) + values[name].astype(np.uint16)
        return rows

    def summed(self, tables: Mapping[str, F32]) -> F32:
        """f32[F, w]: of each combination the sum of its values' rows, added in the order of the
        schema as training does, in tables f32[height, w] by feature.
        """
        first, *others = (tables[name] for name in self.heights)

        def beside(table: F32, other: F32) -> F32:
            added: F32 = (table[:, None] + other).reshape(-1, table.shape[1])
            return added

        return reduce(beside, others, first)
