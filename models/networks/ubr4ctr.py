"""UBR4CTR: user behavior retrieval for CTR prediction (Qin et al., SIGIR 2020).

A candidate's features are the terms of a query, behaviors are documents. A feature selection
module decides by self-attention which features ask; behaviors that share a feature which asks are
ranked by BM25, and target attention reads the k best.

Every behavior has each feature once, so that in BM25 the term frequency and the length of the
document are constants: what is left is the sum of the shared terms' inverse document frequencies.

Which features ask is a hard choice. The paper trains it by REINFORCE, in turns with the rest; here
it is trained along with the rest, by a straight-through gradient: the attention's scores pass on
to the selection what they would gain, were a behavior's retrieval score part of its attention
score. Nothing is drawn, so that a run's numbers do not depend on how it was distributed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

import numpy as np
import torch
from torch import Tensor, nn

from infra.arrays import I64
from infra.errors import TrainingError
from models.data.schema import Inputs
from models.modules.layers import MASKED, masked_softmax
from models.modules.long_term import LongTerm, LongTermConfig, State
from models.modules.sequence import BehaviorSequence, Target
from models.networks.sim import best_places, gather_rows

RECENCY: Final = 1e-9
"""What a newer place adds to a score: it decides between equals, and between them alone."""


class UBR4CTRConfig(LongTermConfig, frozen=True, tag="ubr4ctr"):
    """Configuration of UBR4CTR."""

    k: int = 100
    """Behaviors that are retrieved, at most."""
    heads: int = 2
    """Heads of the selection's self-attention; they divide the width of an embedding."""
    hidden: tuple[int, int] = (20, 10)
    """Widths of the selection's hidden layers."""

    def build(self, d: int, inputs: Inputs) -> UBR4CTR:
        """The module of UBR4CTR."""
        return UBR4CTR(self, d, inputs)


class FeatureSelection(nn.Module):
    """The probability that each of a candidate's F features asks (self-attention, then an MLP)."""

    def __init__(self, d: int, heads: int, hidden: tuple[int, int]) -> None:
        super().__init__()
        if d % heads:
            raise TrainingError(f"heads is {heads}, which does not divide an embedding's width {d}")
        self.heads = heads
        self.norm = nn.LayerNorm(d)
        self.queries, self.keys, self.values = (nn.Linear(d, d) for _ in range(3))
        self.score = nn.Sequential(
            nn.Linear(d, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], 1),
        )
        # All features ask at first; what they retrieve then tells which had better not.
        nn.init.ones_(cast(nn.Linear, self.score[-1]).bias)

    def forward(self, features: Tensor) -> Tensor:
        """features [..., F, d] -> probabilities [..., F]"""
        parts = self.queries(self.norm(features)), self.keys(features), self.values(features)
        queries, keys, values = (self._split(part) for part in parts)
        scores = queries @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
        attended = (torch.softmax(scores, dim=-1) @ values).transpose(-2, -3).flatten(-2)
        logits: Tensor = self.score(features + attended)
        return torch.sigmoid(logits.squeeze(-1))

    def _split(self, part: Tensor) -> Tensor:
        """[..., F, d] -> [..., heads, F, d / heads]"""
        width = part.shape[-1] // self.heads
        return part.view(*part.shape[:-1], self.heads, width).transpose(-2, -3)


class UBR4CTR(LongTerm):
    """Retrieval by a query that is learned, then target attention."""

    def __init__(self, config: UBR4CTRConfig, d: int, inputs: Inputs) -> None:
        super().__init__(d, inputs)
        self.config = config
        self.reads = frozenset({"rows"})
        self.attributes = tuple(inputs.items)
        self.values = nn.ModuleDict(
            {name: nn.Embedding(inputs.heights[f"item.{name}"], d) for name in self.attributes}
        )
        self.kinds = nn.Parameter(torch.randn(1 + len(self.attributes), d) * d**-0.5)
        self.selection = FeatureSelection(d, config.heads, config.hidden)
        self.metric = nn.Parameter(torch.eye(d))
        self.item_idf = float(inverse_frequency(np.ones(1), inputs.n_items)[0])
        for name, rows in inputs.items.items():
            counts = np.bincount(rows[1:].ravel(), minlength=inputs.heights[f"item.{name}"])
            idf = inverse_frequency(counts, inputs.n_items)
            idf[0] = 0.0  # no value at all is nothing to have in common
            self.register_buffer(f"rows_{name}", torch.from_numpy(rows), persistent=False)
            self.register_buffer(f"idf_{name}", torch.from_numpy(idf), persistent=False)

    def summarize(self, sequence: BehaviorSequence) -> State:
        return {
            "sequence": sequence.embeddings,
            "sequence_mask": sequence.mask.to(sequence.table.dtype),
            "sequence_rows": sequence.rows * sequence.mask,
        }

    def read(self, state: State, target: Target) -> Tensor:
        places, found, bonus = self._retrieve(state, target)
        rows = gather_rows(state["sequence"], places)
        weights = self._attention(target, rows, found, bonus)
        return (weights.unsqueeze(-2) @ rows).squeeze(-2)

    def weights(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """The attention's weights on what is retrieved, 0 elsewhere."""
        state = self.summarize(sequence)
        places, found, bonus = self._retrieve(state, target)
        rows = gather_rows(state["sequence"], places)
        within = self._attention(target, rows, found, bonus)
        spread = within.new_zeros(*places.shape[:-1], sequence.rows.shape[1])
        return spread.scatter_add(-1, places, within)

    def retrieved(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        places, found, _ = self._retrieve(self.summarize(sequence), target)
        spread = torch.zeros(*places.shape[:-1], sequence.rows.shape[1], device=places.device)
        return spread.scatter_add(-1, places, found.to(spread.dtype)) > 0

    def probabilities(self, target: Target) -> Tensor:
        """The probability that each feature asks, the item first; -> f32[..., B, F]."""
        rows = target.rows
        features = [target.embeddings]
        for name in self.attributes:
            values = self._values(name)[rows]
            known = (values > 0).unsqueeze(-1).to(target.embeddings.dtype)
            embedded = (self.values[name](values) * known).sum(-2)
            features.append(embedded / known.sum(-2).clamp(min=1.0))
        return cast(Tensor, self.selection(torch.stack(features, dim=-2) + self.kinds))

    def _retrieve(self, state: State, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """Places i64[..., B, k], which of them are found, and a bonus of 0 for their attention
        scores, whose gradient is that of the retrieval score.
        """
        probabilities = self.probabilities(target)
        greatest = probabilities.amax(-1, keepdim=True)  # someone must ask
        asks = ((probabilities > 0.5) | (probabilities == greatest)).to(probabilities.dtype)
        matches = list(self._matches(state["sequence_rows"], target.rows))
        with torch.no_grad():
            scores = torch.zeros_like(matches[0])
            for f, match in enumerate(matches):
                scores = scores + asks[..., f : f + 1] * match
            newer = torch.arange(scores.shape[-1], device=scores.device) * RECENCY
            ranked = torch.where(scores > 0, scores.double() + newer, MASKED)
            places, found = best_places(ranked, self.config.k)
        bonus = torch.zeros_like(target.embeddings[..., :1])
        for f, match in enumerate(matches):
            chance = probabilities[..., f : f + 1]
            bonus = bonus + (chance - chance.detach()) * match.gather(-1, places)
        return places, found, bonus

    def _attention(self, target: Target, rows: Tensor, found: Tensor, bonus: Tensor) -> Tensor:
        """Scaled dot-product target attention on rows [..., B, k, d]; -> [..., B, k]."""
        queries = (target.embeddings @ self.metric * self.d**-0.5).unsqueeze(-1)
        return masked_softmax((rows @ queries).squeeze(-1) + bonus, found)

    def _matches(self, behaviors: Tensor, candidates: Tensor) -> Iterator[Tensor]:
        """Matches f32[..., B, L], one a feature: inverse document frequencies of what is shared."""
        own, other = candidates.unsqueeze(-1), behaviors.unsqueeze(-2)
        yield ((own == other) & (other > 0)).to(self.metric.dtype) * self.item_idf
        for name in self.attributes:
            table, idf = self._values(name), cast(Tensor, getattr(self, f"idf_{name}"))
            shared = torch.zeros_like(own == other, dtype=self.metric.dtype)
            for i in range(table.shape[1]):  # a query's terms, of which items have few
                term = table[candidates, i].unsqueeze(-1)
                weight = idf[term]
                for j in range(table.shape[1]):
                    shared = shared + weight * (term == table[behaviors, j].unsqueeze(-2))
            yield shared

    def _values(self, name: str) -> Tensor:
        """i64[n + 1, w]: rows of the items' values of an attribute."""
        return cast(Tensor, getattr(self, f"rows_{name}"))


def inverse_frequency(counts: np.ndarray | I64, n: int) -> np.ndarray:
    """BM25's inverse document frequency, of terms that so many of n documents have; f32.

    One is added within the logarithm, as search engines do: it is never negative.

    >>> print(inverse_frequency(np.array([1, 50, 100]), 100).round(2))
    [4.21 0.69 0.  ]
    """
    return np.log1p((n - counts + 0.5) / (counts + 0.5)).astype(np.float32)
