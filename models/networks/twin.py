"""TWIN: two-stage interest network (Chang et al., KDD 2023).

The general search unit (GSU) picks the k behaviors most relevant to a candidate, the exact search
unit (ESU) attends to them; both measure relevance alike, with the same parameters (Eq. 6). That is
affordable since what is inherent in an item is projected once per item, and what happened between
user and item is compressed to one number per feature and head, a bias (Eq. 5).

Queries and keys have few digits (`models.modules.rounding`): scores, and so the behaviors that are
found, are the same in training, in an exported graph and in the services.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from infra.errors import TrainingError
from models.bundle import TableEntry, TWINOffline
from models.data.schema import Inputs
from models.kernels.search import search_scores
from models.modules.layers import MASKED, masked_softmax
from models.modules.long_term import LongTerm, LongTermConfig, Served, State
from models.modules.rounding import project
from models.modules.sequence import BehaviorSequence, Target

NEWEST_FIRST: Final = 2.0**-44
"""What a place in the sequence adds to a score, in float64, where a search ranks: behaviors of
equal score get an order, the same in every runtime, and no float32 scores change theirs that
differ by more than 1e-9."""


class TWINConfig(LongTermConfig, frozen=True, tag="twin"):
    """Configuration of TWIN, and of the variants of its Figure 6."""

    keeps_state = False

    k: int = 100
    """Behaviors that the search lets through (section 3.2.2)."""
    heads: int = 4
    """Heads of the attention (Eq. 8)."""
    d_k: int = 0
    """Width of a projected query, key and value in each head; 0: d / heads."""
    cross: Literal["bias", "none", "raw"] = "bias"
    """What becomes of behavior features: "bias": as in Eq. 5; "none": the attention has none of
    them ("TWIN w/o Bias"); "raw": they are a part of the keys ("TWIN w/ Raw MHTA")."""
    consistent: bool = True
    """Whether the search uses the attention's parameters. If not ("TWIN w/o Para-Con"), it has its
    own, which an auxiliary TWIN trains (`TWIN.auxiliary_loss`)."""

    def build(self, d: int, inputs: Inputs) -> TWIN:
        """The module of TWIN.

        Raises:
            TrainingError: k or heads is not positive, or d_k is 0 and heads do not divide d.
        """
        if self.k < 1 or self.heads < 1 or self.d_k < 0:
            raise TrainingError(
                f"twin needs k >= 1, heads >= 1 and d_k >= 0, "
                f"not k = {self.k}, heads = {self.heads}, d_k = {self.d_k}"
            )
        if not self.d_k and d % self.heads:
            raise TrainingError(f"heads of twin must divide d = {d}, not {self.heads}; or set d_k")
        return TWIN(self, d, inputs)


class Keys(NamedTuple):
    """The sequence's side of Eq. 6."""

    projected: Tensor
    """K_h W^h, f32[..., L, heads * d_k]."""
    bias: Tensor | None
    """K_c W^c beta, f32[..., L, heads], with few digits; None without cross features."""


class Relevance(nn.Module):
    """The relevance of behaviors to candidates (Eq. 6). Its two sides are apart.

    Queries and keys start with the same projection, semi-orthogonal: the first step already
    measures how similar embeddings are.
    """

    def __init__(self, d: int, heads: int, d_k: int, cross: int, *, raw: bool) -> None:
        super().__init__()
        self.heads, self.d_k, self.raw = heads, d_k, raw
        start = nn.init.orthogonal_(torch.empty(d, heads * d_k))
        self.query = nn.Parameter(start)
        """W^q of all heads side by side."""
        self.key = nn.Parameter(start.clone())
        """W^h of all heads side by side."""
        biased = cross > 0 and not raw
        self.compression = nn.Parameter(torch.randn(cross, d, heads) / d**0.5) if biased else None
        """w^c of each cross feature and head (Eq. 5)."""
        self.beta = nn.Parameter(torch.ones(cross)) if biased else None

    def project_target(self, embeddings: Tensor) -> Tensor:
        """f32[..., d] of candidates -> f32[..., heads * d_k], divided by sqrt(d_k)."""
        return project(embeddings, self.query * self.d_k**-0.5, self.heads)

    def project_items(self, embeddings: Tensor) -> Tensor:
        """K_h W^h, f32[..., heads * d_k] of items f32[..., d]."""
        return project(embeddings, self.key, self.heads)

    def compress_features(self, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """w^c beta of each cross feature's values (Eq. 5), f32[F, heads] by feature; none without
        biases.

        A score is then the sum of two numbers that are the same to the last digit wherever they are
        computed, and so is their sum, as long as it is their sum alone that is rounded.

        Args:
            tables: f32[F, d] by feature, embeddings of its values.
        """
        if self.compression is None or self.beta is None:
            return {}
        weights = self.compression * self.beta[:, None, None]
        return {
            name: project(table, weight, self.heads)
            for (name, table), weight in zip(tables.items(), weights, strict=True)
        }

    def project_sequence(self, sequence: BehaviorSequence) -> Keys:
        """What does not depend on the candidate: a service stores it, or looks it up by item."""
        if self.raw:
            return Keys(sequence.project(self.key), None)
        biases = self.compress_features(sequence.feature_tables)
        bias = sum(
            functional.embedding(sequence.features[name], table) for name, table in biases.items()
        )
        keys = functional.embedding(sequence.rows, self.project_items(sequence.table))
        return Keys(keys, cast("Tensor", bias) if biases else None)

    def forward(self, queries: Tensor, keys: Keys) -> Tensor:
        """queries f32[..., B, heads * d_k] -> scores f32[..., heads, B, L]"""
        scores = by_head(queries, self.heads) @ by_head(keys.projected, self.heads).mT
        return scores if keys.bias is None else scores + keys.bias.mT.unsqueeze(-2)


class TWIN(LongTerm):
    """Target attention on the behaviors that the same attention ranks first."""

    def __init__(self, config: TWINConfig, d: int, inputs: Inputs) -> None:
        super().__init__(d, inputs)
        self.config = config
        heads, d_k = config.heads, config.d_k or d // config.heads
        cross = len(inputs.schema.behaviors) if config.cross == "bias" else 0
        raw = config.cross == "raw" and bool(inputs.schema.behaviors)
        self.relevance = Relevance(d, heads, d_k, cross, raw=raw)
        start = nn.init.orthogonal_(torch.empty(d, heads * d_k))
        self.value = nn.Parameter(start)
        """W^v of all heads side by side."""
        self.out = nn.Parameter(start.T.clone())
        """W^o; it starts by undoing W^v."""
        self.search: Relevance | None = None
        """The search's own relevance, if it is not the attention's."""
        if not config.consistent:
            self.search = Relevance(d, heads, d_k, cross, raw=raw)
            self.search_scale = nn.Parameter(torch.ones(()))
            self.search_offset = nn.Parameter(torch.zeros(()))

    def project_sequence(self, sequence: BehaviorSequence) -> tuple[Keys, Tensor]:
        """Keys, and values K W^v, f32[R, L, heads * d_k]."""
        if self.config.cross == "none":
            values = sequence.project_items(self.value)
        else:
            values = sequence.project(self.value)
        return self.relevance.project_sequence(sequence), values

    def project_target(self, embeddings: Tensor) -> Tensor:
        """Queries f32[..., B, heads * d_k] of candidates f32[..., B, d]."""
        return self.relevance.project_target(embeddings)

    def summarize(self, sequence: BehaviorSequence) -> State:
        """Projections of all behaviors: "keys", "values", "bias", and for a search with parameters
        of its own "search_keys" and "search_bias".
        """
        keys, values = self.project_sequence(sequence)
        state = {
            "keys": keys.projected,
            "values": values,
            "behavior_mask": sequence.mask.to(values.dtype),
        }
        if keys.bias is not None:
            state["bias"] = keys.bias
        if self.search is not None:
            searched = self.search.project_sequence(sequence)
            state["search_keys"] = searched.projected.detach()
            if searched.bias is not None:
                state["search_bias"] = searched.bias.detach()
        return state

    def find(self, state: State, target: Target) -> Tensor:
        """Search (CP-GSU) and attend to what is found (ESU, Eq. 7): the heads side by side."""
        weights, _ = self._attention(state, target)
        pooled = weights @ by_head(state["values"], self.config.heads)
        return pooled.transpose(-3, -2).flatten(-2)

    def finish(self, found: Tensor) -> Tensor:
        """Mix the heads (Eq. 8)."""
        return found @ self.out

    def served(self, *, half: bool, feature_tables: Mapping[str, Tensor]) -> Served | None:
        """Nothing is stored of a user: a request reads the behaviors themselves, and what is
        inherent in their items lies in item tables; what their features add is a number per head
        and value. The services' search has the attention's parameters, and keys of items alone.
        """
        if not self.config.consistent or self.relevance.raw:
            return None
        heads, d_k = self.config.heads, self.relevance.d_k
        width = heads * d_k
        compressed = self.relevance.compress_features(feature_tables)
        biases = {name: tuple(map(tuple, table.tolist())) for name, table in compressed.items()}
        return Served(
            offline=TWINOffline(k=self.config.k, heads=heads, d_k=d_k).seeing(biases),
            tables={
                "queries": TableEntry("float16", width),
                "keys": TableEntry("float16", width),
                "values": TableEntry("float32", width),
            },
            stored={},
            finished=width,
        )

    def summarize_stored(self, sequence: BehaviorSequence, *, half: bool) -> State:
        """Nothing is stored."""
        return self.summarize(sequence)

    def per_item(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Of each item "queries" q^T W^q / sqrt(d_k), "keys" K_h W^h and "values" K W^v."""
        return {
            "queries": self.project_target(embeddings).half(),
            "keys": self.relevance.project_items(embeddings).half(),
            "values": embeddings @ self.value,
        }

    def weights(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """The mean of the heads' weights; 0 for what the search leaves out."""
        weights, _ = self._attention(self.summarize(sequence), target)
        return weights.mean(-3)

    def retrieved(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """The k behaviors that the search lets through, or all where there are no more."""
        _, retrieved = self._attention(self.summarize(sequence), target)
        return retrieved.expand(-1, target.embeddings.shape[-2], -1)

    def auxiliary_loss(
        self, sequence: BehaviorSequence, generator: torch.Generator
    ) -> Tensor | None:
        """The loss of the search's own parameters: that of an auxiliary TWIN of the same structure.

        It attends to all behaviors but the newest, and tells the newest from that of another
        request, by the similarity of candidate and interest. It sees the embeddings as they are
        and never moves them, so that parameters are all that differs from consistent TWIN.
        """
        if self.search is None:
            return None
        enough = sequence.mask.sum(1) >= 2
        if int(enough.sum()) < 2:
            return None
        older = constant_part(sequence, enough)
        newest = functional.embedding(older.rows[:, -1], older.table)
        older.mask[:, -1] = False
        pair = torch.stack([newest, newest.roll(1, 0)], dim=1)
        queries = self.search.project_target(pair)
        scores = self.search(queries, self.search.project_sequence(older))
        weights = masked_softmax(scores, older.mask[:, None, None])
        interests = (weights @ older.embeddings.unsqueeze(1)).mean(1)
        logits = (interests * pair).sum(-1) * self.search_scale + self.search_offset
        labels = torch.zeros_like(logits)
        labels[:, 0] = 1.0
        return functional.binary_cross_entropy_with_logits(logits, labels)

    def _attention(self, state: State, target: Target) -> tuple[Tensor, Tensor]:
        """Weights f32[..., heads, B, L], and what was retrieved: bool[..., B, L], or
        bool[..., 1, L] where it is everything.
        """
        queries = self.project_target(target.embeddings)
        scores = self.relevance(queries, Keys(state["keys"], state.get("bias")))
        mask = (state["behavior_mask"] > 0).unsqueeze(-2)
        if self.config.k >= scores.shape[-1] and not torch.compiler.is_exporting():
            return masked_softmax(scores, mask.unsqueeze(-3)), mask
        ranked = scores
        if self.search is not None:
            searched = Keys(state["search_keys"], state.get("search_bias"))
            ranked = self.search(self.search.project_target(target.embeddings), searched)
        retrieved = search(ranked.detach(), mask, self.config.k)
        return masked_softmax(scores, retrieved.unsqueeze(-3)), retrieved


def search(scores: Tensor, mask: Tensor, k: int) -> Tensor:
    """The k behaviors first met when the heads' rankings are gone through in turns.

    TWIN, section 4.3: the first of every head, then the second of every head, and so on, until k
    different ones are found. Behaviors of equal score rank by their place, newest first.

    Args:
        scores: f32[..., heads, B, L].
        mask: bool[..., 1, L], False where padded.
        k: behaviors to find.

    Returns:
        bool[..., B, L].
    """
    if scores.device.type == "cpu" and not torch.compiler.is_exporting():
        heads, B, L = scores.shape[-3:]
        found = search_scores(
            scores.detach().float().reshape(-1, heads, B, L).numpy(),
            mask.expand(*scores.shape[:-3], 1, L).reshape(-1, L).numpy(),
            k,
            torch.get_num_threads(),
        )
        return torch.from_numpy(found).reshape(*scores.shape[:-3], B, L)
    return search_by_sorting(scores, mask, k)


def search_by_sorting(scores: Tensor, mask: Tensor, k: int) -> Tensor:
    """`search` on any device, and in exported graphs."""
    heads, L = scores.shape[-3], scores.shape[-1]
    places = torch.arange(L, device=scores.device) * NEWEST_FIRST
    ranked = scores.masked_fill(~mask.unsqueeze(-3), MASKED).double() + places
    # With k columns more there are never too few to take k from, whatever L a graph is given.
    first = functional.pad(ranked, (0, k), value=2 * MASKED).topk(k).indices
    head = torch.arange(heads, device=scores.device)[:, None, None]
    turn = torch.arange(k, device=scores.device) * heads + head
    turns = turn.expand_as(first).transpose(-3, -2).flatten(-2)
    met = first.transpose(-3, -2).flatten(-2)
    never = heads * k
    unmet = torch.full_like(ranked[..., 0, :, :], never, dtype=torch.int64)
    earliest = functional.pad(unmet, (0, k), value=never).scatter_reduce(-1, met, turns, "amin")
    last = earliest.topk(k, largest=False).values[..., -1:]
    return (earliest <= last)[..., :L] & mask


def by_head(rows: Tensor, heads: int) -> Tensor:
    """f32[..., n, heads * w] -> f32[..., heads, n, w]"""
    return rows.reshape(*rows.shape[:-1], heads, -1).transpose(-3, -2)


def constant_part(sequence: BehaviorSequence, chosen: Tensor) -> BehaviorSequence:
    """The chosen requests' behaviors (bool[R]), without gradients to any table."""
    return BehaviorSequence(
        sequence.rows[chosen],
        sequence.mask[chosen],
        sequence.table.detach(),
        features={name: rows[chosen] for name, rows in sequence.features.items()},
        feature_tables={name: table.detach() for name, table in sequence.feature_tables.items()},
    )
