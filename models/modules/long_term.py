"""The interface of a long-term module: what a method makes of a user's whole sequence.

Every method has two stages, and they are two functions here. Offline, `summarize` turns a sequence
into the state that a service would store; online, `read` turns a state and candidates into the
user's long-term interest relative to each. Training composes the two; export takes `read` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from models.bundle import Offline, StateTensor, TableEntry
from models.data.schema import Inputs
from models.modules.sequence import BehaviorSequence, Target

State = dict[str, Tensor]
"""What a service stores of a user: tensors by name, each f32 or i64 [..., rows, width] or
[..., rows]. The leading axes are the batch's, absent in an exported graph."""


class Served(NamedTuple):
    """How the services serve a method: what its bundle's manifest says of it."""

    offline: Offline
    tables: dict[str, TableEntry]
    """The item tables, which `LongTerm.per_item` gives by the same names."""
    stored: dict[str, StateTensor]
    finished: int = 0
    """Width of what `LongTerm.find` returns, where the services find it themselves, so that
    scorer.onnx is fed it in the state's place; 0: they do not."""
    summed: int = 1
    """Most embeddings whose sum a stored number is part of."""


class LongTermConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="network"):
    """Configuration of a long-term module, as far as all methods share it."""

    keeps_state: ClassVar[bool] = True
    """Whether a service stores something of a user that can be older than a request."""

    L: int = 1000
    """Behaviors that the module sees, at most."""

    def build(self, d: int, inputs: Inputs) -> LongTerm:
        """The module that this configures.

        Args:
            d: width of the embeddings.
            inputs: what the network sees.
        """
        raise NotImplementedError


class LongTerm(nn.Module):
    """A method's long-term module."""

    width: int
    """Width of what `read` returns; 0 for a method without a long-term part."""

    reads: frozenset[Literal["categories", "rows"]] = frozenset()
    """What `read` looks at beside the candidates' embeddings."""

    def __init__(self, d: int, inputs: Inputs) -> None:
        super().__init__()
        self.d = d
        self.inputs = inputs
        self.width = d

    def forward(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """Both stages in a row; -> f32[R, B, width]."""
        return self.read(self.summarize(sequence), target)

    def summarize(self, sequence: BehaviorSequence) -> State:
        """The offline stage: from a sequence to what a service would store."""
        raise NotImplementedError

    def read(self, state: State, target: Target) -> Tensor:
        """The online stage: interests f32[..., B, width]; without any behavior zeros."""
        return self.finish(self.find(state, target))

    def find(self, state: State, target: Target) -> Tensor:
        """What of `read` depends on the user: f32[..., B, w]."""
        raise NotImplementedError

    def finish(self, found: Tensor) -> Tensor:
        """What `read` makes of it, candidate by candidate; f32[..., B, width]."""
        return found

    def weights(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """How much each behavior counts for each candidate; -> f32[R, B, L].

        They sum to 1 over the behaviors of a request that has any, and are 0 for padding.
        """
        raise NotImplementedError

    def retrieved(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """Which behaviors a search stage lets through, without one all; -> bool[R, B, L]."""
        B = target.embeddings.shape[-2]
        return sequence.mask.unsqueeze(1).expand(-1, B, -1)

    def auxiliary_loss(
        self, sequence: BehaviorSequence, generator: torch.Generator
    ) -> Tensor | None:
        """A loss of the module's own, beside the cross-entropy; a scalar, or None."""
        return None

    def served(self, *, half: bool, feature_tables: Mapping[str, Tensor]) -> Served | None:
        """How the services serve it; None: they do not, or not as it is configured.

        Args:
            half: have what they store of a user's interests kept as float16.
            feature_tables: embeddings of the behavior features' values, f32[F, d] by feature.
        """
        return None

    def summarize_stored(self, sequence: BehaviorSequence, *, half: bool) -> State:
        """`summarize` as it comes about in the services: what is newer than the state meets what
        comes back from the store.

        Args:
            sequence: of any requests.
            half: whether it was stored as float16.
        """
        raise NotImplementedError

    def per_item(self, embeddings: Tensor) -> dict[str, Tensor]:
        """What the offline stage computes of each item by itself; exported as a graph.

        Args:
            embeddings: f32[n, d].

        Returns:
            [n, width] by name: ENCODE's projections (Eq. 4), for example.
        """
        return {}

    def on_epoch(self, table: Tensor) -> None:
        """Called before each epoch of training, for what a module derives from the items and keeps.

        Args:
            table: f32[n + 1, d]: the items' embeddings as they are now.
        """


class Nothing(LongTerm):
    """No long-term part: DIN, which sees the recent behaviors only."""

    def __init__(self, d: int, inputs: Inputs) -> None:
        super().__init__(d, inputs)
        self.width = 0

    def summarize(self, sequence: BehaviorSequence) -> State:
        """An empty state: nothing is stored."""
        return {}

    def read(self, state: State, target: Target) -> Tensor:
        """No interest: f32[..., B, 0]."""
        return target.embeddings[..., :0]
