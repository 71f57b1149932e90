"""SIM: search-based interest model (Pi et al., CIKM 2020), and TWIN's variants of it.

A general search unit (GSU) picks k behaviors that have to do with the candidate; an exact search
unit (ESU) attends to those alone. What is searched by is the configuration: the candidate's
category ("hard"), the inner product of embeddings ("soft"), or a cluster of items in place of a
category ("cluster" and "cluster+": TWIN, section 4.2).
"""

from __future__ import annotations

from typing import Final, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data.schema import Inputs
from models.modules.layers import MASKED, masked_softmax, unit
from models.modules.long_term import LongTerm, LongTermConfig, State
from models.modules.sequence import BehaviorSequence, Target

CLUSTERS: Final = {"cluster": 1_000, "cluster+": 10_000}
"""Clusters of items (TWIN, section 4.2)."""

CLUSTER_ITERATIONS: Final = 10
"""Iterations of k-means over the item table; later ones move few items."""

CLUSTERED_AT_ONCE: Final = 1 << 24
"""Similarities of items to centers held at a time: 64 MiB, whatever the size of the table."""


class SIMConfig(LongTermConfig, frozen=True, tag="sim"):
    """Configuration of SIM."""

    search: Literal["hard", "soft", "cluster", "cluster+"] = "soft"
    """What the GSU searches by. Without a category in the schema, "hard" goes by the item."""
    k: int = 100
    """Behaviors that the GSU lets through, at most (TWIN, section 4.3)."""
    heads: int = 1
    """Heads of the ESU; one is scaled dot-product target attention."""
    search_task: bool = True
    """Whether the soft search learns by a task of its own (SIM, section 3.1)."""
    clusters: int = 0
    """Clusters of items; 0: 1,000 for "cluster", 10,000 for "cluster+"."""
    refresh_steps: int = 500
    """Steps of training after which items are clustered anew; 0: after an epoch only."""

    def build(self, d: int, inputs: Inputs) -> SIM:
        """The module of SIM, by what it searches by."""
        if self.search == "soft":
            return SoftSIM(self, d, inputs)
        if self.search == "hard":
            return HardSIM(self, d, inputs)
        return ClusterSIM(self, d, inputs)


class HeadAttention(nn.Module):
    """Target attention of one or more heads over rows that differ by candidate (SIM, Eq. 5).

    Heads differ in how they compare; each pools the rows as they are, and their results stand
    side by side. A query and a key matrix only ever occur as their product, a matrix a head.
    """

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        metric = torch.eye(d).repeat(heads, 1, 1)
        if heads > 1:  # alike, they would learn alike
            metric = metric + torch.randn(heads, d, d) * d**-0.5
        self.metric = nn.Parameter(metric)

    def weights(self, candidates: Tensor, rows: Tensor, found: Tensor) -> Tensor:
        """The weights that `forward` gives the rows; -> f32[..., B, heads, k]."""
        heads, d, _ = self.metric.shape
        queries = candidates @ self.metric.transpose(0, 1).reshape(d, heads * d) * d**-0.5
        scores = queries.view(*queries.shape[:-1], heads, d) @ rows.transpose(-1, -2)
        return masked_softmax(scores, found.unsqueeze(-2))

    def forward(self, candidates: Tensor, rows: Tensor, found: Tensor) -> Tensor:
        """candidates [..., B, d], rows [..., B, k, d], found bool[..., B, k] -> [..., B, heads * d]

        What is not found has no weight; nothing found at all gives zeros.
        """
        return (self.weights(candidates, rows, found) @ rows).flatten(-2)


def best_places(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best behaviors of each candidate.

    Args:
        scores: f32[..., B, L], `MASKED` where a behavior is not to be found.
        k: behaviors, at most; what is lacking is not found.

    Returns:
        Places i64[..., B, k] in [0, L), and bool[..., B, k]: which of them are found.
    """
    # In front stand k places that are never found, so that L may be less than k.
    best, places = functional.pad(scores, (k, 0), value=MASKED).topk(k, dim=-1)
    # Half of it, since a graph may round the constant another way than torch does.
    return (places - k).clamp(min=0), best > MASKED / 2


def gather_rows(rows: Tensor, places: Tensor) -> Tensor:
    """rows [..., L, d] at places i64[..., B, k]; -> [..., B, k, d]"""
    flat = places.flatten(-2).unsqueeze(-1).expand(*places.shape[:-2], -1, rows.shape[-1])
    return rows.gather(-2, flat).view(*places.shape, rows.shape[-1])


class SIM(LongTerm):
    """The part that all searches share: the k best behaviors are attended to."""

    def __init__(self, config: SIMConfig, d: int, inputs: Inputs) -> None:
        super().__init__(d, inputs)
        self.config = config
        self.attention = HeadAttention(d, config.heads)
        self.width = config.heads * d

    def scores(self, state: State, target: Target) -> Tensor:
        """What the GSU ranks the behaviors by; -> f32[..., B, L], `MASKED` for no hit."""
        raise NotImplementedError

    def summarize(self, sequence: BehaviorSequence) -> State:
        return {
            "sequence": sequence.embeddings,
            "sequence_mask": sequence.mask.to(sequence.table.dtype),
        }

    def read(self, state: State, target: Target) -> Tensor:
        places, found = best_places(self.scores(state, target), self.config.k)
        rows = gather_rows(state["sequence"], places)
        return cast(Tensor, self.attention(target.embeddings, rows, found))

    def weights(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """The ESU's weights, a mean over its heads; 0 for what the GSU leaves out."""
        state = self.summarize(sequence)
        places, found = best_places(self.scores(state, target), self.config.k)
        rows = gather_rows(state["sequence"], places)
        within = self.attention.weights(target.embeddings, rows, found).mean(-2)
        return _spread(places, within, sequence)

    def retrieved(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        state = self.summarize(sequence)
        places, found = best_places(self.scores(state, target), self.config.k)
        return _spread(places, found.to(sequence.table.dtype), sequence) > 0


def _spread(places: Tensor, values: Tensor, sequence: BehaviorSequence) -> Tensor:
    """Values [R, B, k] at their places among L behaviors; what is not found has value 0."""
    L = sequence.rows.shape[1]
    return values.new_zeros(*places.shape[:-1], L).scatter_add(-1, places, values)


class SoftSIM(SIM):
    """Search by the inner product of embeddings, which a matrix of the GSU's own may turn."""

    def __init__(self, config: SIMConfig, d: int, inputs: Inputs) -> None:
        super().__init__(config, d, inputs)
        self.metric = nn.Parameter(torch.eye(d), requires_grad=config.search_task)
        self.task = (
            nn.Sequential(nn.Linear(2 * d, d), nn.PReLU(), nn.Linear(d, 1))
            if config.search_task
            else None
        )

    def scores(self, state: State, target: Target) -> Tensor:
        """Scores r_i = (W_b e_i)^T (W_a e_a) (SIM, Eq. 1); the matrices occur as their product."""
        queries = (target.embeddings @ self.metric).detach()
        scores = queries @ state["sequence"].detach().transpose(-1, -2)
        return torch.where(state["sequence_mask"].unsqueeze(-2) > 0, scores, MASKED)

    def search_logits(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """The GSU's own prediction, from all behaviors (SIM, section 3.1); -> f32[R, B].

        U_r = sum_i r_i e_i is divided by the number of behaviors, lest it grow with it.
        """
        assert self.task is not None
        mask = sequence.mask.to(sequence.table.dtype)
        behaviors = sequence.embeddings * mask.unsqueeze(-1)
        # (sum_i e_i e_i^T) first: d x d numbers a request in place of B x L.
        second = behaviors.transpose(1, 2) @ behaviors / mask.sum(1).clamp(min=1.0).view(-1, 1, 1)
        pooled = target.embeddings @ self.metric @ second
        logits: Tensor = self.task(torch.cat([pooled, target.embeddings], dim=-1))
        return logits.squeeze(-1)

    def auxiliary_loss(
        self, sequence: BehaviorSequence, generator: torch.Generator
    ) -> Tensor | None:
        """The GSU's task: tell each user's newest behavior from another user's, by those before."""
        if self.task is None or sequence.rows.shape[1] < 2 or len(sequence.rows) < 2:
            return None
        newest = sequence.rows[:, -1]
        R = len(newest)
        ahead = torch.randint(1, R, (R,), generator=generator, device=generator.device)
        other = newest[(torch.arange(R, device=newest.device) + ahead.to(newest.device)) % R]
        pair = torch.stack([newest, other], dim=1)
        counts = (sequence.mask.sum(1) >= 2) & (pair > 0).all(1) & (newest != other)
        target = Target(functional.embedding(pair, sequence.table), torch.zeros_like(pair), pair)
        logits = self.search_logits(_earlier(sequence), target)
        labels = torch.tensor([1.0, 0.0], device=logits.device).expand_as(logits)
        losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return (losses.mean(1) * counts).sum() / counts.sum().clamp(min=1)


def _earlier(sequence: BehaviorSequence) -> BehaviorSequence:
    """All behaviors but the newest."""
    return BehaviorSequence(
        sequence.rows[:, :-1],
        sequence.mask[:, :-1],
        sequence.table,
        features={name: rows[:, :-1] for name, rows in sequence.features.items()},
        feature_tables=sequence.feature_tables,
    )


class HardSIM(SIM):
    """Search for the newest behaviors of the candidate's category; without one, of its item."""

    def __init__(self, config: SIMConfig, d: int, inputs: Inputs) -> None:
        super().__init__(config, d, inputs)
        self.reads = frozenset({"categories" if inputs.schema.category else "rows"})

    def summarize(self, sequence: BehaviorSequence) -> State:
        return super().summarize(sequence) | {"sequence_keys": self.behavior_keys(sequence)}

    def scores(self, state: State, target: Target) -> Tensor:
        """Places of the behaviors that have the candidate's key, so that the newest come first."""
        wanted, keys = self.target_keys(target).unsqueeze(-1), state["sequence_keys"].unsqueeze(-2)
        places = torch.arange(keys.shape[-1], device=keys.device, dtype=target.embeddings.dtype)
        return torch.where((wanted == keys) & (keys > 0), places, MASKED)

    def behavior_keys(self, sequence: BehaviorSequence) -> Tensor:
        """What behaviors are searched by; -> i64[R, L], 0 for never."""
        if self.inputs.schema.category:
            return sequence.categories
        return sequence.rows * sequence.mask

    def target_keys(self, target: Target) -> Tensor:
        """What candidates search by; -> i64[..., B]."""
        if self.inputs.schema.category:
            return target.categories
        return target.rows


class ClusterSIM(HardSIM):
    """Search for the newest behaviors of the candidate's cluster of items.

    TWIN clusters pre-trained embeddings. Here they are the network's own as they are being
    learned, so that items are clustered anew now and then. Until the first time all are in one
    cluster, and the search finds the newest behaviors.
    """

    clusters: Tensor
    """i64[n + 1]: the items' clusters, from 1; 0 for the unknown item."""
    steps: Tensor
    """i64: steps of training so far."""

    def __init__(self, config: SIMConfig, d: int, inputs: Inputs) -> None:
        super().__init__(config, d, inputs)
        self.reads = frozenset({"rows"})
        clusters = torch.ones(inputs.n_items + 1, dtype=torch.long)
        clusters[0] = 0
        self.register_buffer("clusters", clusters)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def summarize(self, sequence: BehaviorSequence) -> State:
        if self.training and self.config.refresh_steps:
            self.steps += 1
            if int(self.steps) % self.config.refresh_steps == 0:
                self.refresh(sequence.table)
        return super().summarize(sequence)

    def on_epoch(self, table: Tensor) -> None:
        """Cluster the items anew."""
        self.refresh(table)

    def refresh(self, table: Tensor) -> None:
        """Cluster the items of a table f32[n + 1, d] anew."""
        K = self.config.clusters or CLUSTERS[self.config.search]
        self.clusters[1:] = cluster_items(table.detach()[1:].float(), K) + 1

    def behavior_keys(self, sequence: BehaviorSequence) -> Tensor:
        return self.clusters[sequence.rows] * sequence.mask

    def target_keys(self, target: Target) -> Tensor:
        return self.clusters[target.rows]


@torch.no_grad()
def cluster_items(
    table: Tensor,
    K: int,
    iterations: int = CLUSTER_ITERATIONS,
    at_once: int = CLUSTERED_AT_ONCE,
) -> Tensor:
    """K-means by cosine over a whole table, from K of its rows; the same rows at each call.

    A cluster that loses all its items keeps its center.

    Args:
        table: f32[n, d].
        K: clusters, at most; with no more items than clusters each item is its own.
        iterations: of k-means.
        at_once: similarities that are held at a time.

    Returns:
        i64[n] in [0, K).
    """
    n = len(table)
    if n <= K:
        return torch.arange(n, device=table.device)
    points = unit(table)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:K]
    centers = points[chosen.to(table.device)]
    labels = _nearest(points, centers, at_once)
    for _ in range(iterations - 1):
        moved = unit(torch.zeros_like(centers).index_add(0, labels, points))
        centers = torch.where(moved.abs().sum(1, keepdim=True) > 0, moved, centers)
        before, labels = labels, _nearest(points, centers, at_once)
        if torch.equal(before, labels):
            break
    return labels


def _nearest(points: Tensor, centers: Tensor, at_once: int) -> Tensor:
    parts = torch.split(points, max(at_once // len(centers), 1))
    return torch.cat([(part @ centers.T).argmax(1) for part in parts])
