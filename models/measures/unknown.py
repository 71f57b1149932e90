"""Where an item that nobody has met is ranked: above, among or below the most popular ones.

Any id that a model does not know gets the CTR of its row 0, be it of a new item or garbage. Letters
in shapes: R requests, n items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from infra.arrays import F32, I32
from models.data.requests import Requests

AMONG: Final = 100
"""Most popular items that an unknown one is ranked among."""

USERS: Final = 1000
"""Users that it is ranked for, at most."""

QUANTILES: Final = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class UnknownRanks:
    """Ranks of an unknown item, from 1, one for each user."""

    users: int
    among: int
    """Known items that it is ranked among."""
    median: float
    first: float
    """Share of the users for whom nothing is ranked above it."""
    quantiles: dict[str, float]
    """Ranks that it is at or above for 5 %, 25 %, ... of the users."""
    counts: list[int]
    """Users at each rank, from 1 to among + 1."""


def unknown_requests(requests: Requests, users: I32, popularity: F32) -> Requests:
    """One request of each user, for an unknown item (row 0, the first candidate) and the most
    popular ones.

    Args:
        requests: R requests, of which those of `USERS` users are taken, at random.
        users: i32[R]: their users.
        popularity: f32[n + 1]; items of which it is 0 are not known.
    """
    order = np.random.default_rng(0).permutation(len(users))
    _, first = np.unique(users[order], return_index=True)
    chosen = np.sort(order[np.sort(first)[:USERS]])
    popular = np.argsort(-popularity[1:], kind="stable")[:AMONG] + 1
    popular = popular[popularity[popular] > 0]
    candidates = np.tile(np.append(0, popular).astype(np.int32), (len(chosen), 1))
    labels = np.zeros(candidates.shape, np.float32)
    return requests.part(chosen)._replace(
        candidates=candidates, labels=labels, weights=np.ones_like(labels)
    )


def unknown_ranks(ctrs: F32) -> UnknownRanks:
    """The ranks of the first candidate of each request among the others.

    >>> unknown_ranks(np.array([[0.5, 0.6, 0.1], [0.9, 0.6, 0.1]], np.float32)).counts
    [1, 1, 0]
    """
    among = ctrs.shape[1] - 1
    ranks = 1 + (ctrs[:, 1:] > ctrs[:, :1]).sum(1)
    at = np.percentile(ranks, QUANTILES)
    return UnknownRanks(
        users=len(ranks),
        among=among,
        median=float(np.median(ranks)),
        first=float((ranks == 1).mean()),
        quantiles={f"p{p}": float(rank) for p, rank in zip(QUANTILES, at, strict=True)},
        counts=np.bincount(ranks - 1, minlength=among + 1).tolist(),
    )
