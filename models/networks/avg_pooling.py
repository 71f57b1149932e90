"""AvgPooling: the mean of the whole long sequence, whatever the candidate (ENCODE, section 4.2)."""

from __future__ import annotations

from torch import Tensor

from models.data.schema import Inputs
from models.modules.long_term import LongTerm, LongTermConfig, State
from models.modules.sequence import BehaviorSequence, Target


class AvgPoolingConfig(LongTermConfig, frozen=True, tag="avg-pooling"):
    """Configuration of AvgPooling."""

    def build(self, d: int, inputs: Inputs) -> AvgPooling:
        """The module of AvgPooling."""
        return AvgPooling(self, d, inputs)


class AvgPooling(LongTerm):
    """One interest, the same for all candidates."""

    def __init__(self, config: AvgPoolingConfig, d: int, inputs: Inputs) -> None:
        super().__init__(d, inputs)
        self.config = config

    def summarize(self, sequence: BehaviorSequence) -> State:
        bins = sequence.rows.new_zeros(sequence.rows.shape)
        return {"average": sequence.pool_into(bins, _uniform(sequence), 1)}

    def read(self, state: State, target: Target) -> Tensor:
        average = state["average"]
        return average.expand(*target.embeddings.shape[:-1], average.shape[-1])

    def weights(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        return _uniform(sequence).unsqueeze(1).expand(-1, target.embeddings.shape[-2], -1)


def _uniform(sequence: BehaviorSequence) -> Tensor:
    mask = sequence.mask.to(sequence.table.dtype)
    return mask / mask.sum(-1, keepdim=True).clamp(min=1.0)
