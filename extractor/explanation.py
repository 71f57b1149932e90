"""Why a candidate got its CTR, as far as the long-term part goes: what it attended to, how much."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from infra.arrays import F32, I64


class Part(NamedTuple):
    """One thing that candidates attend to, of a user's history."""

    kind: Literal["interest", "bucket", "behavior"]
    """What the system sees: ENCODE interests, SDIM buckets, TWIN behaviors; a behavior newer than a
    state is one by itself for ENCODE, too."""
    number: int
    """Which one of its kind: an interest's or a bucket's row in the state, a behavior's place."""
    size: int
    """Behaviors in it."""
    vector: F32
    """f32[heads * w]: what it is to the network, the heads side by side."""
    members: I64
    """i64[n]: places of its behaviors in what `System.explain` was given, as far as they are known;
    the one with the largest share first."""
    shares: F32
    """f32[n]: the members' shares in it."""


class Explanation(NamedTuple):
    """What B candidates attended to."""

    parts: list[Part]
    """P of them; those of all candidates together."""
    weights: F32
    """f32[B, P, heads]: how much each counts for each candidate; 0 where it does not."""
    width: int
    """heads * w, of a long-term vector."""

    def long_term(self) -> F32:
        """f32[B, heads * w]: the candidates' long-term vectors, put together again: sums of parts
        by weight. The scorer graph gives the same CTRs for them as for the state.
        """
        candidates, parts, heads = self.weights.shape
        vectors = np.array([part.vector for part in self.parts], np.float32)
        by_head = vectors.reshape(parts, heads, self.width // heads)
        pooled: F32 = np.einsum("bph,phw->bhw", self.weights, by_head)
        return pooled.reshape(candidates, self.width)


def ordered(members: I64, shares: F32) -> tuple[I64, F32]:
    """The members of a part and their shares, the largest first; equal ones newest first."""
    order = np.lexsort((-members, -shares))
    return members[order], shares[order]
