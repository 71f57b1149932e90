"""Quality of CTRs, or of any ranking, on requests.

No torch here: the demo measures, too. Letters in shapes: R requests, B candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from infra.arrays import F32, I32, Array
from models.data.requests import Requests
from models.data.splits import AnySplit
from models.measures import predictions


@dataclass(frozen=True)
class Quality:
    """How well scores rank each request's positive."""

    auc: float
    """AUC over all (request, candidate) pairs: chance that a positive outranks a negative."""
    gauc: float
    """AUC within each request, averaged over requests."""
    hit10: float
    """Share of requests whose positive is among the first ten; ties count at their expectation."""

    def named(self, suffix: str) -> dict[str, float]:
        """The measures as a flat dict: {"auc_<suffix>": ...}."""
        return {f"{name}_{suffix}": value for name, value in asdict(self).items()}


def ranking_quality(scores: Array, positive: int | Sequence[int] = 0) -> Quality:
    """Quality of scores [R, B] that rank one positive among the negatives of each request.

    Args:
        scores: [R, B], any numbers.
        positive: where the positive stands, in every request or (R numbers) in each.

    >>> ranking_quality(np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1]])).gauc
    0.875
    """
    labels = np.zeros(scores.shape, bool)
    labels[np.arange(len(scores)), positive] = True
    requests = np.repeat(np.arange(len(scores)), scores.shape[1])
    return Quality(
        auc=predictions.auc(scores, labels),
        gauc=predictions.gauc(scores, labels, requests),
        hit10=predictions.hit_rate(scores, labels, k=10),
    )


@dataclass(frozen=True)
class Measures:
    """What CTRs are worth on the requests of a protocol; not a number where it does not apply."""

    auc: float
    """AUC over all (request, candidate) pairs pooled."""
    gauc: float
    """AUC within each user, weighted by impressions."""
    log_loss: float
    """Mean cross-entropy, nats."""
    calibration_error: float
    """Expected distance of predicted and observed CTR."""
    calibration_ratio: float
    """Predicted over observed positives."""
    hit10: float
    """Share of positives among the first ten; needs more than ten candidates a request."""

    def named(self) -> dict[str, float]:
        """The measures that apply, by name."""
        return {name: value for name, value in asdict(self).items() if not np.isnan(value)}


def measure(ctrs: F32, requests: Requests, users: I32) -> Measures:
    """Measures of CTRs f32[R, B] on requests of users i32[R]."""
    labels, weights = requests.labels, requests.weights
    owner = np.broadcast_to(users[:, None], labels.shape)
    places = ctrs.shape[1] > 10
    return Measures(
        auc=predictions.auc(ctrs, labels, weights),
        gauc=predictions.gauc(ctrs, labels, owner, weights),
        log_loss=predictions.log_loss(ctrs, labels, weights),
        calibration_error=predictions.calibration_error(ctrs, labels, weights),
        calibration_ratio=predictions.calibration_ratio(ctrs, labels, weights),
        hit10=predictions.hit_rate(ctrs, labels, 10, weights) if places else predictions.NAN,
    )


def measure_slices(
    ctrs: F32, requests: Requests, split: AnySplit, parts: int = 5
) -> dict[str, list[predictions.Slice]]:
    """Measures by what may matter to a request, each cut into about even parts.

    Args:
        ctrs: f32[R, B].
        requests: a part of ``split``.
        split: where they come from, papers' protocols and the live one alike.
        parts: slices of each value, at most.

    Returns:
        "history": behaviors that the request sees; "popularity": of the item that was chosen (of
        the only candidate where there is one), per million in the training part; "staleness":
        behaviors since the last clustering.
    """
    interactions = split.interactions
    rows = np.arange(len(interactions.item_ids), dtype=np.int32)
    popularity = interactions.popularity(rows, split.n_training)[requests.candidates]
    if popularity.shape[1] > 1:  # a list stays whole, or its positive would have nothing to beat
        chosen = requests.labels * requests.weights
        popularity = (popularity * chosen).sum(1, keepdims=True) / chosen.sum(1, keepdims=True)
    values: dict[str, Array] = {
        "history": split.history(requests),
        "popularity": popularity[:, 0],
        "staleness": requests.cut - requests.as_of,
    }
    users = split.users(requests)
    return {
        name: predictions.slices(
            ctrs,
            requests.labels,
            value,
            predictions.edges_of(value, parts),
            users,
            requests.weights,
        )
        for name, value in values.items()
    }
