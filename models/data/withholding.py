"""Items withheld from training requests, so that row 0 learns what an unknown item earns.

All items of a training part are known, and nothing would teach row 0. So each request withholds
some of them, as if its bundle had never met them: as candidates, positive or not, and among the
behaviors. Which ones is the request's own draw, so that every item is known to nearly all requests;
and as an item is withheld whether or not it was chosen, row 0's CTR is what such items earn.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from infra.arrays import I32, I64, U64, Bools
from infra.compiling import kernel

_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = np.uint64(0xFF51AFD7ED558CCD)
_HALF: Final = np.uint64(32)


class Withholding(NamedTuple):
    """Which items each of R requests withholds: those whose hash with the request's key is low."""

    keys: U64
    """u64[R]."""
    limit: np.uint64
    """Items of lower hashes are withheld."""

    @classmethod
    def draw(cls, requests: int, share: float, rng: np.random.Generator) -> Withholding:
        """One that withholds so great a share of the items from each request."""
        keys = rng.integers(0, 2**64, requests, np.uint64)
        return cls(keys, np.uint64(int(share * (2**64 - 1))))

    @classmethod
    def none(cls, requests: int) -> Withholding:
        """One that withholds nothing."""
        return cls(np.zeros(requests, np.uint64), np.uint64(0))

    def part(self, rows: slice | I64) -> Withholding:
        """That of some of the requests."""
        return Withholding(self.keys[rows], self.limit)

    def of(self, items: I32) -> Bools:
        """bool[R, B]: whether each request withholds each of its candidates i32[R, B]."""
        return _withheld(items, self.keys, self.limit)


@kernel
def is_withheld(item: int, key: np.uint64, limit: np.uint64) -> bool:
    """Whether an item is withheld from the request of a key."""
    mixed = (np.uint64(item) * _SPREAD) ^ key
    mixed = (mixed ^ (mixed >> _HALF)) * _MIX
    mixed = (mixed ^ (mixed >> _HALF)) * _SPREAD
    return bool((mixed ^ (mixed >> _HALF)) < limit)


@kernel
def _withheld(items: I32, keys: U64, limit: np.uint64) -> Bools:
    found = np.empty(items.shape, np.bool_)
    for r in range(items.shape[0]):
        for b in range(items.shape[1]):
            found[r, b] = is_withheld(items[r, b], keys[r], limit)
    return found
