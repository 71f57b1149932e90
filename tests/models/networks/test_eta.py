from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from models.modules.layers import unit
from models.modules.long_term import State
from models.modules.sequence import BehaviorSequence, Target
from models.networks.din import DINLConfig
from models.networks.eta import ETA, ETAConfig
from tests.models.networks.building import (
    ITEMS,
    D,
    degenerate_sequence,
    exported_read,
    sequence_of,
    targets_of,
    tiny_inputs,
)

Retrieval = Literal["hash", "encode", "attention"]

every_retrieval = pytest.mark.parametrize("retrieval", ["hash", "encode", "attention"])


def module(**changes: object) -> ETA:
    torch.manual_seed(0)
    config = msgspec.convert({"network": "eta", "k": 4, **changes}, ETAConfig)
    made = config.build(D, tiny_inputs())
    with torch.no_grad():
        made.attention.metric.normal_()
    return made


def nearness(network: ETA, sequence: BehaviorSequence, target: Target) -> Tensor:
    """What each retrieval searches by, said plainly; f32[R, B, L]."""
    s, x = sequence.embeddings.unsqueeze(1), target.embeddings.unsqueeze(2)
    if network.config.retrieval == "attention":
        return ((x @ network.attention.metric) * s).sum(-1)
    if network.config.retrieval == "encode":
        return (unit(s @ network.projection) * unit(x @ network.projection)).sum(-1)
    return -((s @ network.hash >= 0) != (x @ network.hash >= 0)).float().sum(-1)


@every_retrieval
@torch.no_grad()
def test_the_nearest_k_are_found(retrieval: Retrieval) -> None:
    network = module(retrieval=retrieval)
    sequence = degenerate_sequence(("action",))
    target = targets_of(sequence)
    found = network.retrieved(sequence, target)
    counts = sequence.mask.sum(1).clamp(max=4)
    assert (found.sum(-1) == counts.unsqueeze(1)).all()
    assert not (found & ~sequence.mask.unsqueeze(1)).any()
    near = nearness(network, sequence, target)
    farthest_found = near.masked_fill(~found, torch.inf).amin(-1)
    nearest_left = near.masked_fill(found | ~sequence.mask.unsqueeze(1), -torch.inf).amax(-1)
    assert (farthest_found >= nearest_left - 1e-5).all()


@torch.no_grad()
def test_of_equally_near_behaviors_the_newest_are_found() -> None:
    network = module(bits=1)
    sequence = sequence_of([12], 12)
    target = targets_of(sequence)
    near, found = nearness(network, sequence, target), network.retrieved(sequence, target)
    for b in range(3):
        order = sorted((distance, i) for i, distance in enumerate(near[0, b].tolist()))
        assert set(found[0, b].nonzero().flatten().tolist()) == {i for _, i in order[-4:]}


@torch.no_grad()
def test_equal_embeddings_have_equal_signatures() -> None:
    network = module()
    sequence = sequence_of([12], 12)
    sequence.table[9] = sequence.table[7]
    sequence.rows[0, :2] = torch.tensor([7, 9])
    signatures = network.summarize(sequence)["signatures"][0]
    assert signatures.shape == (12, 2 * D)
    assert set(signatures.flatten().tolist()) == {-1.0, 1.0}
    assert torch.equal(signatures[0], signatures[1])
    # A candidate that was met is at distance 0 of itself, and so is found.
    rows = sequence.rows[:, :1]
    target = Target(sequence.table[rows], torch.zeros_like(rows), rows)
    assert network.retrieved(sequence, target)[0, 0, :2].all()


@every_retrieval
@torch.no_grad()
def test_a_k_that_takes_all_is_full_attention(retrieval: Retrieval) -> None:
    network = module(retrieval=retrieval, k=15)
    full = DINLConfig().build(D, tiny_inputs())
    full.load_state_dict({"attention.metric": network.attention.metric})
    sequence = degenerate_sequence(("action",))
    target = targets_of(sequence)
    torch.testing.assert_close(network(sequence, target), full(sequence, target))
    torch.testing.assert_close(network.weights(sequence, target), full.weights(sequence, target))


@every_retrieval
@torch.no_grad()
def test_weights_are_those_of_the_interest(retrieval: Retrieval) -> None:
    network = module(retrieval=retrieval)
    sequence = degenerate_sequence(("action",))
    target = targets_of(sequence)
    weights = network.weights(sequence, target)
    torch.testing.assert_close(weights @ sequence.embeddings, network(sequence, target))
    torch.testing.assert_close(weights.sum(-1)[[0, 1, 2, 4]], torch.ones(4, 3))
    assert not weights[~network.retrieved(sequence, target)].any()


@every_retrieval
def test_what_is_stored_reads_like_what_is_trained(retrieval: Retrieval) -> None:
    network = module(retrieval=retrieval)
    sequence = degenerate_sequence(("action",))
    target = targets_of(sequence)
    parameters = [sequence.table, sequence.feature_tables["action"], network.attention.metric]
    trained, read = network(sequence, target), network.read(network.summarize(sequence), target)
    torch.testing.assert_close(trained, read)
    ours = torch.autograd.grad(trained.square().sum(), parameters, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(read.square().sum(), parameters))


@every_retrieval
@torch.no_grad()
def test_padding_changes_nothing(retrieval: Retrieval) -> None:
    network = module(retrieval=retrieval)
    sequence = sequence_of([9], 9)
    rows = torch.cat([torch.zeros(1, 5, dtype=torch.int64), sequence.rows], 1)
    padded = BehaviorSequence(rows, rows > 0, sequence.table)
    target = targets_of(sequence)
    torch.testing.assert_close(network(padded, target), network(sequence, target))


@every_retrieval
@torch.no_grad()
def test_no_behavior_at_all_gives_zeros(retrieval: Retrieval) -> None:
    sequence = sequence_of([0, 0], 1)
    assert not module(retrieval=retrieval)(sequence, targets_of(sequence)).any()


@every_retrieval
def test_only_a_projection_has_a_loss_of_its_own(retrieval: Retrieval) -> None:
    network = module(retrieval=retrieval)
    loss = network.auxiliary_loss(sequence_of([12] * 4, 12), torch.Generator().manual_seed(0))
    assert (loss is not None) == (retrieval == "encode")
    if loss is not None:
        (gradient,) = torch.autograd.grad(loss, [network.projection])
        assert gradient.any()


def test_the_hash_is_kept_and_never_trained() -> None:
    network = module(bits=5)
    assert "hash" in network.state_dict()
    assert "hash" not in dict(network.named_parameters())
    assert network.hash.shape == (D, 5)


@every_retrieval
@torch.no_grad()
def test_read_can_be_exported(retrieval: Retrieval, tmp_path: Path) -> None:
    network = module(retrieval=retrieval)
    sequence = degenerate_sequence()
    state, target = network.summarize(sequence), targets_of(sequence)
    one: State = {name: part[0] for name, part in state.items()}
    first = target._replace(embeddings=target.embeddings[0])
    session = exported_read(network, one, first, tmp_path / "read.onnx")
    for L, B in ((12, 3), (2, 5), (40, 1)):  # also fewer behaviors than are looked for
        other = sequence_of([L, L // 2], L)
        other.table = sequence.table
        candidates = targets_of(other, B)
        state = network.summarize(other)
        for r, long in enumerate(network.read(state, candidates)):
            feed = {name: part[r].numpy() for name, part in state.items()}
            feed["candidates"] = candidates.embeddings[r].numpy()
            (out,) = session.run(None, feed)
            np.testing.assert_allclose(out, long.numpy(), atol=1e-5)


def test_unknown_items_do_no_harm() -> None:
    network = module()
    sequence = sequence_of([6], 6)
    sequence.rows[:] = 0
    assert len(sequence.table) == ITEMS + 1
    assert network(sequence, targets_of(sequence)).isfinite().all()
