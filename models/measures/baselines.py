"""Rules that a model must beat: what is popular, what the user had bought before, and what its item
and its user are rated at.
"""

from __future__ import annotations

import numpy as np

from infra.arrays import F32
from models.data.interactions import Interactions
from models.data.rates import RateCounts
from models.data.requests import Requests, Sequences
from models.data.splits import AnySplit
from models.features import Rates
from models.measures.predictions import auc
from models.measures.quality import ranking_quality


def popularity_scores(interactions: Interactions, sequences: Sequences, requests: Requests) -> F32:
    """f32[R, B]: popularity up to the request's own moment, which is fresher than a bundle's."""
    position = sequences.position[requests.cut][:, None]
    return interactions.popularity(requests.candidates, position)


def repeat_counts(sequences: Sequences, requests: Requests) -> F32:
    """f32[R, B]: how often the user had bought each candidate, over their whole past."""
    counts = np.zeros(requests.candidates.shape, np.float32)
    for r, cut in enumerate(requests.cut):
        past = sequences.items[sequences.start[cut] : cut]
        counts[r] = (requests.candidates[r][:, None] == past).sum(1)
    return counts


def baseline_qualities(
    interactions: Interactions, sequences: Sequences, requests: Requests
) -> dict[str, float]:
    """Qualities of three rankings by name: by popularity, by how often the user had bought the
    item, and by the latter with ties broken by popularity.
    """
    popularity = popularity_scores(interactions, sequences, requests).astype(np.float64)
    repeats = repeat_counts(sequences, requests).astype(np.float64)
    return {
        **ranking_quality(popularity).named("popularity"),
        **ranking_quality(repeats).named("repeat"),
        **ranking_quality(repeats + popularity / 1e7).named("repeat_popularity"),
    }


def rate_scores(samples: AnySplit, requests: Requests, rates: Rates, L: int) -> F32:
    """f32[R, B]: the mean of the item's rate and the user's, over their last L behaviors."""
    sequences = samples.sequences
    counts = RateCounts.of(samples.interactions, sequences, rates)
    begin = np.maximum(sequences.start[requests.cut], requests.cut - L)
    known = np.minimum(requests.bundle, sequences.position[requests.cut])
    items = counts.of_items(requests.candidates, known[:, None])
    mean: F32 = (items + counts.of_users(begin, requests.cut)[:, None]) * np.float32(0.5)
    return mean


def rate_auc(samples: AnySplit, requests: Requests, rates: Rates, L: int) -> float:
    """The AUC of `rate_scores`."""
    scores = rate_scores(samples, requests, rates, L)
    return auc(scores, requests.labels, requests.weights)
