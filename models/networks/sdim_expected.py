"""SDIM with as many hashes as one likes: its expectation, without sampling (SDIM, section 6.3.1).

It tells what more hash functions could still bring. No service would serve it: it reads every
behavior for every candidate, as DIN-L does.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from infra.errors import TrainingError
from models.data.schema import Inputs
from models.modules.layers import EPSILON, unit
from models.modules.long_term import LongTerm, LongTermConfig, State
from models.modules.sequence import BehaviorSequence, Target

STRAIGHT: Final = 1 - 1e-6
"""Greatest cosine: next to 1 an angle has half of a cosine's digits, so that a candidate's with its
own occurrences would differ between runtimes. It costs them 0.05 % of a chance."""


class ExpectedSDIMConfig(LongTermConfig, frozen=True, tag="sdim-expected"):
    """Configuration of SDIM in expectation."""

    tau: float = 3.0
    """Hash functions that make one signature; 0 gives the mean of all behaviors."""

    def build(self, d: int, inputs: Inputs) -> ExpectedSDIM:
        """The module of SDIM in expectation.

        Raises:
            TrainingError: tau is negative.
        """
        if not self.tau >= 0:
            raise TrainingError(f"tau of sdim-expected must be 0 or more, not {self.tau:g}")
        return ExpectedSDIM(self, d, inputs)


class ExpectedSDIM(LongTerm):
    """Attention by the probability of a collision (Eq. 14)."""

    def __init__(self, config: ExpectedSDIMConfig, d: int, inputs: Inputs) -> None:
        super().__init__(d, inputs)
        self.config = config

    def summarize(self, sequence: BehaviorSequence) -> State:
        return {
            "sequence": sequence.embeddings,
            # What SDIM hashes: the items alone. No gradient, as signatures have none: without it,
            # this is the limit that SDIM comes to.
            "sequence_directions": unit(sequence.items.detach()),
            "sequence_mask": sequence.mask.to(sequence.table.dtype),
        }

    def read(self, state: State, target: Target) -> Tensor:
        return self._weights(state, target) @ state["sequence"]

    def weights(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        return self._weights(self.summarize(sequence), target)

    def _weights(self, state: State, target: Target) -> Tensor:
        """Weights [..., B, L] (Eq. 15)."""
        cosines = unit(target.embeddings.detach()) @ state["sequence_directions"].mT
        chances = collision_probability(cosines.clamp(-STRAIGHT, STRAIGHT), self.config.tau)
        weights = chances * state["sequence_mask"].unsqueeze(-2)
        return weights / weights.sum(-1, keepdim=True).clamp(min=EPSILON)


def collision_probability(cosine: Tensor, tau: float) -> Tensor:
    """The expected share of signatures of ``tau`` codes that two vectors have alike (Eq. 13).

    Any shape.

    >>> collision_probability(torch.tensor([-1.0, 0.0, 1.0]), 2).tolist()
    [0.0, 0.25, 1.0]
    """
    return (1 - torch.arccos(cosine.clamp(-1, 1)) / math.pi) ** tau
