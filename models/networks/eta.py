"""ETA: end-to-end target attention (Chen et al., arXiv 2209.12212, 2022).

Behaviors are searched by the Hamming distance of their hash signatures to the candidate's
(SimHash: ENCODE, Eq. 3), and target attention reads the k found. The hash follows the embeddings
as they are trained, so that both stages see the same. ENCODE's Table 4 changes the search alone:
ETA-ENCODE searches by the cosine of projected embeddings, ETA-TA by the attention's own scores.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data.schema import Inputs
from models.modules.layers import MASKED, masked_softmax, unit
from models.modules.long_term import LongTerm, LongTermConfig, State
from models.modules.metric_learning import embeddings_at, projection_loss
from models.modules.sequence import BehaviorSequence, Target
from models.networks.din import DotProduct


class ETAConfig(LongTermConfig, frozen=True, tag="eta"):
    """Configuration of ETA and its variants."""

    retrieval: Literal["hash", "encode", "attention"] = "hash"
    """What the search goes by; "hash": ETA; "encode": ETA-ENCODE; "attention": ETA-TA."""
    k: Annotated[int, msgspec.Meta(ge=1)] = 50
    """Behaviors that are found for a candidate, at most."""
    bits: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Length of a hash signature; 0: twice the width of an embedding."""
    m: Annotated[int, msgspec.Meta(ge=1)] = 4
    """Width of ETA-ENCODE's projection."""

    def build(self, d: int, inputs: Inputs) -> ETA:
        """The module of ETA."""
        return ETA(self, d, inputs)


class ETA(LongTerm):
    """A search, then target attention on what it finds."""

    hash: Tensor
    """f32[d, bits], normal draws that are never trained: W_r of ENCODE's Eq. 3."""

    def __init__(self, config: ETAConfig, d: int, inputs: Inputs) -> None:
        super().__init__(d, inputs)
        self.config = config
        self.attention = DotProduct(d)
        if config.retrieval == "hash":
            self.register_buffer("hash", torch.randn(d, config.bits or 2 * d))
        elif config.retrieval == "encode":
            self.projection = nn.Parameter(torch.randn(d, config.m))

    def forward(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """Both stages; only what is found is gathered, and only there gradients flow."""
        found, mask = self._find(sequence, target)
        behaviors = embeddings_at(sequence, _in_batch(found, sequence))
        return self._attend(target, behaviors, mask)

    def summarize(self, sequence: BehaviorSequence) -> State:
        return {
            "sequence": sequence.embeddings,
            "sequence_mask": sequence.mask.to(sequence.table.dtype),
            "signatures": self._signatures(sequence),
        }

    def read(self, state: State, target: Target) -> Tensor:
        sequence = state["sequence"]
        found, mask = self._search(state["signatures"], state["sequence_mask"] > 0, target)
        places = found.flatten(-2).unsqueeze(-1)
        behaviors = sequence.gather(-2, places.expand(*places.shape[:-1], self.d))
        return self._attend(target, behaviors.reshape(*found.shape, self.d), mask)

    def weights(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """The attention's weights on what is found, 0 elsewhere."""
        found, mask = self._find(sequence, target)
        behaviors = embeddings_at(sequence, _in_batch(found, sequence))
        return _spread(self._attention_weights(target, behaviors, mask), found, sequence)

    def retrieved(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        found, mask = self._find(sequence, target)
        return _spread(mask.to(sequence.table.dtype), found, sequence) > 0

    def auxiliary_loss(
        self, sequence: BehaviorSequence, generator: torch.Generator
    ) -> Tensor | None:
        """The dynamic triplet loss (ENCODE, Eqs. 5-7) of ETA-ENCODE; the others have none."""
        if self.config.retrieval != "encode":
            return None
        return projection_loss(sequence, self.projection, generator)

    def _signatures(self, sequence: BehaviorSequence) -> Tensor:
        """What behaviors are searched by, f32[R, L, w]: hash signatures of +1 and -1, directions
        of projected embeddings, or keys of the attention.
        """
        if self.config.retrieval == "attention":
            metric = self.attention.metric
            return sequence.project(metric.T * metric.shape[0] ** -0.5)
        if self.config.retrieval == "encode":
            return sequence.directions(self.projection)
        if sequence.feature_tables:
            return _signs(sequence.project(self.hash))
        return functional.embedding(sequence.rows, _signs(sequence.table @ self.hash))

    def _find(self, sequence: BehaviorSequence, target: Target) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self._search(self._signatures(sequence), sequence.mask, target)

    def _search(self, signatures: Tensor, mask: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """The k behaviors nearest to each candidate: places i64[..., B, k], and bool[..., B, k],
        False where there are fewer.
        """
        queries = target.embeddings
        if self.config.retrieval == "encode":
            queries = unit(queries @ self.projection)
        elif self.config.retrieval == "hash":
            queries = _signs(queries @ self.hash)
        scores = (queries @ signatures.transpose(-1, -2)).float()
        if self.config.retrieval == "hash":
            # Bits that agree less those that differ: bits - 2 * Hamming distance. Many are equal;
            # of those the newest are taken, on every machine. Whole numbers below 2^24 are exact.
            L = signatures.shape[-2]
            scores = scores * L + torch.arange(L, device=scores.device)
        scores = torch.where(mask.unsqueeze(-2), scores, MASKED)
        # As many rows of padding as are looked for: any number of behaviors will do.
        scores = functional.pad(scores, (0, self.config.k), value=MASKED)
        best, found = scores.topk(self.config.k, dim=-1)
        real = best > MASKED / 2
        return torch.where(real, found, 0), real

    def _attention_weights(self, target: Target, behaviors: Tensor, mask: Tensor) -> Tensor:
        """behaviors f32[..., B, k, d], mask bool[..., B, k] -> f32[..., B, k]"""
        scores = self.attention(target.embeddings.unsqueeze(-2), behaviors).squeeze(-2)
        return masked_softmax(scores, mask)

    def _attend(self, target: Target, behaviors: Tensor, mask: Tensor) -> Tensor:
        """Target attention on what is found; -> f32[..., B, d]."""
        weights = self._attention_weights(target, behaviors, mask)
        return (weights.unsqueeze(-2) @ behaviors).squeeze(-2)


def _signs(projected: Tensor) -> Tensor:
    """Signs, +1 or -1 (ENCODE, Eq. 3); zero counts as positive."""
    return torch.where(projected >= 0, 1.0, -1.0)


def _in_batch(found: Tensor, sequence: BehaviorSequence) -> Tensor:
    """Places i64[R, B, k] within each sequence, as places in the flattened [R * L] batch."""
    R, L = sequence.mask.shape
    return found + torch.arange(R, device=found.device).view(-1, 1, 1) * L


def _spread(values: Tensor, found: Tensor, sequence: BehaviorSequence) -> Tensor:
    """Values f32[R, B, k] of what is found, at their places: f32[R, B, L]. Values of 0 may share
    a place with another.
    """
    spread = values.new_zeros(*found.shape[:2], sequence.mask.shape[1])
    return spread.scatter_add(2, found, values)
