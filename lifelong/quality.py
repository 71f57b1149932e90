"""How well a way of ranking puts the item that is bought next before the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infra.arrays import Bools

Scores = npt.NDArray[np.floating] | npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures over many requests."""

    auc: float
    """Area under the ROC curve over all (request, candidate) pairs; ties count half."""
    hit10: float
    """Share of requests with the target among the first ten; ties at their expected value."""


def measure_quality(scores: Sequence[Scores], targets: Sequence[int]) -> Quality:
    """Quality of scores, one array [B] a request, given where the target stands in each."""
    table = np.stack([np.asarray(row, np.float64) for row in scores])
    labels = np.zeros(table.shape, bool)
    labels[np.arange(len(table)), list(targets)] = True
    return Quality(auc=_auc(table[labels], table[~labels]), hit10=_hit_rate(table, labels, 10))


def _auc(positives: Scores, negatives: Scores) -> float:
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, "left")
    up_to = np.searchsorted(ordered, positives, "right")
    return float(np.mean((below + up_to) / 2) / len(ordered))


def _hit_rate(table: Scores, labels: Bools, k: int) -> float:
    target = table[labels][:, None]
    better = np.sum(table > target, axis=1)
    equal = np.sum(table == target, axis=1)
    return float(np.mean(np.clip((k - better) / equal, 0, 1)))
