"""The network around a long-term module: embeddings by schema, recent behaviors, tower (Eq. 1).

All methods see the same inputs and have the same tower; only the long-term module differs. Where
the parts of the input come from stands in `models.data.schema`, how a batch is gathered in
`models.data.batches`.
"""

from __future__ import annotations

import math
from typing import cast

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data.batches import Batch
from models.data.schema import Inputs
from models.modules.layers import RecentAttention, Tower
from models.modules.long_term import LongTerm, State
from models.modules.sequence import BehaviorSequence, Target


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Configuration of what all methods share: embeddings, recent behaviors, tower."""

    d: int = 32
    """Width of an embedding."""
    M: int = 50
    """Recent behaviors that are attended to one by one, at most."""
    hidden: tuple[int, int] = (64, 32)
    """Widths of the tower's hidden layers."""
    dropout: float = 0.0
    """Share of the first hidden layer's units that a step of training leaves out."""


class Network(nn.Module):
    """A CTR network with a long-term module of any method."""

    def __init__(self, config: NetworkConfig, inputs: Inputs, long: LongTerm) -> None:
        super().__init__()
        self.config, self.inputs, self.long = config, inputs, long
        self.sampling_rate = 1.0
        """Share of the negatives that it learns from (`models.data.requests.sampling_rate`)."""
        d = config.d
        self.embedding = nn.Embedding(inputs.n_items + 1, d)
        self.item_attributes = _tables(inputs, "item", inputs.schema.item, d)
        self.user_attributes = _tables(inputs, "user", inputs.schema.user, d)
        self.behavior_features = _tables(inputs, "behavior", inputs.schema.behaviors, d)
        for table in self.modules():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=d**-0.5)
                with torch.no_grad():
                    table.weight[0] = 0  # where nothing teaches it, the unknown says nothing
        if "action" in self.behavior_features:  # and neither does an action that nobody did
            with torch.no_grad():
                cast(nn.Embedding, self.behavior_features["action"]).weight[
                    list(inputs.untaught)
                ] = 0
        for name, rows in inputs.items.items():
            self.register_buffer(f"rows_{name}", torch.from_numpy(rows), persistent=False)
        self.register_buffer("categories", torch.from_numpy(inputs.categories), persistent=False)
        self.recent = RecentAttention(d, config.M)
        pair = 3 * d + (long.width + d if long.width else 0) + len(inputs.cross_features)
        self.tower = Tower(
            user=len(inputs.user_features) + d * len(inputs.schema.user),
            pair=pair,
            hidden=config.hidden,
            dropout=config.dropout,
        )

    def item_table(self) -> Tensor:
        """f32[n + 1, d]: the items' embeddings, their attributes' (a mean over values) added."""
        table: Tensor = self.embedding.weight
        for name, attribute in self.item_attributes.items():
            table = table + _mean(attribute, cast(Tensor, getattr(self, f"rows_{name}")))
        return table

    def user_tables(self) -> dict[str, Tensor]:
        """Embeddings of the user attributes' values, by attribute: f32[U, d]."""
        return {name: cast(Tensor, table.weight) for name, table in self.user_attributes.items()}

    def feature_tables(self) -> dict[str, Tensor]:
        """Embeddings of the behavior features' values, by feature: f32[F, d]."""
        return {
            name: cast(Tensor, feature.weight) for name, feature in self.behavior_features.items()
        }

    def sequence(self, batch: Batch, table: Tensor) -> BehaviorSequence:
        """The batch's behaviors, on an item table."""
        return BehaviorSequence(
            batch.rows,
            batch.mask,
            table,
            newer=batch.newer,
            features=batch.features,
            feature_tables=self.feature_tables(),
            categories=cast(Tensor, self.categories),
        )

    def target(self, batch: Batch, table: Tensor) -> Target:
        """The batch's candidates, on an item table."""
        categories = cast(Tensor, self.categories)
        rows = batch.candidates
        return Target(functional.embedding(rows, table), categories[rows], rows)

    def user(self, batch: Batch) -> Tensor:
        """f32[R, u']: features of the user, and embeddings of their attributes."""
        parts = [batch.user]
        for name, attribute in self.user_attributes.items():
            parts.append(_mean(attribute, batch.user_rows[name]))
        return torch.cat(parts, dim=-1)

    def forward(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [R, B] (Eq. 1); with a generator also the long-term module's own loss."""
        table = self.item_table()
        sequence, target = self.sequence(batch, table), self.target(batch, table)
        long = self.long(sequence, target) if self.long.width else None
        recent = sequence.latest(self.config.M)
        logits = self.logits_of(
            long,
            recent.embeddings,
            recent.mask.to(table.dtype),
            self.user(batch),
            target,
            batch.cross,
        )
        loss = None if generator is None else self.long.auxiliary_loss(sequence, generator)
        return logits, loss

    def ctrs(self, logits: Tensor) -> Tensor:
        """CTRs of logits, in any shape: those of what is ranked, not of what was learned from.

        Where only a share w of the negatives was learned from, a CTR p is p / (p + (1 - p) / w) in
        truth (He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, section 6.3):
        log-odds are higher by -ln w. The order of candidates stays.
        """
        return torch.sigmoid(logits.float() + math.log(self.sampling_rate))

    def logits(
        self,
        state: State,
        recent: Tensor,
        recent_mask: Tensor,
        user: Tensor,
        target: Target,
        cross: Tensor,
    ) -> Tensor:
        """Logits by the online part, from a stored state.

        Args:
            state: what `LongTerm.summarize` gave.
            recent: f32[..., M', d], newest last, M' <= M.
            recent_mask: f32[..., M'].
            user: f32[..., u'].
            target: B candidates.
            cross: f32[..., B, c].

        Returns:
            f32[..., B].
        """
        long = self.long.read(state, target) if self.long.width else None
        return self.logits_of(long, recent, recent_mask, user, target, cross)

    def logits_of(
        self,
        long: Tensor | None,
        recent: Tensor,
        recent_mask: Tensor,
        user: Tensor,
        target: Target,
        cross: Tensor,
    ) -> Tensor:
        """`logits` from what `LongTerm.read` gave, f32[..., B, width]; None: nothing."""
        candidates = target.embeddings
        short = self.recent(candidates, recent, recent_mask)
        parts = [candidates, short, candidates * short]
        if long is not None:
            parts += [long, candidates * long[..., : self.config.d]]
        return cast(Tensor, self.tower(user, [*parts, cross]))


def _mean(attribute: nn.Module, rows: Tensor) -> Tensor:
    """f32[..., d]: the mean embedding of an attribute's values i64[..., w], 0 standing for none."""
    values: Tensor = attribute(rows)
    known = (rows > 0).unsqueeze(-1).to(values.dtype)
    return (values * known).sum(-2) / known.sum(-2).clamp(min=1.0)


def _tables(inputs: Inputs, kind: str, names: tuple[str, ...], d: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {name: nn.Embedding(inputs.heights[f"{kind}.{name}"], d) for name in names}
    )
