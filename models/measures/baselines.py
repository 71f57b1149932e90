"""The two rules that a model must beat: what is popular, and what the user had bought before."""

from __future__ import annotations

import numpy as np

from infra.arrays import F32
from models.data.interactions import Interactions
from models.data.requests import Requests, Sequences
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
