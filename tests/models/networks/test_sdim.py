from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import TrainingError
from models.modules.layers import unit
from models.modules.sequence import BehaviorSequence, Target
from models.networks.avg_pooling import AvgPoolingConfig
from models.networks.sdim import SDIM, SDIMConfig
from tests.models.networks.building import (
    ITEMS,
    D,
    degenerate_sequence,
    sequence_of,
    targets_of,
    tiny_inputs,
)
from tests.models.networks.candidates import reads_alike, targets_at


def built(config: SDIMConfig | None = None, seed: int = 0) -> SDIM:
    torch.manual_seed(seed)
    return (config or SDIMConfig(m=12, tau=3)).build(D, tiny_inputs())


def directed(*angles: float) -> tuple[BehaviorSequence, Target]:
    """Behaviors at angles (in turns) to the one candidate."""
    turns = torch.tensor([0.0, *angles]) * 2 * torch.pi
    table = torch.zeros(len(turns), D)
    table[:, 0], table[:, 1] = turns.cos(), turns.sin()
    rows = torch.arange(1, len(turns))[None]
    sequence = BehaviorSequence(rows, torch.ones_like(rows, dtype=torch.bool), table)
    return sequence, Target(
        table[:1][None], torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    signature=st.sampled_from([(1, 1), (6, 1), (6, 2), (12, 3), (5, 5), (10, 10), (4, 0)]),
    normalization=st.sampled_from(["l2", "mean"]),
    behavior=st.sampled_from([(), ("action",), ("action", "dwell")]),
)
def test_buckets_give_what_collisions_give(
    seed: int,
    lengths: list[int],
    signature: tuple[int, int],
    normalization: str,
    behavior: tuple[str, ...],
) -> None:
    m, tau = signature
    config = SDIMConfig(m=m, tau=tau, normalization=normalization)  # type: ignore[arg-type]
    module = built(config, seed)
    sequence = sequence_of(lengths, 20, behavior, seed)
    target = targets_of(sequence)
    found = module.read(module.summarize(sequence), target)
    torch.testing.assert_close(found, module.collide(sequence, target), atol=1e-5, rtol=1e-4)


def test_both_forms_have_the_same_gradients() -> None:
    module = built()
    sequence = sequence_of([20, 3], 20, ("action",))
    target = targets_of(sequence)
    tables = [sequence.table, sequence.feature_tables["action"]]
    staged = module.read(module.summarize(sequence), target).square().sum()
    direct = module.collide(sequence, target).square().sum()
    expected = torch.autograd.grad(direct, tables, retain_graph=True)
    for gradient, wanted in zip(torch.autograd.grad(staged, tables), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-3)


def test_buckets_are_filled_alike_without_the_kernel() -> None:
    """What a GPU does; float64 goes the same way here."""
    module, sequence = built(), sequence_of([20, 3, 0], 20)
    expected = module.summarize(sequence)["buckets"]
    double = BehaviorSequence(sequence.rows, sequence.mask, sequence.table.double())
    found = module.double().summarize(double)["buckets"]
    torch.testing.assert_close(found.float(), expected)


def test_interest_is_the_mean_of_the_normalized_sums_of_colliding_behaviors() -> None:
    module = built(SDIMConfig(m=4, tau=2))
    sequence = sequence_of([9], 9)
    target = targets_of(sequence, B=1)
    table = sequence.table.detach().numpy()
    candidate = target.embeddings[0, 0].detach().numpy()
    expected = np.zeros(D)
    for group in range(2):
        planes = module.hashes.numpy()[:, 2 * group : 2 * group + 2]
        total = np.zeros(D)
        for row in sequence.rows[0].tolist():
            if ((table[row] @ planes >= 0) == (candidate @ planes >= 0)).all():
                total += table[row]
        expected += total / max(float(np.linalg.norm(total)), 1e-6) / 2
    np.testing.assert_allclose(module(sequence, target)[0, 0].detach(), expected, atol=1e-5)


def test_without_hashes_it_is_average_pooling_scaled_to_length_1() -> None:
    sequence = sequence_of([20, 5, 0], 20, ("action",))
    target = targets_of(sequence)
    average = AvgPoolingConfig().build(D, tiny_inputs())(sequence, target)
    found = built(SDIMConfig(tau=0))(sequence, target)
    torch.testing.assert_close(found, unit(average), atol=1e-5, rtol=1e-4)


def test_without_hashes_and_normalized_by_number_it_is_average_pooling() -> None:
    sequence = sequence_of([20, 5, 0], 20)
    target = targets_of(sequence)
    average = AvgPoolingConfig().build(D, tiny_inputs())
    module = built(SDIMConfig(tau=0, normalization="mean"))
    found = module.read(module.summarize(sequence), target)
    torch.testing.assert_close(found, average(sequence, target))
    torch.testing.assert_close(
        module.weights(sequence, target), average.weights(sequence, target).expand(3, 3, 20)
    )


def test_collisions_come_with_the_probability_of_the_angle() -> None:
    """Eq. 13: (1 - angle / pi) ^ tau, over many groups."""
    sequence, target = directed(0.0, 0.05, 0.125, 0.25, 0.4)
    module = built(SDIMConfig(m=12000, tau=2))
    behaviors = module.signatures(sequence.table)[sequence.rows[0]]
    share = (behaviors == module.signatures(target.embeddings)[0]).double().mean(-1)
    expected = (1 - 2 * np.array([0.0, 0.05, 0.125, 0.25, 0.4])) ** 2
    np.testing.assert_allclose(share, expected, atol=0.03)


def test_without_collision_the_interest_is_zero() -> None:
    sequence, target = directed(0.5, 0.5)
    module = built()
    assert not module.read(module.summarize(sequence), target).any()
    assert not module(sequence, target).any()
    torch.testing.assert_close(module.weights(sequence, target), torch.full((1, 1, 2), 0.5))


def test_padding_lands_in_no_bucket() -> None:
    padded = sequence_of([4], 10)
    alone = BehaviorSequence(padded.rows[:, -4:], padded.mask[:, -4:], padded.table)
    module = built(SDIMConfig(m=12, tau=3, normalization="mean"))
    for name, part in module.summarize(padded).items():
        torch.testing.assert_close(part, module.summarize(alone)[name])
    assert module.summarize(padded)["bucket_sizes"].sum() == 4 * module.groups


def test_a_behavior_can_be_added_to_stored_buckets() -> None:
    module = built()
    whole = sequence_of([10], 10)
    older = BehaviorSequence(whole.rows[:, :-1], whole.mask[:, :-1], whole.table)
    newest = BehaviorSequence(whole.rows[:, -1:], whole.mask[:, -1:], whole.table)
    added = module.summarize(older)["buckets"] + module.summarize(newest)["buckets"]
    torch.testing.assert_close(module.summarize(whole)["buckets"], added)


def test_weights_are_the_coefficients_of_the_interest() -> None:
    sequence, module = sequence_of([20, 6], 20, ("action",)), built()
    target = targets_of(sequence)
    pooled = module.weights(sequence, target) @ sequence.embeddings
    interest = module(sequence, target)
    torch.testing.assert_close(unit(pooled), unit(interest), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("normalization", ["l2", "mean"])
def test_weights_sum_to_1_and_skip_padding(normalization: str) -> None:
    config = SDIMConfig(m=12, tau=3, normalization=normalization)  # type: ignore[arg-type]
    sequence = degenerate_sequence()
    weights = built(config).weights(sequence, targets_of(sequence))
    assert (weights[~sequence.mask.unsqueeze(1).expand_as(weights)] == 0).all()
    some = sequence.mask.any(1).float()[:, None].expand(-1, 3)
    torch.testing.assert_close(weights.sum(-1), some)


def test_degenerate_sequences_give_finite_interests_and_gradients() -> None:
    sequence, module = degenerate_sequence(("action",)), built()
    interest = module.read(module.summarize(sequence), targets_of(sequence))
    torch.autograd.backward(interest.sum())
    assert interest.isfinite().all()
    assert not interest[3].any()
    assert sequence.table.grad is not None
    assert sequence.table.grad.isfinite().all()


def test_signatures_do_not_depend_on_the_order_of_additions() -> None:
    """Vectors close to a plane: in float32 their products' signs depend on the summation."""
    module = built(SDIMConfig(m=48, tau=1))
    vectors = torch.randn(500, D)
    plane = module.hashes[:, :1].T
    vectors -= vectors @ plane.T @ plane / plane.square().sum()
    order = torch.randperm(D)
    found = module.signatures(vectors)
    module.hashes.copy_(module.hashes[order])
    assert torch.equal(found, module.signatures(vectors[:, order]))
    alone = torch.stack([module.signatures(vector[order]) for vector in vectors])
    assert torch.equal(found, alone)


def test_hashes_are_kept_with_the_parameters_and_not_trained() -> None:
    first, second = built(seed=0), built(seed=1)
    assert not torch.equal(first.hashes, second.hashes)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.hashes, second.hashes)
    assert not list(first.parameters())


@pytest.mark.parametrize("config", [SDIMConfig(), SDIMConfig(m=12, tau=3, normalization="mean")])
def test_the_exported_graph_reads_alike(config: SDIMConfig, tmp_path: Path) -> None:
    module, sequence = built(config), degenerate_sequence()
    everything = torch.arange(ITEMS + 1).expand(len(sequence.rows), -1)
    target = targets_at(sequence, everything)
    reads_alike(module, module.summarize(sequence), target, tmp_path / "read.onnx")


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (SDIMConfig(m=10, tau=3), "m of sdim must be a positive multiple of tau = 3, not 10"),
        (SDIMConfig(m=0, tau=0), "m of sdim"),
        (SDIMConfig(tau=17, m=17), "tau of sdim must be 0 to 16, not 17"),
        (SDIMConfig(tau=-1), "tau of sdim"),
    ],
)
def test_wrong_sizes_are_told(config: SDIMConfig, wrong: str) -> None:
    with pytest.raises(TrainingError, match=wrong):
        config.build(D, tiny_inputs())
