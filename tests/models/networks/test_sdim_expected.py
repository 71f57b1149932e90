import math
from pathlib import Path

import pytest
import torch

from infra.errors import TrainingError
from models.networks.avg_pooling import AvgPoolingConfig
from models.networks.sdim import SDIMConfig
from models.networks.sdim_expected import ExpectedSDIM, ExpectedSDIMConfig
from tests.models.networks.building import (
    ITEMS,
    D,
    degenerate_sequence,
    sequence_of,
    targets_of,
    tiny_inputs,
)
from tests.models.networks.candidates import reads_alike, targets_at


def built(tau: float = 3.0) -> ExpectedSDIM:
    return ExpectedSDIMConfig(tau=tau).build(D, tiny_inputs())


def test_weights_are_what_the_hashes_of_sdim_come_to() -> None:
    sequence = sequence_of([20], 20)
    target = targets_of(sequence, B=1)
    torch.manual_seed(0)
    sdim = SDIMConfig(m=30_000, tau=3).build(D, tiny_inputs())
    behaviors = sdim.signatures(sequence.table)[sequence.rows[0]]
    collisions = (behaviors == sdim.signatures(target.embeddings)[0]).float().mean(-1)
    expected = collisions / collisions.sum()
    torch.testing.assert_close(built().weights(sequence, target)[0, 0], expected, atol=0.01, rtol=0)


def test_with_signatures_of_no_width_it_is_average_pooling() -> None:
    sequence = sequence_of([20, 5, 0], 20, ("action",))
    target = targets_of(sequence)
    average = AvgPoolingConfig().build(D, tiny_inputs())(sequence, target)
    torch.testing.assert_close(built(tau=0)(sequence, target), average)


def test_the_interest_is_what_its_weights_make_of_the_behaviors() -> None:
    sequence, module = sequence_of([20, 6], 20, ("action",)), built()
    target = targets_of(sequence)
    pooled = module.weights(sequence, target) @ sequence.embeddings
    torch.testing.assert_close(module(sequence, target), pooled)


def test_weights_sum_to_1_and_skip_padding() -> None:
    sequence = degenerate_sequence()
    weights = built().weights(sequence, targets_of(sequence))
    assert (weights[~sequence.mask.unsqueeze(1).expand_as(weights)] == 0).all()
    some = sequence.mask.any(1).float()[:, None].expand(-1, 3)
    torch.testing.assert_close(weights.sum(-1), some)


def test_embeddings_learn_through_the_sums_alone() -> None:
    sequence, module = degenerate_sequence(("action",)), built()
    target = targets_of(sequence)
    candidates = target.embeddings.detach().requires_grad_()
    interest = module(sequence, target._replace(embeddings=candidates))
    torch.autograd.backward(interest.sum())
    assert candidates.grad is None
    assert sequence.table.grad is not None
    assert sequence.table.grad.isfinite().all()


def test_the_exported_graph_reads_alike(tmp_path: Path) -> None:
    module, sequence = built(), degenerate_sequence()
    everything = torch.arange(ITEMS + 1).expand(len(sequence.rows), -1)
    target = targets_at(sequence, everything)
    reads_alike(module, module.summarize(sequence), target, tmp_path / "read.onnx")


@pytest.mark.parametrize("tau", [-1.0, math.nan])
def test_a_tau_below_0_is_told(tau: float) -> None:
    with pytest.raises(TrainingError, match="tau of sdim-expected must be 0 or more, not"):
        built(tau)
