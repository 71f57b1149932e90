"""Measures of predictions; numpy alone, no loop over rows.

Scores may be any numbers where only their order counts, and are CTRs in (0, 1) where their values
do. Labels are 0 or 1. A measure that the data cannot give (one class, nothing to rank) is not a
number; nothing here raises on data. Rows of weight 0 do not count.

Letters in shapes: N rows, R requests, B candidates, U users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np

from infra.arrays import F64, I64, Array, Bools
from infra.metrics import CTR_BINS

CLIP: Final = 1e-7
"""CTRs are kept this far from 0 and 1, so that one confident mistake is not an infinite loss."""

NAN: Final = float("nan")

Bins = Literal["rows", "width", "ctr"]
"""How CTRs are cut into bins. "rows" gives every bin as many rows (equal CTRs stay together), so
that low CTRs, where most rows are, are resolved too; "width" cuts [0, 1] evenly, as the textbook
does; "ctr" cuts where scorers do, which count outcomes and cannot know how CTRs will be spread."""


def auc(scores: Array, labels: Array, weights: Array | None = None) -> float:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties at one half.

    Args:
        scores: [N], or any equal shapes.
        labels: as many.
        weights: as many, non-negative; the chance is then that of rows drawn by weight.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
    0.875
    """
    scores, labels, weights = _flat(scores, labels, weights)
    if not len(scores) or np.isnan(scores).any():
        return NAN
    return _Ranked.of(scores, labels).auc(weights)


@dataclass(frozen=True)
class _Ranked:
    """Rows in ascending order of score, so that many weightings of them are ranked once."""

    order: I64
    """i64[N]: rows by score."""
    positive: Bools
    """bool[N]: their labels."""
    ties: I64
    """i64[T]: where each run of equal scores begins."""

    @classmethod
    def of(cls, scores: Array, labels: Array) -> _Ranked:
        order = np.argsort(scores)
        ranked = scores[order]
        ties = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
        return cls(order, labels[order] > 0, ties)

    def auc(self, weights: Array | None) -> float:
        """Area under the curve of the rows weighted by ``weights`` [N], all alike if None."""
        weight = np.ones(len(self.order)) if weights is None else weights[self.order]
        weight = weight.astype(np.float64, copy=False)
        positive = np.add.reduceat(np.where(self.positive, weight, 0.0), self.ties)
        negative = np.add.reduceat(np.where(self.positive, 0.0, weight), self.ties)
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - negative / 2
        return float((positive * below).sum() / pairs) if pairs else NAN


class GroupAuc(NamedTuple):
    """AUC within each of G groups."""

    auc: F64
    """f64[G]; not a number where a group has one class."""
    weight: F64
    """f64[G]: impressions of the group; 0 where it has no AUC."""


def group_auc(
    scores: Array, labels: Array, groups: Array, weights: Array | None = None
) -> GroupAuc:
    """AUC of the rows of each group by itself.

    Args:
        scores: [N], or any equal shapes.
        labels: as many.
        groups: as many integers in [0, G): users, or requests (ENCODE's page views).
        weights: as many, non-negative.
    """
    scores, labels, weights = _flat(scores, labels, weights)
    groups = np.ravel(groups).astype(np.int64)
    weight = np.ones(len(scores)) if weights is None else weights
    kept = np.flatnonzero(weight > 0)
    scores, labels, groups, weight = scores[kept], labels[kept], groups[kept], weight[kept]
    G = int(groups.max(initial=-1)) + 1
    if not G or np.isnan(scores).any():
        return GroupAuc(np.full(G, NAN), np.zeros(G))
    # A dense rank and the group in one integer: one more sort, and no comparison of pairs.
    order = np.argsort(scores)
    ranked = scores[order]
    rank = np.cumsum(np.append(False, ranked[1:] != ranked[:-1]))
    key = groups[order] * (rank[-1] + 1) + rank
    by_key = np.argsort(key)
    key, order = key[by_key], order[by_key]
    ties = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    group = groups[order[ties]]
    weight = weight[order]
    is_positive = labels[order] > 0
    positive = np.add.reduceat(np.where(is_positive, weight, 0.0), ties)
    negative = np.add.reduceat(np.where(is_positive, 0.0, weight), ties)
    positives = np.bincount(group, positive, G)
    negatives = np.bincount(group, negative, G)
    before = np.cumsum(negatives) - negatives
    below = np.cumsum(negative) - negative / 2 - before[group]
    wins = np.bincount(group, positive * below, G)
    pairs = positives * negatives
    ranked_groups = pairs > 0
    within = np.divide(wins, pairs, out=np.full(G, NAN), where=ranked_groups)
    return GroupAuc(within, np.where(ranked_groups, positives + negatives, 0.0))


def gauc(scores: Array, labels: Array, groups: Array, weights: Array | None = None) -> float:
    """Mean AUC within groups, weighted by their impressions; groups of one class are left out.

    Arguments as in `group_auc`. ENCODE (section 4.1) groups by page view, others by user.

    >>> gauc(np.array([0.2, 0.1, 0.9, 0.8]), np.array([1, 0, 1, 0]), np.array([0, 0, 1, 1]))
    1.0
    """
    within = group_auc(scores, labels, groups, weights)
    return _weighted_mean(np.nan_to_num(within.auc), within.weight)


def log_loss(ctrs: Array, labels: Array, weights: Array | None = None) -> float:
    """Mean binary cross-entropy (ENCODE, Eq. 2), in nats; any equal shapes.

    >>> round(log_loss(np.array([0.5, 0.5]), np.array([1, 0])), 6)
    0.693147
    """
    ctrs, labels, weights = _flat(ctrs, labels, weights)
    ctrs = np.clip(ctrs.astype(np.float64), CLIP, 1 - CLIP)
    return -_weighted_mean(np.where(labels > 0, np.log(ctrs), np.log1p(-ctrs)), weights)


class Calibration(NamedTuple):
    """Predicted and observed CTRs by bins of the prediction; the empty bins are left out."""

    predicted: F64
    """f64[b]: mean predicted CTR of each bin, ascending."""
    observed: F64
    """f64[b]: share of positives."""
    weight: F64
    """f64[b]: rows, or their weight."""

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of predicted and observed, by weight."""
        return _weighted_mean(np.abs(self.predicted - self.observed), self.weight)


def calibration(
    ctrs: Array,
    labels: Array,
    weights: Array | None = None,
    bins: int = 20,
    by: Bins = "rows",
) -> Calibration:
    """Predicted against observed CTRs.

    Args:
        ctrs: any shape.
        labels: as many.
        weights: as many.
        bins: at most so many bins; of "ctr" there are as many as scorers have.
        by: how they are cut.
    """
    ctrs, labels, weights = _flat(ctrs, labels, weights)
    if not len(ctrs):
        return Calibration(np.empty(0), np.empty(0), np.empty(0))
    if by == "width":
        edges = np.linspace(0, 1, bins + 1)[1:-1]
    elif by == "ctr":
        edges, bins = np.array(CTR_BINS[:-1]), len(CTR_BINS)
    else:
        edges = np.unique(np.quantile(ctrs, np.linspace(0, 1, bins + 1)[1:-1]))
    number = np.searchsorted(edges, ctrs, side="right" if by == "width" else "left")
    weight = np.ones(len(ctrs)) if weights is None else weights
    total = np.bincount(number, weight, bins).astype(np.float64, copy=False)
    filled = total > 0
    predicted = np.bincount(number, weight * ctrs, bins)[filled] / total[filled]
    observed = np.bincount(number, weight * labels, bins)[filled] / total[filled]
    return Calibration(predicted, observed, total[filled])


def calibration_error(
    ctrs: Array,
    labels: Array,
    weights: Array | None = None,
    bins: int = 20,
    by: Bins = "rows",
) -> float:
    """Expected calibration error; arguments are those of `calibration`.

    >>> round(calibration_error(np.array([0.2, 0.2, 0.9, 0.9]), np.array([0, 0, 1, 1])), 6)
    0.15
    """
    return calibration(ctrs, labels, weights, bins, by).error


def calibration_ratio(ctrs: Array, labels: Array, weights: Array | None = None) -> float:
    """Predicted over observed positives; above 1: the CTRs are too high.

    >>> calibration_ratio(np.array([0.5, 0.5, 0.5, 0.5]), np.array([1, 0, 0, 0]))
    2.0
    """
    ctrs, labels, weights = _flat(ctrs, labels, weights)
    observed = _weighted_mean(labels, weights)
    return _weighted_mean(ctrs, weights) / observed if observed > 0 else NAN


def hit_rate(scores: Array, labels: Array, k: int = 10, weights: Array | None = None) -> float:
    """Share of positives among the first k of their request.

    A positive competes with the negatives of its request alone; ties count at their expectation,
    as if tied candidates stood in random order.

    Args:
        scores: [R, B].
        labels: [R, B].
        k: places.
        weights: [R, B]; candidates of weight 0 do not compete.

    >>> hit_rate(np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[1, 0], [1, 0]]), k=1)
    0.5
    """
    counted = np.ones(labels.shape, bool) if weights is None else weights > 0
    negative = (labels <= 0) & counted
    rows, columns = np.nonzero((labels > 0) & counted)
    if not len(rows):
        return NAN
    above = np.empty(len(rows), np.int64)
    tied = np.empty(len(rows), np.int64)
    step = max(1, (1 << 22) // labels.shape[1])  # keeps the comparisons in the cache
    for begin in range(0, len(rows), step):
        part = slice(begin, begin + step)
        target = scores[rows[part], columns[part], None]
        others, competing = scores[rows[part]], negative[rows[part]]
        above[part] = ((others > target) & competing).sum(1)
        tied[part] = ((others == target) & competing).sum(1)
    return float(np.clip((k - above) / (tied + 1), 0.0, 1.0).mean())


@dataclass(frozen=True)
class Slice:
    """The measures of the rows whose value lies in [lower, upper)."""

    lower: float
    """Smallest value of the slice."""
    upper: float
    """Values are below it; infinite in the last slice."""
    rows: int
    """Rows that count."""
    positives: int
    """Rows of them that are positive."""
    auc: float
    """AUC over the slice's rows pooled."""
    gauc: float
    """GAUC within the groups; not a number if no groups were given."""
    log_loss: float
    """Mean cross-entropy, nats."""
    calibration_ratio: float
    """Predicted over observed positives."""


def slices(
    ctrs: Array,
    labels: Array,
    values: Array,
    edges: Sequence[float],
    groups: Array | None = None,
    weights: Array | None = None,
) -> list[Slice]:
    """Measures by slices of a value: history length, item popularity, staleness.

    Args:
        ctrs: [N], or [R, B].
        labels: as many.
        values: as many, or [R] (or [R, 1]) for a value of the request, which keeps requests whole.
        edges: E + 1 ascending edges, as of `edges_of`; the last may be infinite.
        groups: as ``values``: users or requests, for the GAUC.
        weights: as many as CTRs; rows of weight 0 do not count.

    Returns:
        E slices; one without rows has measures that are not a number.
    """
    shape = ctrs.shape
    values = _spread(values, shape)
    owner = None if groups is None else _spread(groups, shape)
    ctrs, labels, flat_weights = _flat(ctrs, labels, weights)
    number = np.searchsorted(np.asarray(edges, np.float64), values, side="right") - 1
    if flat_weights is not None:
        number = np.where(flat_weights > 0, number, -1)
    result = []
    for index in range(len(edges) - 1):
        inside = np.flatnonzero(number == index)
        part, truth = ctrs[inside], labels[inside]
        weight = None if flat_weights is None else flat_weights[inside]
        result.append(
            Slice(
                lower=float(edges[index]),
                upper=float(edges[index + 1]),
                rows=len(inside),
                positives=int((truth > 0).sum()),
                auc=auc(part, truth, weight),
                gauc=NAN if owner is None else gauc(part, truth, owner[inside], weight),
                log_loss=log_loss(part, truth, weight),
                calibration_ratio=calibration_ratio(part, truth, weight),
            )
        )
    return result


def edges_of(values: Array, parts: int) -> list[float]:
    """Edges that cut values into as even parts as their ties allow; the last is infinite.

    >>> edges_of(np.array([0, 0, 0, 1, 5, 9]), 2)
    [0.0, 1.0, inf]
    """
    if not values.size:
        return []
    found = np.unique(np.quantile(values, np.arange(parts) / parts, method="higher"))
    return [*map(float, found), float("inf")]


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another, on the same rows."""

    observed: float
    """The difference on all users."""
    mean: float
    """The mean difference of the resamplings."""
    low: float
    """Lower end of the confidence interval (percentiles of the resamplings)."""
    high: float
    """Upper end of the confidence interval."""
    p: float
    """Two-sided p-value: how often a resampling falls on the other side of zero."""
    replicates: int
    """Resamplings that gave a difference."""


def paired_bootstrap(
    first: Array,
    second: Array,
    labels: Array,
    users: Array,
    measure: Literal["auc", "gauc"] = "auc",
    *,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    weights: Array | None = None,
) -> Difference:
    """The difference ``first - second`` of two methods' AUC or GAUC, resampled over users.

    Rows of one user hang together, so that users are drawn (with replacement) and all their rows
    with them, the same for both methods (Efron and Tibshirani, 1993, chapter 13).

    Args:
        first: scores [N] of a method, in any shape; or [S, N] of S runs of it, whose mean measure
            is compared.
        second: scores of the other, on the same rows, of as many runs.
        labels: [N], in the shape of one run.
        users: as many integers, or [R] (or [R, 1]) for scores [R, B] of a run.
        measure: "auc" ranks everything again in every resampling (N operations each); "gauc"
            ranks each user once.
        replicates: resamplings.
        confidence: of the interval.
        seed: of the resampling.
        weights: as many as labels.
    """
    owner = _spread(users, labels.shape)
    runs = first.size // max(labels.size, 1)
    first, labels, flat_weights = _flat(first, labels, weights)
    pairs = list(zip(first.reshape(runs, -1), np.reshape(second, (runs, -1)), strict=True))
    distinct, owner = np.unique(owner, return_inverse=True)
    U = len(distinct)
    ones = np.ones(U)
    if not U or np.isnan(first).any() or np.isnan(second).any():
        return Difference(NAN, NAN, NAN, NAN, NAN, 0)
    if measure == "gauc":
        groups = [
            [group_auc(scores, labels, owner, flat_weights) for scores in pair] for pair in pairs
        ]
        # A group beyond the last that counts is absent: the same in all, since weights are.
        size, weight = len(groups[0][0].auc), groups[0][0].weight
        gaps = [np.nan_to_num(mine.auc) - np.nan_to_num(theirs.auc) for mine, theirs in groups]
        gap = np.mean(gaps, axis=0)

        def difference(times: F64) -> float:
            return _weighted_mean(gap, weight * times[:size])

    else:
        ranked = [[_Ranked.of(scores, labels) for scores in pair] for pair in pairs]

        def difference(times: F64) -> float:
            drawn = times[owner] if flat_weights is None else times[owner] * flat_weights
            gaps = [mine.auc(drawn) - theirs.auc(drawn) for mine, theirs in ranked]
            return float(np.mean(gaps))

    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            difference(np.bincount(rng.integers(0, U, U), minlength=U).astype(np.float64))
            for _ in range(replicates)
        ]
    )
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Difference(difference(ones), NAN, NAN, NAN, NAN, 0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    return Difference(
        observed=difference(ones),
        mean=float(drawn.mean()),
        low=float(low),
        high=float(high),
        # One more on both sides of the fraction: a p of 0 cannot be known from few resamplings.
        p=min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1)),
        replicates=len(drawn),
    )


def _flat(scores: Array, labels: Array, weights: Array | None) -> tuple[Array, Array, F64 | None]:
    """Scores, labels and weights as [N]."""
    flat = None if weights is None else np.ravel(weights).astype(np.float64, copy=False)
    return np.ravel(scores), np.ravel(labels), flat


def _spread(values: Array, shape: tuple[int, ...]) -> Array:
    """Values of rows or of whole requests as [N]."""
    if values.ndim < len(shape):
        values = values.reshape(*values.shape, *(1,) * (len(shape) - values.ndim))
    return np.broadcast_to(values, shape).ravel()


def _weighted_mean(values: Array, weights: Array | None) -> float:
    if weights is None:
        return float(values.mean(dtype=np.float64)) if len(values) else NAN
    total = float(weights.sum(dtype=np.float64))
    return float((values * weights).sum(dtype=np.float64) / total) if total > 0 else NAN
