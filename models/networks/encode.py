"""ENCODE: efficient clustering-based two-stage interest modeling (Zhou et al., TKDE 2024).

Offline (Algorithm 1), behaviors are projected (Eq. 4), clustered, and each cluster is pooled into
an interest by attention to its center (Eq. 8). Online, a candidate attends to the interests
(Eq. 10). Both stages use one metric, the cosine (Eqs. 9 and 11). A loss of its own teaches the
projection to keep distances (Eqs. 5-7).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from models.bundle import EncodeOffline, StateTensor, TableEntry
from models.data.schema import Inputs
from models.modules.clusterings import (
    Clustering,
    agglomerate_sequences,
    cluster_sequences,
    route_sequences,
    scatter_sequences,
)
from models.modules.layers import masked, unit
from models.modules.long_term import LongTerm, LongTermConfig, Served, State
from models.modules.metric_learning import Loss, Sampling, projection_loss
from models.modules.sequence import BehaviorSequence, Target
from models.networks.din import DotProduct

Count = Annotated[int, msgspec.Meta(ge=1)]

LEAST_EXPONENT: Final = -60.0
"""Within-cluster scores are at most 0; below this they count as this, so that a very sharp
attention leaves no cluster without a member that counts."""


class EncodeConfig(LongTermConfig, frozen=True, tag="encode"):
    """Configuration of ENCODE; letters are the paper's."""

    m: Count = 4
    """Width of a projected embedding (Eq. 4)."""
    K: Count = 30
    """Clusters, at most."""
    T: Count = 15
    """Iterations of k-means or of dynamic routing, at most."""
    clustering: Clustering = "k-means"
    """How behaviors are clustered (Table 7)."""
    beta: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    """Scaling factor of Eq. 9; the paper's is 20, and divides."""
    beta_mode: Literal["divide", "multiply", "learned"] = "learned"
    """What beta does. "divide": as the paper writes it, which is nearly flat; "multiply": a sharp
    attention; "learned": starts as multiplied."""
    online: Literal["cosine", "dot"] = "cosine"
    """Similarity online; "dot" is the paper's ENCODE-minus: scaled dot product (Table 3)."""
    sized: bool = True
    """Whether an interest counts in Eq. 10 once for each of its behaviors, so that attention to
    interests approximates attention to behaviors; the paper counts each interest once."""
    loss: Loss = "dynamic"
    """Metric learning of the projection (Table 6): triplets with a dynamic or a fixed margin,
    contrastive, n-pair (one negative), n-pair-mc (several), mse, or none."""
    sampling: Sampling = "sequence"
    """Where positives and negatives come from (Table 5)."""
    margin: Annotated[float, msgspec.Meta(ge=0)] = 0.2
    """Margin of the losses "fixed" and "contrastive"."""
    negatives: Count = 5
    """Negatives of the loss "n-pair-mc"."""

    def build(self, d: int, inputs: Inputs) -> Encode:
        """The module of ENCODE."""
        return Encode(self, d, inputs)


class Interests(NamedTuple):
    """Behaviors pooled within clusters."""

    labels: Tensor
    """i64[R, L]: the cluster of each behavior."""
    within: Tensor
    """f32[R, L]: its weight within that cluster (Eq. 8); 0 for padding."""
    interests: Tensor
    """f32[R, K', d]: K clusters, and one for each behavior newer than the clustering."""
    sizes: Tensor
    """f32[R, K']: behaviors of each cluster; 0 for empty ones."""


class Encode(LongTerm):
    """Clusters of behaviors as interests."""

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
        pooled = self.extract(sequence)
        return {"interests": pooled.interests, "sizes": pooled.sizes}

    def served(self, *, half: bool, feature_tables: Mapping[str, Tensor]) -> Served | None:
        """States are clusters that have members, k <= K. Centers, which the next clustering starts
        from, are small and stay as they are. The services cluster by k-means alone.
        """
        config, m = self.config, self.config.m
        if config.clustering != "k-means":
            return None
        return Served(
            offline=EncodeOffline(m=m, K=config.K, T=config.T, scale=float(self.scale.detach())),
            tables={"projected": TableEntry("float32", m)},
            stored={
                "centers": StateTensor("float32", ("k", m)),
                "interests": StateTensor("float16" if half else "float32", ("k", self.d)),
                "sizes": StateTensor("uint32", ("k",)),
            },
        )

    def summarize_stored(self, sequence: BehaviorSequence, *, half: bool) -> State:
        """The interests of newer behaviors, which are not stored, stand behind the K."""
        state = self.summarize(sequence)
        if half:
            clusters, newer = state["interests"].tensor_split([self.config.K], dim=-2)
            state["interests"] = torch.cat((clusters.half().float(), newer), dim=-2)
        return state

    def per_item(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Projected embeddings h = W_h^T e (Eq. 4), "projected" [n, m]."""
        return {"projected": embeddings @ self.projection}

    def read(self, state: State, target: Target) -> Tensor:
        interests, sizes = state["interests"], state["sizes"]
        present = (sizes > 0).to(interests.dtype).unsqueeze(-1)
        return self._between(interests, sizes, target) @ (interests * present)

    def weights(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """The product of within-cluster and between-cluster weights (section 4.6.1)."""
        labels, within, interests, sizes = self.extract(sequence)
        between = self._between(interests, sizes, target) * (sizes > 0).unsqueeze(-2)
        index = labels.unsqueeze(1).expand(-1, between.shape[1], -1)
        return between.gather(2, index) * within.unsqueeze(1)

    def auxiliary_loss(
        self, sequence: BehaviorSequence, generator: torch.Generator
    ) -> Tensor | None:
        """The metric-learning loss (Eq. 6, or its alternatives of Table 6), a mean over anchors."""
        config = self.config
        return projection_loss(
            sequence,
            self.projection,
            generator,
            loss=config.loss,
            sampling=config.sampling,
            margin=config.margin,
            negatives=config.negatives,
        )

    def extract(self, sequence: BehaviorSequence) -> Interests:
        """Interests by Algorithm 1, as `models.kernels.attention` makes them in the services.
        Centers and assignments are constants: gradients reach the projection through the weights
        alone.

        A behavior whose projection is zero points nowhere and is in no cluster: that of an unknown
        item, as long as nothing has taught row 0. One that is newer is a cluster of its own anyway.
        """
        K, newer = self.config.K, sequence.newer
        directions = sequence.directions(self.projection)
        older = sequence.mask & directions.detach().ne(0).any(-1)
        mask = older
        if newer is not None:
            older, mask = older & ~newer, older | (newer & sequence.mask)
        # Only without features of their own have behaviors of one item one direction.
        rows = None if sequence.feature_tables else sequence.rows
        labels, centers = self._cluster(directions.detach().float(), older, rows)
        nearest = centers.gather(1, labels.unsqueeze(-1).expand(-1, -1, centers.shape[-1]))
        # A cosine is at most 1, so that no exponential overflows and no maximum is looked for.
        scores = ((directions * nearest).sum(-1) - 1.0) * self.scale
        weights = torch.exp(scores.clamp(min=LEAST_EXPONENT)) * mask
        size = K
        if newer is not None and bool(newer.any()):
            # Each behavior newer than the clustering is a cluster of its own.
            newer = newer & mask
            alone = newer.cumsum(1) - 1 + K
            labels = torch.where(newer, alone, labels)
            weights = torch.where(newer, torch.ones_like(weights), weights)
            size += int(newer.sum(1).max())
        total = weights.new_zeros(len(labels), size).scatter_add(1, labels, weights)
        within = weights / total.gather(1, labels).clamp(min=1e-30)
        interests = sequence.pool_into(labels, within, size)
        sizes = torch.zeros_like(total).scatter_add(1, labels, mask.to(total.dtype))
        return Interests(labels, within, interests, sizes)

    def _cluster(
        self, directions: Tensor, mask: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.clustering == "k-means":
            return cluster_sequences(directions, mask, config.K, config.T, rows)
        if config.clustering == "dynamic-routing":
            return route_sequences(directions, mask, config.K, config.T, float(self.scale))
        if config.clustering == "agglomerative":
            return agglomerate_sequences(directions, mask, config.K)
        return scatter_sequences(directions, mask, config.K)

    def _between(self, interests: Tensor, sizes: Tensor, target: Target) -> Tensor:
        """The weight of each interest for each candidate (Eq. 10), f32[..., B, K']; of empty ones 0
        unless all are.
        """
        if self.dot is None:
            scores = unit(target.embeddings) @ (unit(interests) * self.scale).transpose(-1, -2)
        else:
            scores = self.dot(target.embeddings, interests)
        terms = sizes.clamp(min=1.0).log() if self.config.sized else torch.zeros_like(sizes)
        return torch.softmax(scores + masked(terms, sizes > 0).unsqueeze(-2), dim=-1)
