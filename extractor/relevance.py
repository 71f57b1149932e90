"""ENCODE's relevance indicator of a live request, by the attention that the bundle takes along."""

from __future__ import annotations

from typing import Final

import numpy as np

from extractor.system import Candidates
from infra.arrays import F32
from infra.store import Behaviors
from models.bundle import Bundle
from models.kernels.relevance import products, relevance_indicator, softmax

RELEVANCE: Final = ("relevance_indicator", "relevance_least", "relevance_uniform")
"""RI (ENCODE, section 4.6.1), of the reference itself, and of weights that are all alike."""


def relevance(
    bundle: Bundle, weights: F32, behaviors: Behaviors, candidates: Candidates
) -> dict[str, float]:
    """`RELEVANCE` by the attention of the bundle's reference; nothing without one.

    Args:
        weights: f32[B, n]: how much each behavior counts for each candidate.
        behaviors: BEHAVIOR[n], n > 0.
        candidates: B items.
    """
    reference = bundle.reference
    if reference is None:
        return {}
    keys = reference.keys[bundle.rows(behaviors["item"])]
    if reference.actions is not None:
        keys = keys + reference.actions[bundle.action_rows(behaviors["action"])]
    truth = softmax(products(reference.queries[candidates.rows], keys))
    of = (weights, truth, np.ones_like(truth))
    return dict(zip(RELEVANCE, (relevance_indicator(each, truth) for each in of), strict=True))
