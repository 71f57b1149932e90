"""ENCODE: efficient clustering-based two-stage interest modeling (Zhou et al., TKDE 2024).

Offline, a user's behaviors are projected (Eq. 4), clustered, and each cluster is pooled into an
interest by attention to its center (Eq. 8). Online, a candidate attends to the interests (Eq. 10)
and to the most recent behaviors. Beside both stand the user's features and the cross features of
`models.features`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from models.bundle import BetaMode
from models.features import CROSS_FEATURES, USER_FEATURES
from models.layers import RecentAttention, Tower, cosine_attention, segment_softmax, unit


@dataclass(frozen=True)
class EncodeConfig:
    """The network's dimensions; letters are the paper's."""

    n_items: int
    """Items of the vocabulary, the unknown one (row 0) not counted."""
    d: int = 32
    """Width of an embedding."""
    m: int = 4
    """Width of a projected embedding (Eq. 4)."""
    K: int = 30
    """Clusters of a user, at most."""
    L: int = 1000
    """Behaviors that are clustered, at most."""
    M: int = 50
    """Recent behaviors that are attended to one by one, at most."""
    T: int = 15
    """Iterations of k-means, at most."""
    beta: float = 20.0
    """Scaling factor of Eq. 9."""
    beta_mode: BetaMode = "divide"
    """"divide": as the paper writes it; "multiply": a sharp attention; "learned": starts sharp."""
    hidden: tuple[int, int] = (64, 32)
    """Widths of the tower's hidden layers."""


class Clusters(NamedTuple):
    """Ragged clusters of a batch of users: N members in K_total clusters."""

    rows: Tensor
    """i64[N]: the member's row in the item table."""
    counts: Tensor
    """f32[N]: how many behaviors of the cluster are of this item."""
    cluster: Tensor
    """i64[N], ascending: the member's cluster."""
    centers: Tensor
    """f32[K_total, m]: constants as far as gradients go."""


class Encode(nn.Module):
    """The network. Row 0 of the item table stands for items unknown to the bundle."""

    def __init__(self, config: EncodeConfig) -> None:
        super().__init__()
        self.config = config
        d, u, c = config.d, len(USER_FEATURES), len(CROSS_FEATURES)
        self.embedding = nn.Embedding(config.n_items + 1, d)
        nn.init.normal_(self.embedding.weight, std=d**-0.5)
        self.projection = nn.Parameter(torch.randn(d, config.m))
        self.log_scale = nn.Parameter(
            torch.tensor(math.log(config.beta)), requires_grad=config.beta_mode == "learned"
        )
        self.recent = RecentAttention(d, config.M)
        self.tower = Tower(user=u, pair=5 * d + c, hidden=config.hidden)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied with: Eq. 9's 1/beta, or what stands for it."""
        if self.config.beta_mode == "learned":
            return self.log_scale.exp()
        beta = self.config.beta
        value = 1.0 / beta if self.config.beta_mode == "divide" else beta
        return torch.tensor(value, dtype=torch.float32)

    def project(self, embeddings: Tensor) -> Tensor:
        """Eq. 4: h = W_h^T e; [N, d] -> [N, m]."""
        return embeddings @ self.projection

    def interests(self, clusters: Clusters) -> Tensor:
        """Eq. 8: pool each cluster by attention to its center; -> [K_total, d].

        An item that occurs n times weighs as n behaviors do. Gradients reach the embeddings and,
        through the weights, the projection.
        """
        embeddings: Tensor = self.embedding(clusters.rows)
        n_clusters = clusters.centers.shape[0]
        cosine = (unit(self.project(embeddings)) * unit(clusters.centers)[clusters.cluster]).sum(-1)
        scores = cosine * self.scale + clusters.counts.log()
        weights = segment_softmax(scores, clusters.cluster, n_clusters)
        pooled = embeddings.new_zeros(n_clusters, self.config.d)
        return pooled.index_add(0, clusters.cluster, embeddings * weights.unsqueeze(-1))

    def logits(
        self,
        interests: Tensor,
        interest_mask: Tensor,
        recent: Tensor,
        recent_mask: Tensor,
        user: Tensor,
        candidates: Tensor,
        cross: Tensor,
    ) -> Tensor:
        """Logits of the candidates' CTRs (Eq. 1).

        Args:
            interests: [..., K', d]: a user's interests, newer behaviors among them.
            interest_mask: [..., K'], 0 for empty clusters.
            recent: [..., M', d], newest last, M' <= M.
            recent_mask: [..., M'].
            user: [..., u].
            candidates: [..., B, d].
            cross: [..., B, c].

        Returns:
            [..., B].
        """
        long = cosine_attention(candidates, interests, interest_mask, self.scale)
        short = self.recent(candidates, recent, recent_mask)
        pair = torch.cat(
            [candidates, long, short, candidates * long, candidates * short, cross], dim=-1
        )
        return cast(Tensor, self.tower(user, pair))


class Scorer(nn.Module):
    """scorer.onnx: one user, B candidates, CTRs. Argument names are the graph's inputs."""

    def __init__(self, network: Encode) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        interests: Tensor,
        interest_mask: Tensor,
        recent: Tensor,
        recent_mask: Tensor,
        user: Tensor,
        candidates: Tensor,
        cross: Tensor,
    ) -> Tensor:
        return torch.sigmoid(
            self.network.logits(
                interests, interest_mask, recent, recent_mask, user, candidates, cross
            )
        )


class Projection(nn.Module):
    """projection.onnx: embeddings to projected embeddings (Eq. 4)."""

    def __init__(self, network: Encode) -> None:
        super().__init__()
        self.network = network

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.network.project(embeddings)
