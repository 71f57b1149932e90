"""MIMN: multi-channel user interest memory network (Pi et al., KDD 2019).

A neural Turing machine reads a user's behaviors one after another and writes them into m slots of
memory: the state of a user, which the next behavior advances. Utilization regularization keeps
few slots from taking all the writing; the memory induction unit keeps a GRU a channel, which
follows how an interest evolves. Online, the machine reads its memory with the candidate.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple
from weakref import WeakKeyDictionary

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data.schema import Inputs
from models.modules.layers import unit
from models.modules.long_term import LongTerm, LongTermConfig, State
from models.modules.sequence import BehaviorSequence, Target
from models.networks.din import DotProduct

SHARPNESS: Final = 2.0
"""What an addressing's learned strength is multiplied with; cosines alone address all slots."""

IDENTITY: Final = 5.0
"""Logit of the rebalancing's diagonal: at first each slot keeps 19 in 20 of its writes (m = 8)."""


class MIMNConfig(LongTermConfig, frozen=True, tag="mimn"):
    """Configuration of MIMN."""

    m: Annotated[int, msgspec.Meta(ge=2)] = 8
    """Slots of memory."""
    rebalance: bool = True
    """Whether writes are rebalanced among slots, and unequal use costs (Eqs. 5-8)."""
    induction: bool = True
    """Whether there is a memory induction unit (Eq. 9)."""
    channels: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Channels that the induction unit advances at a behavior: those read the most."""

    def build(self, d: int, inputs: Inputs) -> MIMN:
        """The module of MIMN."""
        return MIMN(self, d, inputs)


class Trace(NamedTuple):
    """What the machine did with each behavior."""

    writes: Tensor
    """f32[R, L, m]: weights of its writing to the slots; 0 for padding."""
    erased: Tensor
    """f32[R, L]: what share of a slot a write of weight 1 erased, a mean over the slot's width."""
    rebalanced: Tensor
    """f32[R, m]: writes in sum, as far as the rebalancing alone decided."""


class Gates(nn.Module):
    """A GRU cell whose input comes multiplied already, for all steps at once."""

    def __init__(self, recurrent: int, hidden: int) -> None:
        super().__init__()
        self.read = nn.Linear(recurrent, 3 * hidden)
        self.hidden = nn.Linear(hidden, 3 * hidden)

    def forward(self, given: Tensor, read: Tensor, hidden: Tensor) -> Tensor:
        """given [..., 3h], read [..., r], hidden [..., h] -> [..., h]"""
        reset, update, new = (given + self.read(read)).chunk(3, dim=-1)
        old_reset, old_update, old = self.hidden(hidden).chunk(3, dim=-1)
        kept = torch.sigmoid(update + old_update)
        new = torch.tanh(new + torch.sigmoid(reset + old_reset) * old)
        return new + kept * (hidden - new)


class MIMN(LongTerm):
    """Memory slots that behaviors are written into, one after another."""

    def __init__(self, config: MIMNConfig, d: int, inputs: Inputs) -> None:
        super().__init__(d, inputs)
        self.config = config
        m = config.m
        self.width = 2 * d if config.induction else d
        self.slot_keys = nn.Parameter(torch.randn(m, d) * 0.5)
        self.begin = nn.Parameter(torch.zeros(d))
        self.behavior = nn.Parameter(torch.randn(d, 3 * d) * d**-0.5)
        self.controller = Gates(d, d)
        # A key and a strength to read with and to write with, what to erase and what to add.
        self.heads = nn.Linear(d, 2 * (d + 1) + 2 * d)
        self.out = nn.Linear(2 * d, d)
        if config.rebalance:
            self.balance = nn.Parameter(torch.zeros(m, m * m))
        if config.induction:
            self.evolving = nn.Parameter(torch.randn(d, 3 * d) * d**-0.5)
            self.channel = Gates(d, d)
            self.attention = DotProduct(d)
        self._traces: WeakKeyDictionary[BehaviorSequence, Trace] = WeakKeyDictionary()

    def summarize(self, sequence: BehaviorSequence) -> State:
        """The state after all behaviors, those newer than an offline stage too: a service advances
        it at each.
        """
        return self.advance(self.start(sequence), sequence)

    def start(self, sequence: BehaviorSequence) -> State:
        """The state of users that have done nothing yet."""
        R, m, d = len(sequence.rows), self.config.m, self.d
        zeros = sequence.table.new_zeros
        state = {
            "slots": zeros(R, m, d),
            "slot_mask": zeros(R, m),
            "slot_writes": zeros(R, m),
            "controller": zeros(R, 1, d),
            "last_read": self.begin.tanh().expand(R, 1, d),
        }
        if self.config.induction:
            state["channels"] = zeros(R, m, d)
        return state

    def advance(self, state: State, sequence: BehaviorSequence) -> State:
        """The state after more behaviors, oldest first."""
        given = sequence.project(self.behavior).unbind(1)
        evolving = sequence.project(self.evolving).unbind(1) if self.config.induction else given
        mask = sequence.mask.to(sequence.table.dtype).unsqueeze(-1)
        real = mask.unbind(1)
        slots, used = state["slots"], state["slot_writes"]
        controller, read = state["controller"].squeeze(1), state["last_read"].squeeze(1)
        channels = state.get("channels")
        rebalanced, keys = torch.zeros_like(used), unit(self.slot_keys)
        writes: list[Tensor] = []
        erased: list[Tensor] = []
        for t, now in enumerate(real):
            hidden = self.controller(given[t], read, controller)
            asked, erase, add = self._heads(hidden)
            read_weights, write_weights = self._address(asked, slots, keys).unbind(-2)
            if self.config.rebalance:
                transfer = self._transfer(used)
                by_balance = write_weights.detach().unsqueeze(1) @ transfer
                rebalanced = rebalanced + by_balance.squeeze(1) * now
                write_weights = (write_weights.unsqueeze(1) @ transfer).squeeze(1)
            fresh = (read_weights.unsqueeze(1) @ slots).squeeze(1)
            if channels is not None:
                channels = self._induce(channels, slots, read_weights * now, evolving[t])
            # Padding writes with weight 0 and leaves the rest as it was.
            write_weights = write_weights * now
            weight = write_weights.unsqueeze(-1)
            slots = slots + weight * (add.unsqueeze(1) - erase.unsqueeze(1) * slots)
            used = used + write_weights.detach()
            controller = controller + now * (hidden - controller)
            read = read + now * (fresh - read)
            writes.append(write_weights)
            erased.append(erase.mean(-1))
        self._traces[sequence] = Trace(
            torch.stack(writes, dim=1), torch.stack(erased, dim=1), rebalanced
        )
        advanced = {
            "slots": slots,
            "slot_mask": torch.maximum(state["slot_mask"], mask.amax(1)),
            "slot_writes": used,
            "controller": controller.unsqueeze(1),
            "last_read": read.unsqueeze(1),
        }
        return advanced if channels is None else advanced | {"channels": channels}

    def read(self, state: State, target: Target) -> Tensor:
        """The controller takes the candidate for the next behavior, and reads what it asks for."""
        candidates, known = target.embeddings, state["slot_mask"][..., :1].unsqueeze(-1)
        hidden, weights = self._ask(state, candidates)
        parts = [self.out(torch.cat([hidden, weights @ state["slots"]], dim=-1))]
        if self.config.induction:
            scores = self.attention(candidates, state["channels"])
            parts.append(torch.softmax(scores, dim=-1) @ state["channels"])
        return torch.cat(parts, dim=-1) * known

    def weights(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """The linear share of each behavior in what is read: the weight it was written to a slot
        with, what later writes left of it, and the weight the slot is read with.
        """
        state = self.summarize(sequence)
        trace = self._traces[sequence]
        left = torch.log1p(-trace.writes * trace.erased.unsqueeze(-1) * (1 - 1e-6))
        after = left.flip(1).cumsum(1).flip(1) - left
        _, reading = self._ask(state, target.embeddings)
        share = reading @ (trace.writes * after.exp()).transpose(1, 2)
        return share / share.sum(-1, keepdim=True).clamp(min=1e-30)

    def auxiliary_loss(
        self, sequence: BehaviorSequence, generator: torch.Generator
    ) -> Tensor | None:
        """Squared distances of the slots' use from equal use (Eq. 8).

        Use is a share of all writes, so that long sequences do not outweigh short ones; gradients
        reach the rebalancing alone.
        """
        if not self.config.rebalance:
            return None
        if sequence not in self._traces:
            self.summarize(sequence)
        total = self._traces[sequence].rebalanced
        steps = sequence.mask.sum(1, keepdim=True)
        share = total / steps.clamp(min=1)
        distance = (share - share.mean(-1, keepdim=True)).square().sum(-1)
        return distance.sum() / (steps > 0).sum().clamp(min=1)

    def _ask(self, state: State, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The controller's hidden state at each candidate and the weights [..., B, m] it reads
        the slots with.
        """
        hidden = self.controller(
            candidates @ self.behavior, state["last_read"], state["controller"]
        )
        asked, _, _ = self._heads(hidden)
        slots = state["slots"].unsqueeze(-3)
        return hidden, self._address(asked[..., :1, :], slots, unit(self.slot_keys)).squeeze(-2)

    def _heads(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Key and strength [..., 2, d + 1] to read and to write with; what to erase and to add."""
        d = self.d
        asked, erase, add = self.heads(hidden).split([2 * (d + 1), d, d], dim=-1)
        return asked.view(*asked.shape[:-1], 2, d + 1), torch.sigmoid(erase), torch.tanh(add)

    def _address(self, asked: Tensor, slots: Tensor, keys: Tensor) -> Tensor:
        """Weights of the slots [..., m, d] for what is asked [..., q, d + 1]; -> [..., q, m].

        Cosines to the slots' contents and to keys of their own, of unit length: contents alone
        could not tell empty slots apart.
        """
        key, strength = unit(torch.tanh(asked[..., :-1])), asked[..., -1:]
        cosine = key @ (0.5 * (unit(slots) + keys)).transpose(-1, -2)
        return torch.softmax(cosine * (functional.softplus(strength) + 1) * SHARPNESS, dim=-1)

    def _transfer(self, used: Tensor) -> Tensor:
        """The matrix P [R, m, m] of Eq. 5: where the writes of each slot go to instead."""
        m = self.config.m
        share = used / used.sum(-1, keepdim=True).clamp(min=1.0)
        logits = (share @ self.balance).view(-1, m, m)
        return torch.softmax(logits + IDENTITY * torch.eye(m, device=used.device), dim=-1)

    def _induce(self, channels: Tensor, slots: Tensor, weights: Tensor, given: Tensor) -> Tensor:
        """The channels after a behavior (Eq. 9): those read the most take it and their slot.

        Weights of 0 throughout, those of padding, leave all channels as they are.
        """
        best, chosen = weights.topk(min(self.config.channels, weights.shape[-1]), dim=-1)
        index = chosen.unsqueeze(-1).expand(-1, -1, channels.shape[-1])
        before = channels.gather(1, index)
        after = self.channel(given.unsqueeze(1), slots.detach().gather(1, index), before)
        return channels.scatter(1, index, torch.where(best.unsqueeze(-1) > 0, after, before))
