from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.modules.layers import unit
from models.modules.sequence import BehaviorSequence
from models.networks.mimn import MIMN, MIMNConfig
from tests.models.networks.building import D, degenerate_sequence, sequence_of, tiny_inputs
from tests.models.networks.candidates import known_targets, reads_alike

L = 12
M = 4


def mimn(behavior: tuple[str, ...] = (), **settings: object) -> MIMN:
    torch.manual_seed(0)
    config = MIMNConfig(L=L, **{"m": M, **settings})  # type: ignore[arg-type]
    return config.build(D, tiny_inputs(behavior)).eval()


def part_of(sequence: BehaviorSequence, keep: slice) -> BehaviorSequence:
    return BehaviorSequence(sequence.rows[:, keep], sequence.mask[:, keep], sequence.table)


def test_the_controller_is_a_gru() -> None:
    module = mimn()
    cell = torch.nn.GRUCell(2 * D, D)
    gates = module.controller
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([module.behavior.T, gates.read.weight], dim=1))
        cell.bias_ih.copy_(gates.read.bias)
        cell.weight_hh.copy_(gates.hidden.weight)
        cell.bias_hh.copy_(gates.hidden.bias)
    behavior, read, hidden = torch.randn(3, 5, D)
    expected = cell(torch.cat([behavior, read], dim=1), hidden)
    torch.testing.assert_close(gates(behavior @ module.behavior, read, hidden), expected)


def test_one_behavior_is_written_as_the_equations_say() -> None:
    module = mimn(rebalance=False, induction=False)
    sequence = sequence_of([1], 1)
    state = module.start(sequence)
    hidden = module.controller(
        sequence.embeddings[:, 0] @ module.behavior, state["last_read"][:, 0], torch.zeros(1, D)
    )
    asked, erase, add = module._heads(hidden)
    slots = torch.randn(1, M, D)
    weights = module._address(asked[:, 1:], slots, unit(module.slot_keys))[:, 0]
    written = module.advance(state | {"slots": slots}, sequence)["slots"]
    for i in range(M):
        expected = slots[0, i] * (1 - weights[0, i] * erase[0]) + weights[0, i] * add[0]
        torch.testing.assert_close(written[0, i], expected)


@pytest.mark.parametrize("induction", [True, False])
def test_a_state_is_advanced_by_what_is_new(induction: bool) -> None:
    sequence = sequence_of([L, L - 1, 5], L)
    module = mimn(induction=induction)
    whole = module.summarize(sequence)
    older = module.summarize(part_of(sequence, slice(0, 8)))
    advanced = module.advance(older, part_of(sequence, slice(8, None)))
    assert advanced.keys() == whole.keys()
    for name, part in whole.items():
        torch.testing.assert_close(advanced[name], part)


def test_padding_changes_nothing() -> None:
    padded = sequence_of([5], L)
    module = mimn()
    bare = module.summarize(part_of(padded, slice(L - 5, None)))
    for name, part in module.summarize(padded).items():
        torch.testing.assert_close(bare[name], part)


def test_only_the_channels_that_are_read_the_most_are_advanced() -> None:
    module = mimn(channels=2)
    state = module.summarize(sequence_of([1], 1))
    assert state["channels"].any(-1).sum() == 2


def test_each_behavior_is_written_once_in_all() -> None:
    sequence = degenerate_sequence()
    used = mimn().summarize(sequence)["slot_writes"]
    torch.testing.assert_close(used.sum(1), sequence.mask.sum(1).float())


def test_equal_use_of_the_slots_costs_nothing() -> None:
    sequence, module = degenerate_sequence(), mimn()
    generator = torch.Generator().manual_seed(0)
    cost = module.auxiliary_loss(sequence, generator)
    assert cost is not None
    assert cost > 0
    with torch.no_grad():
        module.slot_keys.zero_()
        module.heads.weight.zero_()
        module.heads.bias.zero_()  # every slot is addressed alike
    module.summarize(sequence)
    equal = module.auxiliary_loss(sequence, generator)
    assert equal is not None
    assert float(equal.detach()) == pytest.approx(0, abs=1e-9)


def test_the_cost_of_unequal_use_teaches_the_rebalancing_alone() -> None:
    sequence, module = degenerate_sequence(), mimn()
    loss = module.auxiliary_loss(sequence, torch.Generator())
    assert loss is not None
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    by_name: dict[str, Tensor | None] = dict(zip(names, gradients, strict=True))
    taught = [name for name, part in by_name.items() if part is not None and bool(part.any())]
    assert taught == ["balance"]


def test_the_cost_falls_as_the_rebalancing_learns() -> None:
    sequence, module = sequence_of([L] * 4, L), mimn()
    optimizer = torch.optim.Adam([module.balance], lr=1.0)

    def cost() -> Tensor:
        module.summarize(sequence)
        loss = module.auxiliary_loss(sequence, torch.Generator())
        assert loss is not None
        return loss

    first = float(cost().detach())
    for _ in range(6):
        optimizer.zero_grad()
        torch.autograd.backward(cost())
        optimizer.step()
    assert float(cost().detach()) < 0.7 * first


def test_without_rebalancing_there_is_no_cost() -> None:
    assert mimn(rebalance=False).auxiliary_loss(degenerate_sequence(), torch.Generator()) is None


@pytest.mark.parametrize("induction", [True, False])
def test_degenerate_sequences_are_read(induction: bool) -> None:
    sequence = degenerate_sequence(("action",))
    target = known_targets(sequence)
    module = mimn(("action",), induction=induction)
    long = module(sequence, target)
    assert long.shape[-1] == module.width
    assert long.isfinite().all()
    assert not long[3].any()
    assert long[2].any()
    (gradient,) = torch.autograd.grad(long.sum(), sequence.table)
    assert gradient.isfinite().all()


def test_weights_sum_to_1_over_real_behaviors() -> None:
    sequence = degenerate_sequence()
    weights = mimn().weights(sequence, known_targets(sequence))
    torch.testing.assert_close(weights.sum(-1), sequence.mask.any(1)[:, None].expand(-1, 3).float())
    assert not weights[~sequence.mask.unsqueeze(1).expand_as(weights)].any()
    assert (weights >= 0).all()


def test_weights_are_the_share_in_what_is_read() -> None:
    """With additions that are all alike and erasure that is one for the whole slot."""
    sequence, module = sequence_of([L], L), mimn(rebalance=False, induction=False)
    with torch.no_grad():
        module.heads.weight[-2 * D :] = 0
        module.heads.bias[-2 * D : -D] = 0.3
        module.heads.bias[-D:] = 1.0
    target = known_targets(sequence)
    weights = module.weights(sequence, target)
    trace, state = module._traces[sequence], module.summarize(sequence)
    _, reading = module._ask(state, target.embeddings)
    memory = torch.zeros(L, M)  # the share of each behavior in each slot
    for t in range(L):
        memory = memory * (1 - trace.writes[0, t] * trace.erased[0, t])
        memory[t] += trace.writes[0, t]
    share = reading[0] @ memory.T
    torch.testing.assert_close(weights[0], share / share.sum(-1, keepdim=True), atol=1e-5, rtol=0)
    read = reading[0] @ state["slots"][0]
    torch.testing.assert_close(read[:, 0], share.sum(-1) * torch.tanh(torch.tensor(1.0)))


def test_a_trace_goes_with_its_sequence() -> None:
    module, sequence = mimn(), sequence_of([L], L)
    module.summarize(sequence)
    del sequence
    assert not module._traces


def test_the_exported_graph_reads_alike(tmp_path: Path) -> None:
    sequence, module = degenerate_sequence(), mimn()
    state = {name: part.detach() for name, part in module.summarize(sequence).items()}
    reads_alike(module, state, known_targets(sequence), tmp_path / "read.onnx")
