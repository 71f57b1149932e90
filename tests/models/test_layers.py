from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.layers import (
    RecentAttention,
    Tower,
    attend,
    cosine_attention,
    dynamic_triplet_loss,
    segment_softmax,
    unit,
)


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a @ b) / (a.norm() * b.norm()))


def test_a_zero_vector_has_no_direction() -> None:
    assert unit(torch.zeros(3)).tolist() == [0, 0, 0]


def test_masked_rows_have_no_weight_whatever_they_score() -> None:
    scores = torch.tensor([[1.0, 500.0, 2.0]])
    values = torch.tensor([[1.0], [9.0], [2.0]])
    mask = torch.tensor([1.0, 0.0, 1.0])
    weight = math.e / (math.e + math.e**2)
    assert attend(scores, mask, values).item() == pytest.approx(weight + 2 * (1 - weight))


def test_attention_to_nothing_is_zero() -> None:
    out = attend(torch.randn(4, 3), torch.zeros(3), torch.randn(3, 2))
    assert out.tolist() == [[0, 0]] * 4


def test_great_scores_do_not_overflow() -> None:
    out = attend(torch.tensor([[1e4, 1e4 - 1]]), torch.ones(2), torch.tensor([[1.0], [0.0]]))
    assert out.item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_cosine_attention_is_equation_10() -> None:
    torch.manual_seed(0)
    candidates, interests = torch.randn(5, 4), torch.randn(3, 4)
    beta = 2.0
    out = cosine_attention(candidates, interests, torch.ones(3), torch.tensor(1 / beta))
    for b in range(5):
        # Eqs. 9 and 11: sim = (1 - dis) / beta, dis = 1 - cos
        weights = [math.exp((1 - (1 - cosine(u, candidates[b]))) / beta) for u in interests]
        expected = sum(w / sum(weights) * u for w, u in zip(weights, interests, strict=True))
        torch.testing.assert_close(out[b], expected)


def test_recent_attention_is_scaled_dot_product_with_a_bias_for_age() -> None:
    torch.manual_seed(0)
    layer = RecentAttention(d=4, M=6)
    with torch.no_grad():
        layer.metric.normal_()
        layer.age.normal_()
    candidate, recent = torch.randn(4), torch.randn(3, 4)
    # The newest of three behaviors has the last bias, however many may come.
    metric, age = layer.metric.detach().numpy(), layer.age.detach().numpy()
    scores = candidate.numpy() @ (recent.numpy() @ metric).T / 2 + age[3:]
    weights = np.exp(scores) / np.exp(scores).sum()
    out = layer(candidate[None], recent, torch.ones(3))[0].detach().numpy()
    np.testing.assert_allclose(out, weights @ recent.numpy(), rtol=1e-5)


def test_the_tower_adds_up_what_it_computes_apart() -> None:
    torch.manual_seed(0)
    tower = Tower(user=3, pair=5, hidden=(8, 4))
    user, pair = torch.randn(3), torch.randn(6, 5)
    weight = torch.cat([tower.user.weight, tower.pair.weight], dim=1)
    joined = torch.cat([user.expand(6, 3), pair], dim=1)
    first = torch.relu(joined @ weight.T + tower.user.bias)
    expected = tower.out(torch.relu(tower.hidden(first))).squeeze(-1)
    torch.testing.assert_close(tower(user, pair), expected)


def test_segment_softmax_is_a_softmax_a_segment() -> None:
    scores = torch.tensor([1.0, 2.0, 300.0, -5.0, -5.0])
    out = segment_softmax(scores, torch.tensor([0, 0, 2, 3, 3]), 4)
    expected = torch.cat([torch.softmax(scores[:2], 0), torch.tensor([1.0, 0.5, 0.5])])
    torch.testing.assert_close(out, expected)


def test_the_triplet_loss_by_hand() -> None:
    # Original space: the anchor (1, 0) is at distance 0 from (2, 0) and 1 from (0, 1).
    behaviors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    # Projected, the order is turned round: distance 1 from the positive, 0 from the negative.
    projected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    anchor, j, k = torch.tensor([0]), torch.tensor([2]), torch.tensor([1])
    # max(0, 1 - 0 + alpha) with alpha = 1 - 0
    assert dynamic_triplet_loss(behaviors, projected, anchor, j, k).tolist() == [2.0]
    assert dynamic_triplet_loss(behaviors, projected, anchor, k, j).tolist() == [2.0]


def test_the_triplet_loss_is_zero_where_distances_are_kept() -> None:
    behaviors = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.5]])
    anchor, j, k = torch.tensor([0]), torch.tensor([1]), torch.tensor([2])
    loss = dynamic_triplet_loss(behaviors, behaviors, anchor, j, k)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_a_pair_at_equal_distance_asks_for_no_margin() -> None:
    behaviors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    projected = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, -1.0]])
    loss = dynamic_triplet_loss(
        behaviors, projected, torch.tensor([0]), torch.tensor([1]), torch.tensor([2])
    )
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_the_triplet_loss_teaches_the_projection_alone() -> None:
    torch.manual_seed(0)
    behaviors = torch.randn(9, 4, requires_grad=True)
    W = torch.randn(4, 2, requires_grad=True)
    three = torch.tensor([0, 1, 2])
    loss = dynamic_triplet_loss(behaviors, behaviors.detach() @ W, three, three + 3, three + 6)
    gradients = torch.autograd.grad(
        loss.sum(), [behaviors, W], allow_unused=True, materialize_grads=True
    )
    assert not gradients[0].any()
    assert gradients[1].any()
