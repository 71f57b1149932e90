"""ENCODE: efficient clustering-based two-stage interest modeling (Zhou et al., TKDE 2024).

Offline (Algorithm 1), behaviors are projected (Eq. 4), clustered, and each cluster is pooled into
an interest by attention to its center (Eq. 8). Online, a candidate attends to the interests
(Eq. 10). Both stages use one metric, the cosine (Eqs. 9 and 11).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from models.clustering import cluster_sequences
from models.layers import cosine_attention, dynamic_triplet_loss, unit
from models.long_term import LongTerm, LongTermConfig, State
from models.networks.din import DotProduct, masked_softmax
from models.schema import Inputs
from models.sequence import BehaviorSequence, Target


class EncodeConfig(LongTermConfig, frozen=True, tag="encode"):
    """ENCODE; letters are the paper's."""

    m: int = 4
    """Width of a projected embedding (Eq. 4)."""
    K: int = 30
    """Clusters, at most."""
    T: int = 15
    """Iterations of k-means, at most."""
    beta: float = 20.0
    """Scaling factor of Eq. 9."""
    beta_mode: Literal["divide", "multiply", "learned"] = "divide"
    """"divide": as the paper writes it; "multiply": a sharp attention; "learned": starts sharp."""
    online: Literal["cosine", "dot"] = "cosine"
    """"dot" is the paper's ENCODE-minus: scaled dot product online (Table 3)."""

    def build(self, d: int, inputs: Inputs) -> Encode:
        """Its module."""
        return Encode(self, d, inputs)


class Encode(LongTerm):
    """Clustered interests."""

    served: ClassVar[bool] = True

    def __init__(self, config: EncodeConfig, d: int, inputs: Inputs) -> None:
        super().__init__(d, inputs)
        self.config = config
        self.projection = nn.Parameter(torch.randn(d, config.m))
        self.log_scale = nn.Parameter(
            torch.tensor(math.log(config.beta)), requires_grad=config.beta_mode == "learned"
        )
        self.dot = DotProduct(d) if config.online == "dot" else None

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied with: Eq. 9's 1/beta, or what stands for it."""
        if self.config.beta_mode == "divide":
            return (-self.log_scale).exp()
        return self.log_scale.exp()

    def summarize(self, sequence: BehaviorSequence) -> State:
        labels, weights, size = self._within_clusters(sequence)
        interests = sequence.pool_into(labels, weights, size)
        occupied = torch.zeros_like(interests[..., 0]).scatter_add(1, labels, weights.detach())
        return {"interests": interests, "interest_mask": (occupied > 0).to(interests.dtype)}

    def read(self, state: State, target: Target) -> Tensor:
        interests, mask = state["interests"], state["interest_mask"]
        if self.dot is None:
            return cosine_attention(target.embeddings, interests, mask, self.scale)
        scores = self.dot(target.embeddings, interests)
        return masked_softmax(scores, mask.unsqueeze(-2) > 0) @ interests

    def weights(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """The product of within-cluster and between-cluster weights (section 4.5)."""
        labels, within, size = self._within_clusters(sequence)
        interests = sequence.pool_into(labels, within, size)
        occupied = torch.zeros_like(interests[..., 0]).scatter_add(1, labels, within) > 0
        if self.dot is None:
            scores = unit(target.embeddings) @ (unit(interests) * self.scale).transpose(-1, -2)
        else:
            scores = self.dot(target.embeddings, interests)
        between = masked_softmax(scores, occupied.unsqueeze(-2))
        index = labels.unsqueeze(1).expand(-1, between.shape[1], -1)
        return between.gather(2, index) * within.unsqueeze(1)

    def auxiliary_loss(
        self, sequence: BehaviorSequence, generator: torch.Generator
    ) -> Tensor | None:
        """The dynamic triplet loss (Eqs. 5-7), samples from within the sequence."""
        valid = sequence.mask & (sequence.rows > 0)
        R, L = valid.shape
        counts = valid.sum(1)
        starts = L - sequence.mask.sum(1)
        pick = torch.rand(R, 3, generator=generator)
        place = starts.unsqueeze(1) + (pick.to(starts.device) * (L - starts).unsqueeze(1)).long()
        place = place.clamp(max=L - 1)
        chosen = sequence.rows.gather(1, place)[counts >= 3]
        if not len(chosen):
            return None
        behaviors = sequence.table.detach()[chosen.view(-1)]
        anchor, first, second = torch.arange(len(behaviors), device=chosen.device).view(-1, 3).T
        projected = behaviors @ self.projection
        return dynamic_triplet_loss(behaviors, projected, anchor, first, second).mean()

    def _within_clusters(self, sequence: BehaviorSequence) -> tuple[Tensor, Tensor, int]:
        """Eq. 8: labels i64[R, L], weights f32[R, L] within each cluster, and how many clusters."""
        directions = sequence.directions(self.projection)
        older = sequence.mask if sequence.newer is None else sequence.mask & ~sequence.newer
        labels, centers = cluster_sequences(
            directions.detach(), older, self.config.K, self.config.T
        )
        size = self.config.K
        if sequence.newer is not None and bool(sequence.newer.any()):
            # Each behavior newer than the clustering is a cluster of its own.
            alone = sequence.newer.cumsum(1) - 1 + size
            labels = torch.where(sequence.newer, alone, labels)
            size += int(sequence.newer.sum(1).max())
        nearest = centers.gather(
            1, labels.clamp(max=self.config.K - 1).unsqueeze(-1).expand(-1, -1, centers.shape[-1])
        )
        cosine = (directions * nearest).sum(-1) * self.scale
        # A cosine is at most 1, so that no exponential overflows and no maximum is needed.
        unnormed = torch.exp(cosine - self.scale) * sequence.mask
        if sequence.newer is not None:
            unnormed = torch.where(sequence.newer, torch.ones_like(unnormed), unnormed)
        total = unnormed.new_zeros(len(labels), size).scatter_add(1, labels, unnormed)
        return labels, unnormed / total.gather(1, labels).clamp(min=1e-30), size
