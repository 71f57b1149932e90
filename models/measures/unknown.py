"""What is said of items that a model does not know, what they earn, and where one is ranked.

Any id that a model does not know gets the CTR of its row 0, be it of a new item or garbage. No
torch here: the demo measures, too. Letters in shapes: R requests, B candidates, n items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from infra.arrays import F32, I32, I64, Array, Bools
from models.data.requests import Requests
from models.measures import predictions

AMONG: Final = 100
"""Most popular items that an unknown one is ranked among."""

USERS: Final = 1000
"""Users that it is ranked for, at most."""

QUANTILES: Final = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Earnings:
    """What some candidates were said to earn, and what they earned; not a number of none."""

    candidates: int
    positives: int
    predicted: float
    """Mean CTR."""
    observed: float
    """Share of positives."""
    predicted_over_observed: float

    @classmethod
    def of(cls, ctrs: Array, labels: Array, chosen: Bools) -> Earnings:
        """Those of the ``chosen`` candidates, all in one shape."""
        ctrs, positive = ctrs[chosen], labels[chosen] > 0
        some = len(ctrs) > 0
        return cls(
            candidates=len(ctrs),
            positives=int(positive.sum()),
            predicted=float(ctrs.mean(dtype=np.float64)) if some else predictions.NAN,
            observed=float(positive.mean()) if some else predictions.NAN,
            predicted_over_observed=predictions.calibration_ratio(ctrs, positive),
        )


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
    """One request of each user, for an unknown item (row 0, the first candidate) and the
    `most_popular` ones.

    Args:
        requests: R requests, of which those of `USERS` users are taken, at random.
        users: i32[R]: their users.
        popularity: f32[n + 1]; items of which it is 0 are not known.
    """
    order = np.random.default_rng(0).permutation(len(users))
    _, first = np.unique(users[order], return_index=True)
    chosen = np.sort(order[np.sort(first)[:USERS]])
    among = np.append(0, most_popular(popularity)).astype(np.int32)
    candidates = np.tile(among, (len(chosen), 1))
    labels = np.zeros(candidates.shape, np.float32)
    return requests.part(chosen)._replace(
        candidates=candidates, labels=labels, weights=np.ones_like(labels)
    )


def most_popular(popularity: F32) -> I64:
    """Rows of the `AMONG` most popular items that are known, of a popularity f32[n + 1]."""
    rows: I64 = np.argsort(-popularity[1:], kind="stable")[:AMONG] + 1
    return rows[popularity[rows] > 0]


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
