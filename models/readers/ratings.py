"""Ratings as values and as actions: a rating is what a user did to an item."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from infra.errors import DataError
from models.data.interactions import Column

SCORES: Final = tuple(half / 2 for half in range(1, 11))
"""Scores that can be given: 0.5 to 5 stars."""

RATED: Final = tuple(f"rated {score:g}" for score in SCORES)
"""The action of each score: "rated 0.5" to "rated 5"."""

RATED_WHOLE: Final = RATED[1::2]
"""The actions where half stars cannot be given: "rated 1" to "rated 5"."""


def rated(ratings: Column, where: str) -> Column:
    """The actions' names of ratings, dictionary encoded.

    Raises:
        DataError: a rating is none of `SCORES`.
    """
    halves = np.nan_to_num(ratings.to_numpy().astype(np.float64) * 2, nan=0.0)
    row = halves.astype(np.int64) - 1
    bad = (halves != row + 1) | (row < 0) | (row >= len(SCORES))
    if bad.any():
        first = int(np.argmax(bad))
        raise DataError(
            f"{where} is {ratings[first].as_py()} in row {first + 1}; ratings go from 0.5 to 5"
        )
    return pa.DictionaryArray.from_arrays(pa.array(row.astype(np.int8)), pa.array(RATED))
