"""Metric learning of ENCODE's projection (ENCODE, section 3.2.1, Tables 5 and 6).

Behaviors carry no labels. Of the behaviors drawn beside an anchor, the nearest in the space of the
embeddings is taken as its positive, the others are its negatives; a loss then asks the projected
space to keep that order. Letters in shapes: A anchors, n behaviors drawn beside each, R requests,
L behaviors, d embedding width, m projected width.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from models.modules.layers import unit
from models.modules.sequence import BehaviorSequence

Loss = Literal["dynamic", "fixed", "contrastive", "n-pair", "n-pair-mc", "mse", "none"]
Sampling = Literal["neighbors", "sequence", "batch"]

ANCHORS: Final = 4
"""Anchors drawn from each sequence at a step. The paper makes every behavior an anchor; a loss
that is a mean has the same expectation over a few of them, at a small part of the cost."""


def projection_loss(
    sequence: BehaviorSequence,
    projection: Tensor,
    generator: torch.Generator,
    *,
    loss: Loss = "dynamic",
    sampling: Sampling = "sequence",
    margin: float = 0.2,
    negatives: int = 5,
) -> Tensor | None:
    """Mean loss of a projection over anchors drawn from the sequences.

    Embeddings are constants here: the loss teaches the projection to follow the embeddings, not
    the embeddings to suit the projection.

    Args:
        projection: f32[d, m], W_h of Eq. 4.
        generator: on the processor, so that a seed means the same on every device.
        margin: of "fixed", and the distance beyond which "contrastive" leaves negatives alone.
        negatives: of "n-pair-mc".

    Returns:
        A scalar; 0 if no sequence has enough behaviors. None for the loss "none".
    """
    if loss == "none":
        return None
    others = {"mse": 1, "n-pair-mc": negatives + 1}.get(loss, 2)
    drawn, enough = draw_behaviors(sequence.mask, others, sampling, generator)
    with torch.no_grad():
        behaviors = embeddings_at(sequence, drawn)
        originals = distances(behaviors)
        # Nearest first: the positive (Eq. 5), then the negatives.
        order = originals.argsort(-1)
        originals = originals.gather(1, order)
        index = torch.cat([torch.zeros_like(order[:, :1]), order + 1], 1)
        behaviors = behaviors.gather(1, index.unsqueeze(-1).expand_as(behaviors))
    each = _loss(loss, originals, behaviors @ projection, margin)
    return (each * enough).sum() / enough.sum().clamp(min=1)


def _loss(loss: Loss, originals: Tensor, projected: Tensor, margin: float) -> Tensor:
    """The loss f32[A] of each anchor, from original distances f32[A, n], nearest first, and the
    anchor and the others projected f32[A, 1 + n, m], in the same order.
    """
    if loss in ("n-pair", "n-pair-mc"):
        return n_pair_loss(projected)
    to = distances(projected)
    if loss == "mse":
        return (to - originals).square().mean(-1)
    if loss == "contrastive":
        return to[:, 0].square() + functional.relu(margin - to[:, 1]).square()
    if loss == "dynamic":
        return triplet_loss(to, originals[:, 1] - originals[:, 0])
    return triplet_loss(to, margin)


def triplet_loss(to: Tensor, margin: Tensor | float) -> Tensor:
    """The triplet loss of each anchor (Eq. 6); with the margin of Eq. 7, the dynamic one.

    Args:
        to: f32[A, 2], projected distances of the anchor to its positive and its negative.
        margin: f32[A], dis(s_i, s_n) - dis(s_i, s_p), or one for all.

    Returns:
        f32[A]: max(0, dis(h_i, h_p) - dis(h_i, h_n) + margin).
    """
    return functional.relu(to[:, 0] - to[:, 1] + margin)


def n_pair_loss(projected: Tensor) -> Tensor:
    """The n-pair loss of each anchor (Eq. 12): log(1 + sum_n exp(h_i . h_n - h_i . h_p)).

    Args:
        projected: f32[A, 1 + n, m]: anchor, positive, negatives.
    """
    products = (projected[:, :1] * projected[:, 1:]).sum(-1)
    return functional.softplus(torch.logsumexp(products[:, 1:] - products[:, :1], -1))


def distances(vectors: Tensor) -> Tensor:
    """Cosine distances f32[A, n] (Eq. 11) of the first of [A, 1 + n, w] to the others."""
    directions = unit(vectors)
    return 1.0 - (directions[:, :1] * directions[:, 1:]).sum(-1)


def draw_behaviors(
    mask: Tensor,
    others: int,
    sampling: Sampling,
    generator: torch.Generator,
    anchors: int = ANCHORS,
) -> tuple[Tensor, Tensor]:
    """Draw anchors and distinct other behaviors for each (Table 5).

    Args:
        mask: bool[R, L]; padding stands in front.
        others: n, behaviors drawn beside each anchor.
        sampling: "neighbors": those around the anchor (with two, the one before it and the one
            after it); "sequence": any of the same sequence; "batch": any of all sequences.
        anchors: of each sequence.

    Returns:
        i64[R * anchors, 1 + n], the anchor first: places in the flattened [R * L] batch; and
        bool[R * anchors]: whether there were enough behaviors to draw from. Where not, the places
        are in bounds and mean nothing.
    """
    R, L = mask.shape
    counts = mask.sum(1)
    uniform = torch.rand(R * anchors, 1 + others, generator=generator, dtype=torch.float64)
    uniform = uniform.to(mask.device)
    request = torch.arange(R, device=mask.device).repeat_interleave(anchors)
    n = counts[request]
    first = (request * L + L - n).unsqueeze(1)
    if sampling == "neighbors":
        begin = (uniform[:, 0] * (n - others).clamp(min=1)).long()
        middle = others // 2
        window = [middle, *(i for i in range(others + 1) if i != middle)]
        places = first + begin.unsqueeze(1) + torch.tensor(window, device=mask.device)
        enough = n > others
    else:
        anchor = (uniform[:, 0] * n).long()
        ends = counts.cumsum(0)
        # Behaviors are numbered through the pool that they are drawn from, the anchor left out.
        number = anchor if sampling == "sequence" else ends[request] - n + anchor
        pool = (n if sampling == "sequence" else ends[-1:].expand_as(n)) - 1
        drawn = _distinct(pool, uniform[:, 1:])
        drawn = drawn + (drawn >= number.unsqueeze(1))
        if sampling == "sequence":
            places = first + drawn
        else:
            of = torch.searchsorted(ends, drawn.clamp(max=max(R * L, 1)), right=True)
            of = of.clamp(max=R - 1)
            places = of * L + L - ends[of] + drawn
        places = torch.cat([first + anchor.unsqueeze(1), places], 1)
        enough = (pool >= others) & (n > 0)
    return places.clamp(0, R * L - 1), enough


def _distinct(pool: Tensor, uniform: Tensor) -> Tensor:
    """Distinct numbers below ``pool`` i64[A], as many as ``uniform`` [A, n] has columns (Floyd's
    way: all subsets are equally likely); -> i64[A, n].
    """
    picks: list[Tensor] = []
    n = uniform.shape[1]
    for column in range(n):
        top = pool - n + column
        pick = (uniform[:, column] * (top + 1)).long()
        for earlier in picks:
            pick = torch.where(pick == earlier, top, pick)
        picks.append(pick)
    return torch.stack(picks, 1).clamp(min=0)


def embeddings_at(sequence: BehaviorSequence, places: Tensor) -> Tensor:
    """Embeddings of some behaviors, without gathering those of all.

    Args:
        places: i64[...] in the flattened [R * L] batch.

    Returns:
        f32[..., d].
    """
    embeddings = functional.embedding(sequence.rows.reshape(-1)[places], sequence.table)
    for name, table in sequence.feature_tables.items():
        rows = sequence.features[name].reshape(-1)[places]
        embeddings = embeddings + functional.embedding(rows, table)
    return embeddings
