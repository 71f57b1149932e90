"""Layers that networks share: attention, the tower.

Letters in shapes are the papers': B candidates, K interests, M recent behaviors, d embedding
width, m projected width. ``...`` are leading batch dimensions, absent in the exported graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

MASKED: Final = -1e30
"""Score of a masked row: its softmax weight is exactly 0 beside any other, and a softmax over
masked rows alone stays finite."""

EPSILON: Final = 1e-6
"""Least norm divided by; a zero vector has cosine 0 with everything."""


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., d] scaled to length 1; zero vectors stay zero."""
    # Clamped under the root, whose slope at zero is infinite.
    squared = torch.clamp((vectors * vectors).sum(-1, keepdim=True), min=EPSILON**2)
    return vectors / torch.sqrt(squared)


def attend(scores: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """Softmax attention that ignores masked rows; over masked rows alone it gives zeros.

    Softmax subtracts the greatest score before exponentiating, so no scale overflows.

    Args:
        scores: [..., B, K].
        mask: [..., K], 1 for rows that count and 0 for others.
        values: [..., K, d].

    Returns:
        [..., B, d].
    """
    terms = masked(torch.zeros_like(mask), mask > 0).unsqueeze(-2)
    return torch.softmax(scores + terms, dim=-1) @ (values * mask.unsqueeze(-1))


def masked(terms: Tensor, mask: Tensor) -> Tensor:
    """Terms [..., K] of scores, MASKED where the mask (bool) is False: what they are added to is
    masked, without a pass of its own over all scores. Where every row is masked all weigh alike, so
    that values must be zeros there.
    """
    return torch.where(mask, terms, MASKED)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis; masked places, and rows with nothing else, are 0.

    Args:
        scores: [..., K].
        mask: bool, of a shape that broadcasts to that of the scores.
    """
    return torch.softmax(scores.masked_fill(~mask, MASKED), dim=-1) * mask


class RecentAttention(nn.Module):
    """Scaled dot-product target attention on the recent behaviors, with a bias for their age.

    A query matrix and a key matrix only ever occur as their product, so there is one matrix.
    """

    def __init__(self, d: int, M: int) -> None:
        super().__init__()
        self.metric = nn.Parameter(torch.eye(d))
        self.age = nn.Parameter(torch.zeros(M))

    def forward(self, candidates: Tensor, recent: Tensor, mask: Tensor) -> Tensor:
        """candidates [..., B, d], recent [..., M', d] newest last, mask [..., M'] -> [..., B, d]"""
        d = recent.shape[-1]
        keys = recent @ self.metric * d**-0.5
        age = self.age[self.age.shape[0] - recent.shape[-2] :]
        scores = candidates @ keys.transpose(-1, -2) + masked(age, mask > 0).unsqueeze(-2)
        return torch.softmax(scores, dim=-1) @ (recent * mask.unsqueeze(-1))


class Tower(nn.Module):
    """The MLP on top."""

    def __init__(self, user: int, pair: int, hidden: tuple[int, int], dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.user = nn.Linear(user, hidden[0])
        self.pair = nn.Linear(pair, hidden[0], bias=False)
        self.hidden = nn.Linear(hidden[0], hidden[1])
        self.out = nn.Linear(hidden[1], 1)

    def forward(self, user: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """user [..., u'], parts of a pair's p values [..., B, p'] -> logits [..., B]"""
        if user.dim() == 1:
            # One user, as in the exported graph: their features are columns of the product. A sum
            # that differs by user costs a runtime a pass over all of the layer, which is more.
            users = torch.cat((user, user.new_ones(1))).expand(parts[0].shape[0], -1)
            of_user = torch.cat((self.user.weight, self.user.bias.unsqueeze(1)), dim=1)
            weight = torch.cat((self.pair.weight, of_user), dim=1)
            first = functional.relu(torch.cat((*parts, users), dim=-1) @ weight.T)
        else:
            pairs = self.pair(torch.cat(tuple(parts), dim=-1))
            first = functional.relu(self.user(user).unsqueeze(-2) + pairs)
        if self.dropout:
            first = functional.dropout(first, self.dropout, self.training)
        logits: Tensor = self.out(functional.relu(self.hidden(first)))
        return logits.squeeze(-1)
