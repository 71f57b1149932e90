"""DIN-L: standard target attention over the whole long sequence (DIN: Zhou et al., KDD 2018).

The papers take it as the quality to reach and the cost to avoid: a service must read every
behavior's embedding at request time. DIN itself has no long-term part, see
`models.modules.long_term.Nothing`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.data.schema import Inputs
from models.modules.layers import attend, masked_softmax
from models.modules.long_term import LongTerm, LongTermConfig, Nothing, State
from models.modules.sequence import BehaviorSequence, Target


class DINConfig(LongTermConfig, frozen=True, tag="din"):
    """Configuration of DIN: no long-term part; the recent behaviors are the network's own."""

    L: int = 0
    """Behaviors that the module sees: none."""

    def build(self, d: int, inputs: Inputs) -> Nothing:
        """The module `Nothing`."""
        return Nothing(d, inputs)


class DINLConfig(LongTermConfig, frozen=True, tag="din-l"):
    """Configuration of DIN-L."""

    attention: Literal["dot", "mlp"] = "dot"
    """How scores are made; "dot": scaled dot product, as in ENCODE and TWIN; "mlp": DIN's unit."""
    hidden: int = 36
    """Width of the activation unit's hidden layer (DIN, section 5.3)."""

    def build(self, d: int, inputs: Inputs) -> DINL:
        """The module of DIN-L."""
        return DINL(self, d, inputs)


class DINL(LongTerm):
    """Target attention on all behaviors."""

    def __init__(self, config: DINLConfig, d: int, inputs: Inputs) -> None:
        super().__init__(d, inputs)
        self.config = config
        self.attention: nn.Module = (
            DotProduct(d) if config.attention == "dot" else ActivationUnit(d, config.hidden)
        )

    def summarize(self, sequence: BehaviorSequence) -> State:
        return {
            "sequence": sequence.embeddings,
            "sequence_mask": sequence.mask.to(sequence.table.dtype),
        }

    def read(self, state: State, target: Target) -> Tensor:
        scores = self.attention(target.embeddings, state["sequence"])
        return attend(scores, state["sequence_mask"], state["sequence"])

    def weights(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        scores = self.attention(target.embeddings, sequence.embeddings)
        return masked_softmax(scores, sequence.mask.unsqueeze(-2))


class DotProduct(nn.Module):
    """Scores q^T W k / sqrt(d). A query and a key matrix only ever occur as their product W."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.metric = nn.Parameter(torch.eye(d))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """queries [..., B, d], keys [..., L, d] -> [..., B, L]"""
        scaled: Tensor = queries @ self.metric * self.metric.shape[0] ** -0.5
        scores: Tensor = scaled @ keys.transpose(-1, -2)
        return scores


class ActivationUnit(nn.Module):
    """DIN's scores: an MLP on (q, k, q - k, q * k) with a sigmoid hidden layer.

    The first layer is linear, so that it splits: a part of q, a part of k, and one of q * k.
    """

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(d, hidden)
        self.key = nn.Linear(d, hidden, bias=False)
        self.product = nn.Parameter(torch.randn(d, hidden) * d**-0.5)
        self.out = nn.Linear(hidden, 1)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """queries [..., B, d], keys [..., L, d] -> [..., B, L]"""
        mixed = keys.unsqueeze(-3) @ (queries.unsqueeze(-1) * self.product)
        hidden = self.query(queries).unsqueeze(-2) + self.key(keys).unsqueeze(-3) + mixed
        scores: Tensor = self.out(torch.sigmoid(hidden))
        return scores.squeeze(-1)
