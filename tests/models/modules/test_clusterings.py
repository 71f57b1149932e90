from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from models.modules.clusterings import (
    _cluster_together,
    agglomerate_sequences,
    cluster_sequences,
    first_met,
    route_sequences,
    scatter_sequences,
)
from models.modules.layers import unit
from models.reference.kmeans import cluster

Way = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]

WAYS: dict[str, Way] = {
    "k-means": lambda directions, mask, K: cluster_sequences(directions, mask, K, 15),
    "k-means together": lambda directions, mask, K: _cluster_together(
        directions, mask.long(), K, 15
    ),
    "dynamic-routing": lambda directions, mask, K: route_sequences(directions, mask, K, 15, 1.0),
    "agglomerative": agglomerate_sequences,
    "random": scatter_sequences,
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


def batch(lengths: list[int], L: int, m: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    mask = torch.arange(L) >= L - torch.tensor(lengths)[:, None]
    return unit(torch.randn(len(lengths), L, m, generator=random)), mask


def groups(labels: Tensor) -> set[frozenset[int]]:
    """A clustering, whatever its clusters are called."""
    found: dict[int, set[int]] = {}
    for place, label in enumerate(labels.tolist()):
        found.setdefault(label, set()).add(place)
    return {frozenset(members) for members in found.values()}


@every_way
def test_a_center_points_where_its_members_do(way: Way) -> None:
    directions, mask = batch([60, 40, 9], 60)
    labels, centers = way(directions, mask, 8)
    for r in range(3):
        for k in range(8):
            mine = mask[r] & (labels[r] == k)
            if mine.any():
                mean = directions[r, mine].sum(0)
                torch.testing.assert_close(centers[r, k], mean / mean.norm(), atol=1e-4, rtol=0)


@every_way
def test_no_more_behaviors_than_clusters_stay_alone(way: Way) -> None:
    directions, mask = batch([5, 1, 0], 7)
    labels, centers = way(directions, mask, 5)
    assert labels.tolist() == [[0, 0, 0, 1, 2, 3, 4], [0] * 7, [0] * 7]
    torch.testing.assert_close(centers[0], directions[0, 2:])
    torch.testing.assert_close(centers[1, 0], directions[1, 6])
    assert not centers[2].any()


@every_way
def test_padding_changes_nothing(way: Way) -> None:
    directions, mask = batch([30], 30)
    padded = torch.cat([torch.ones(1, 11, 4), directions], 1)
    in_front = torch.cat([torch.zeros(1, 11, dtype=torch.bool), mask], 1)
    labels, centers = way(directions, mask, 6)
    again, same = way(padded, in_front, 6)
    assert torch.equal(again[:, 11:], labels)
    assert not again[:, :11].any()
    torch.testing.assert_close(same, centers)


@every_way
def test_sequences_are_clustered_one_by_one(way: Way) -> None:
    directions, mask = batch([30, 17, 4], 30)
    labels, _ = way(directions, mask, 6)
    for r in range(3):
        assert torch.equal(labels[r], way(directions[r : r + 1], mask[r : r + 1], 6)[0][0])


@every_way
@pytest.mark.parametrize("value", [0.0, 0.5, torch.nan])
def test_behaviors_all_alike_do_no_harm(way: Way, value: float) -> None:
    directions, mask = torch.full((2, 40, 4), value), torch.ones(2, 40, dtype=torch.bool)
    labels, centers = way(directions, mask, 5)
    assert ((labels >= 0) & (labels < 5)).all()
    assert centers.isfinite().all() or math.isnan(value)


def test_together_and_one_by_one_are_the_same_k_means() -> None:
    directions, mask = batch([200, 150, 31, 30, 3, 0], 200)
    labels, centers = cluster_sequences(directions, mask, 30, 15)
    together, there = _cluster_together(directions, mask.long(), 30, 15)
    # A behavior between two clusters may fall either way by rounding.
    assert (together == labels)[mask].float().mean() > 0.99
    served = (directions * centers.gather(1, labels[..., None].expand(-1, -1, 4))).sum(-1)
    served_there = (directions * there.gather(1, together[..., None].expand(-1, -1, 4))).sum(-1)
    torch.testing.assert_close(served[mask].mean(), served_there[mask].mean(), atol=1e-3, rtol=0)


def test_an_item_met_often_counts_as_often_and_is_in_one_cluster() -> None:
    random = torch.Generator().manual_seed(3)
    items = torch.nn.functional.normalize(torch.randn(60, 4, generator=random), dim=-1)
    rows = torch.randint(0, 60, (4, 300), generator=random)
    mask = torch.arange(300) >= torch.tensor([[0], [5], [280], [300]])
    labels, centers = cluster_sequences(items[rows], mask, 12, 15, rows)
    first, counts = first_met(rows, mask)
    together, there = _cluster_together(items[rows], counts, 12, 15)
    torch.testing.assert_close(labels, together.gather(1, first) * mask)
    torch.testing.assert_close(centers, there, atol=1e-5, rtol=0)
    for r in range(3):
        kept = rows[r][mask[r]].numpy()
        known, begin, count = np.unique(kept, return_index=True, return_counts=True)
        known, weights = known[np.argsort(begin)], count[np.argsort(begin)].astype(np.float32)
        expected, _ = cluster(items[known].numpy(), weights, 12, 15)
        of = dict(zip(known.tolist(), expected.tolist(), strict=True))
        assert labels[r][mask[r]].tolist() == [of[item] for item in kept.tolist()]


def test_agglomeration_always_joins_the_two_most_similar_on_average() -> None:
    directions, mask = batch([40, 23], 40, seed=1)
    labels, _ = agglomerate_sequences(directions, mask, 6)
    for r, n in ((0, 40), (1, 23)):
        points = directions[r, 40 - n :].double().numpy()
        cosine = points @ points.T
        clusters = [[i] for i in range(n)]
        while len(clusters) > 6:
            pairs = [(a, b) for a in range(len(clusters)) for b in range(a)]
            a, b = max(
                pairs, key=lambda pair: cosine[np.ix_(clusters[pair[0]], clusters[pair[1]])].mean()
            )
            clusters[b] += clusters.pop(a)
        assert groups(labels[r, 40 - n :]) == {frozenset(members) for members in clusters}


def test_agglomeration_finds_what_is_apart() -> None:
    random = np.random.default_rng(0)
    of = random.integers(3, size=300)
    points = np.eye(4)[of] + random.normal(size=(300, 4)) * 0.02
    directions = unit(torch.from_numpy(points.astype(np.float32)))[None]
    labels, _ = agglomerate_sequences(directions, torch.ones(1, 300, dtype=torch.bool), 3)
    assert groups(labels[0]) == groups(torch.from_numpy(of))


def test_repeated_behaviors_agglomerate_first() -> None:
    directions, mask = batch([10], 10)
    repeated = directions.repeat(1, 20, 1)
    labels, _ = agglomerate_sequences(repeated, mask.repeat(1, 20), 10)
    assert groups(labels[0]) == groups(torch.arange(10).repeat(20))


def test_routing_is_the_algorithm_of_mind() -> None:
    directions, mask = batch([25], 25)
    labels, _ = route_sequences(directions, mask, 4, 3, 20.0)
    h = directions[0].double().numpy()
    logits = np.random.default_rng(0).standard_normal((25, 4), np.float32)[::-1].astype(float)
    for _ in range(3):
        w = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        capsules = w.T @ h
        logits = logits + 20 * h @ (capsules / np.linalg.norm(capsules, axis=1, keepdims=True)).T
    np.testing.assert_array_equal(labels[0].numpy(), logits.argmax(1))


def test_random_clusters_are_all_used() -> None:
    directions, mask = batch([300], 300)
    labels, _ = scatter_sequences(directions, mask, 10)
    assert torch.bincount(labels[0], minlength=10).min() > 10
