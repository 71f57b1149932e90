from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.modules.layers import (
    RecentAttention,
    Tower,
    attend,
    unit,
)


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


def test_the_tower_sees_user_and_pair_alike_for_one_user_and_for_several() -> None:
    torch.manual_seed(0)
    tower = Tower(user=3, pair=5, hidden=(8, 4))
    user, pair = torch.randn(3), torch.randn(6, 5)
    weight = torch.cat([tower.user.weight, tower.pair.weight], dim=1)
    joined = torch.cat([user.expand(6, 3), pair], dim=1)
    first = torch.relu(joined @ weight.T + tower.user.bias)
    expected = tower.out(torch.relu(tower.hidden(first))).squeeze(-1)
    parts = [pair[:, :2], pair[:, 2:]]
    torch.testing.assert_close(tower(user, parts), expected)
    one_of_several = tower(user[None], [part[None] for part in parts])
    torch.testing.assert_close(one_of_several, expected[None])
