from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from models.kernels.attention import attend
from models.modules.clusterings import Clustering, cluster_sequences
from models.modules.layers import masked_softmax, unit
from models.modules.long_term import State
from models.modules.metric_learning import Loss, Sampling
from models.modules.sequence import BehaviorSequence
from models.networks.encode import Encode, EncodeConfig
from tests.models.networks.building import (
    D,
    degenerate_sequence,
    exported_read,
    sequence_of,
    targets_of,
    tiny_inputs,
)

every_clustering = pytest.mark.parametrize("clustering", get_args(Clustering))


PAPER = {"network": "encode", "beta": 20.0, "beta_mode": "divide", "sized": False}
"""Eqs. 9 and 10 as they are written."""


def module(**changes: object) -> Encode:
    torch.manual_seed(0)
    config = msgspec.convert({**PAPER, "K": 4, **changes}, EncodeConfig)
    return config.build(D, tiny_inputs())


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def cosine_target_attention(
    network: Encode, sequence: BehaviorSequence, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 10 over the behaviors themselves: the interest, and the weights."""
    cosines = unit(candidates) @ unit(sequence.embeddings).transpose(1, 2)
    weights = masked_softmax(cosines * network.scale, sequence.mask.unsqueeze(1))
    return weights @ sequence.embeddings, weights


@torch.no_grad()
def test_it_is_algorithm_1_and_equation_10() -> None:
    network = module(beta=0.5)
    sequence = sequence_of([12], 12)
    target = targets_of(sequence)
    s = sequence.embeddings[0].double().numpy()
    h = s @ network.projection.double().numpy()  # Eq. 4
    labels, centers = cluster_sequences(
        unit(torch.from_numpy(h[None]).float()),
        sequence.mask,
        network.config.K,
        network.config.T,
        sequence.rows,
    )
    interests = []
    for k in range(4):
        members = np.flatnonzero(labels[0].numpy() == k)
        c = centers[0, k].double().numpy()
        weights = np.exp([cosine(h[i], c) / 0.5 for i in members])  # Eqs. 9 and 11
        interests.append((weights[:, None] * s[members]).sum(0) / weights.sum())  # Eq. 8
    for b, x in enumerate(target.embeddings[0].double().numpy()):
        weights = np.exp([cosine(u, x) / 0.5 for u in interests])
        expected = weights @ np.array(interests) / weights.sum()  # Eq. 10
        np.testing.assert_allclose(network(sequence, target)[0, b].numpy(), expected, atol=1e-5)


@torch.no_grad()
def test_its_interests_are_those_of_the_kernel_that_serves() -> None:
    """Attention within a cluster is written twice, since training needs gradients."""
    network = module(beta=0.5)
    sequence = sequence_of([40, 25], 40)
    pooled = network.extract(sequence)
    h = sequence.embeddings @ network.projection
    for r in range(2):
        there = sequence.mask[r]
        labels = pooled.labels[r][there]
        _, centers = cluster_sequences(unit(h), sequence.mask, 4, 15, sequence.rows)
        served = attend(
            h[r][there].numpy(),
            labels.numpy().astype(np.int32),
            centers[r].numpy(),
            sequence.rows[r][there].numpy().astype(np.int32),
            sequence.table.detach().numpy(),
            float(network.scale),
        )
        np.testing.assert_allclose(pooled.interests[r].numpy(), served, atol=1e-5)


@every_clustering
@torch.no_grad()
def test_as_many_clusters_as_behaviors_is_target_attention(clustering: Clustering) -> None:
    network = module(K=12, beta=0.3, clustering=clustering)
    sequence = degenerate_sequence(("action",))
    target = targets_of(sequence)
    expected, weights = cosine_target_attention(network, sequence, target.embeddings)
    torch.testing.assert_close(network(sequence, target), expected)
    torch.testing.assert_close(network.weights(sequence, target), weights)


@every_clustering
@torch.no_grad()
def test_one_cluster_and_a_huge_beta_is_average_pooling(clustering: Clustering) -> None:
    network = module(K=1, beta=1e8, clustering=clustering)
    sequence = degenerate_sequence()
    target = targets_of(sequence)
    mask = sequence.mask.unsqueeze(-1)
    average = (sequence.embeddings * mask).sum(1) / mask.sum(1).clamp(min=1)
    torch.testing.assert_close(
        network(sequence, target), average.unsqueeze(1).expand(-1, 3, -1), atol=1e-5, rtol=1e-4
    )


@every_clustering
@pytest.mark.parametrize("online", ["cosine", "dot"])
@torch.no_grad()
def test_weights_are_those_of_the_interest(clustering: Clustering, online: str) -> None:
    network = module(beta=0.3, clustering=clustering, online=online)
    sequence = degenerate_sequence(("action",))
    target = targets_of(sequence)
    weights = network.weights(sequence, target)
    torch.testing.assert_close(weights @ sequence.embeddings, network(sequence, target))
    torch.testing.assert_close(weights.sum(-1)[[0, 1, 2, 4]], torch.ones(4, 3))
    assert not weights[~sequence.mask.unsqueeze(1).expand_as(weights)].any()


@torch.no_grad()
def test_no_behavior_at_all_gives_zeros() -> None:
    sequence = sequence_of([0, 0], 1)
    assert not module()(sequence, targets_of(sequence)).any()


@torch.no_grad()
def test_a_behavior_without_a_direction_is_in_no_cluster_unless_it_is_newer() -> None:
    """What an unknown item is, as long as nothing has taught row 0; the services do the same."""
    network = module(K=2, beta=0.3)
    sequence = sequence_of([6], 6)
    table = sequence.table.detach().clone()
    table[0] = 0
    rows = torch.tensor([[0, 4, 0, 4, 9, 0]])
    pooled = network.extract(with_newer(BehaviorSequence(rows, sequence.mask, table), 1))
    assert pooled.sizes.tolist() == [[2, 1, 1]]
    torch.testing.assert_close(pooled.interests[0], table[[4, 9, 0]])


@torch.no_grad()
def test_one_behavior_is_the_interest() -> None:
    sequence = sequence_of([1], 5)
    interest = module()(sequence, targets_of(sequence))
    torch.testing.assert_close(interest[0], sequence.embeddings[:, -1].expand(3, -1))


def with_newer(sequence: BehaviorSequence, count: int) -> BehaviorSequence:
    L = sequence.mask.shape[1]
    sequence.newer = sequence.mask & (torch.arange(L) >= L - count)
    return sequence


@every_clustering
@torch.no_grad()
def test_a_newer_behavior_is_a_cluster_of_its_own(clustering: Clustering) -> None:
    network = module(beta=0.3, clustering=clustering)
    sequence = sequence_of([12, 7, 2, 0], 12)
    before = network.extract(sequence.latest(12))
    L = 12 - 3
    older = BehaviorSequence(sequence.rows[:, :L], sequence.mask[:, :L], sequence.table)
    state = network.summarize(with_newer(sequence, 3))
    assert before.interests.shape == (4, 4, D)
    assert state["interests"].shape == (4, 4 + 3, D)
    # The clusters are those of the older behaviors alone, and behind them stand the newer ones.
    of_older = network.summarize(older)
    if clustering in ("k-means", "agglomerative"):  # the others draw by place
        torch.testing.assert_close(state["interests"][:, :4], of_older["interests"])
    torch.testing.assert_close(state["interests"][:2, 4:], sequence.embeddings[:2, L:])
    assert state["sizes"][:, 4:].tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 0, 0]]


@torch.no_grad()
def test_all_behaviors_newer_is_target_attention() -> None:
    network = module(beta=0.3)
    sequence = with_newer(sequence_of([9, 4], 9), 9)
    target = targets_of(sequence)
    expected, _ = cosine_target_attention(network, sequence, target.embeddings)
    torch.testing.assert_close(network(sequence, target), expected)


def test_gradients_reach_the_projection_through_the_weights_alone() -> None:
    network = module(beta=0.3, K=2)
    sequence = sequence_of([12] * 3, 12)
    pooled = network.extract(sequence)
    upstream = torch.randn(pooled.interests.shape)
    (gradient,) = torch.autograd.grad((pooled.interests * upstream).sum(), [network.projection])
    # The same with labels and centers written down as numbers.
    with torch.no_grad():
        _, centers = cluster_sequences(
            sequence.directions(network.projection),
            sequence.mask,
            2,
            network.config.T,
            sequence.rows,
        )
    members = torch.nn.functional.one_hot(pooled.labels, 2).float()
    cosines = unit(sequence.embeddings @ network.projection) @ centers.transpose(1, 2)
    within = torch.exp(cosines / 0.3) * members
    interests = (within / within.sum(1, keepdim=True)).transpose(1, 2) @ sequence.embeddings
    (expected,) = torch.autograd.grad((interests * upstream).sum(), [network.projection])
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("online", ["cosine", "dot"])
def test_gradients_reach_every_behavior(online: str) -> None:
    network = module(online=online)
    sequence = degenerate_sequence(("action",))
    network(sequence, targets_of(sequence)).square().sum().backward()
    for table in (sequence.table, sequence.feature_tables["action"]):
        assert table.grad is not None
        assert table.grad.isfinite().all()
    assert sequence.table.grad is not None
    assert (sequence.table.grad[sequence.rows[sequence.mask]].abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("mode", "scale"), [("divide", 1 / 20), ("multiply", 20.0), ("learned", 20.0)]
)
def test_beta_divides_multiplies_or_is_learned(mode: str, scale: float) -> None:
    network = module(beta_mode=mode)
    assert network.scale.item() == pytest.approx(scale)
    assert network.scale.requires_grad == (mode == "learned")


@every_clustering
@torch.no_grad()
def test_a_very_sharp_attention_loses_no_cluster(clustering: Clustering) -> None:
    network = module(beta=1e4, beta_mode="multiply", clustering=clustering)
    sequence = degenerate_sequence()
    pooled = network.extract(sequence)
    assert pooled.interests.isfinite().all()
    sums = torch.zeros(pooled.sizes.shape).scatter_add(1, pooled.labels, pooled.within)
    torch.testing.assert_close(sums, (pooled.sizes > 0).float())


@torch.no_grad()
def test_interests_that_count_by_size_are_the_average_where_attention_is_flat() -> None:
    network = module(beta=1e8, sized=True)
    sequence = degenerate_sequence()
    mask = sequence.mask.unsqueeze(-1)
    average = (sequence.embeddings * mask).sum(1) / mask.sum(1).clamp(min=1)
    torch.testing.assert_close(
        network(sequence, targets_of(sequence)),
        average.unsqueeze(1).expand(-1, 3, -1),
        atol=1e-5,
        rtol=1e-4,
    )


@torch.no_grad()
def test_interests_that_count_by_size_attend_as_to_behaviors_where_a_cluster_is_one_item() -> None:
    network = module(beta=0.5, sized=True)
    sequence = sequence_of([12], 12)
    sequence.rows = sequence.rows % 3 + 1  # three items, each in a cluster of its own
    target = targets_of(sequence)
    expected, _ = cosine_target_attention(network, sequence, target.embeddings)
    torch.testing.assert_close(network(sequence, target), expected)


@pytest.mark.parametrize("loss", get_args(Loss))
@pytest.mark.parametrize("sampling", get_args(Sampling))
def test_the_loss_is_a_setting(loss: Loss, sampling: Sampling) -> None:
    network = module(loss=loss, sampling=sampling)
    value = network.auxiliary_loss(sequence_of([12] * 3, 12), torch.Generator().manual_seed(0))
    assert (value is None) == (loss == "none")
    assert value is None or math.isfinite(value.item())


@pytest.mark.parametrize("change", [{"K": 0}, {"m": 0}, {"T": 0}, {"beta": 0.0}, {"loss": "x"}])
def test_a_setting_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError, match=next(iter(change))):
        module(**change)


@pytest.mark.parametrize("online", ["cosine", "dot"])
@torch.no_grad()
def test_read_can_be_exported(online: str, tmp_path: Path) -> None:
    network = module(online=online)
    sequence = degenerate_sequence()
    state, target = network.summarize(sequence), targets_of(sequence)
    one: State = {name: part[0] for name, part in state.items()}
    first = target._replace(embeddings=target.embeddings[0])
    session = exported_read(network, one, first, tmp_path / "read.onnx")
    for r, long in enumerate(network.read(state, target)):
        feed = {name: part[r].numpy() for name, part in state.items()}
        (out,) = session.run(None, {**feed, "candidates": target.embeddings[r].numpy()})
        np.testing.assert_allclose(out, long.numpy(), atol=1e-5)
