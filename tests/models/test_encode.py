from __future__ import annotations

import numpy as np
import pytest
import torch

from models.bundle import BetaMode
from models.encode import Clusters, Encode, EncodeConfig, Projection, Scorer
from models.features import CROSS_FEATURES, USER_FEATURES
from models.kmeans import cluster


def make_network(seed: int = 0, **changes: object) -> Encode:
    torch.manual_seed(seed)
    settings = {"n_items": 30, "d": 8, "m": 3, "K": 4, "L": 40, "M": 6, "hidden": (16, 8)}
    return Encode(EncodeConfig(**{**settings, **changes})).eval()  # type: ignore[arg-type]


def table(network: Encode) -> np.ndarray:
    return network.embedding.weight.detach().numpy().astype(np.float64)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def similarity(a: np.ndarray, b: np.ndarray, beta: float) -> float:
    """Eq. 9 with the distance of Eq. 11."""
    distance = 1 - cosine(a, b)
    return (1 - distance) / beta


def clusters_of(network: Encode, rows: np.ndarray, K: int) -> tuple[Clusters, np.ndarray]:
    """A user's clusters as the network takes them, and each behavior's label (distinct rows)."""
    projected = network.project(network.embedding.weight).detach().numpy()[rows]
    labels, centers = cluster(projected, np.ones(len(rows), np.float32), K, network.config.T)
    order = np.argsort(labels, kind="stable")
    return (
        Clusters(
            rows=torch.from_numpy(rows[order]),
            counts=torch.ones(len(rows)),
            cluster=torch.from_numpy(labels[order].astype(np.int64)),
            centers=torch.from_numpy(centers),
        ),
        labels,
    )


def inputs(network: Encode, interests: torch.Tensor, B: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    M, d = network.config.M, network.config.d
    return {
        "interests": interests,
        "interest_mask": torch.ones(len(interests)),
        "recent": torch.randn(M, d, generator=generator),
        "recent_mask": torch.ones(M),
        "user": torch.rand(len(USER_FEATURES), generator=generator),
        "candidates": torch.randn(B, d, generator=generator),
        "cross": torch.rand(B, len(CROSS_FEATURES), generator=generator),
    }


@torch.no_grad()
def test_interests_are_algorithm_1() -> None:
    network = make_network()
    E, W = table(network), network.projection.detach().numpy().astype(np.float64)
    rows = np.random.default_rng(0).permutation(np.arange(1, 31))[:20]
    clusters, labels = clusters_of(network, rows, K=4)
    interests = network.interests(clusters).numpy()
    for k in range(4):
        members = rows[labels == k]
        h = E[members] @ W  # Eq. 4
        c = clusters.centers[k].numpy().astype(np.float64)
        weights = np.exp([similarity(h_i, c, beta=20.0) for h_i in h])
        u = (weights[:, None] * E[members]).sum(0) / weights.sum()  # Eq. 8
        np.testing.assert_allclose(interests[k], u, atol=1e-6)


@torch.no_grad()
def test_a_repeated_item_weighs_as_often_as_it_occurs() -> None:
    network = make_network()
    center = torch.randn(1, 3)
    zeros = torch.zeros(3, dtype=torch.int64)
    thrice = Clusters(torch.tensor([5, 5, 9]), torch.ones(3), zeros, center)
    counted = Clusters(torch.tensor([5, 9]), torch.tensor([2.0, 1.0]), zeros[:2], center)
    torch.testing.assert_close(network.interests(thrice), network.interests(counted))


@torch.no_grad()
def test_as_many_clusters_as_behaviors_is_target_attention() -> None:
    network = make_network(beta=0.5)
    E = table(network)
    rows = np.arange(1, 13)
    clusters, _ = clusters_of(network, rows, K=12)
    feed = inputs(network, network.interests(clusters))
    by_clusters = network.logits(**feed)
    by_behaviors = network.logits(**{**feed, "interests": network.embedding(torch.tensor(rows))})
    torch.testing.assert_close(by_clusters, by_behaviors)
    # And that is Eq. 10 over the behaviors themselves.
    candidate = feed["candidates"][0].numpy().astype(np.float64)
    weights = np.exp([similarity(E[row], candidate, beta=0.5) for row in rows])
    expected = (weights[:, None] * E[rows]).sum(0) / weights.sum()
    from models.layers import cosine_attention

    interest = cosine_attention(
        feed["candidates"], feed["interests"], torch.ones(12), network.scale
    )[0]
    np.testing.assert_allclose(interest.numpy(), expected, atol=1e-6)


@torch.no_grad()
def test_empty_clusters_and_padding_change_nothing() -> None:
    network = make_network()
    feed = inputs(network, torch.randn(3, 8))
    padded = {
        **feed,
        "interests": torch.cat([feed["interests"], torch.full((2, 8), 7.0)]),
        "interest_mask": torch.tensor([1.0, 1, 1, 0, 0]),
    }
    torch.testing.assert_close(network.logits(**padded), network.logits(**feed))
    short = {**feed, "recent": feed["recent"][-2:], "recent_mask": torch.ones(2)}
    masked = {**feed, "recent_mask": torch.tensor([0.0] * 4 + [1.0] * 2)}
    torch.testing.assert_close(network.logits(**masked), network.logits(**short))


@torch.no_grad()
def test_a_batch_is_its_requests_one_by_one() -> None:
    network = make_network()
    one, two = inputs(network, torch.randn(3, 8)), inputs(network, torch.randn(3, 8))
    batch = {name: torch.stack([one[name], two[name]]) for name in one}
    torch.testing.assert_close(
        network.logits(**batch), torch.stack([network.logits(**one), network.logits(**two)])
    )


@pytest.mark.parametrize(
    ("mode", "scale"), [("divide", 1 / 20), ("multiply", 20.0), ("learned", 20.0)]
)
def test_beta_divides_multiplies_or_is_learned(mode: BetaMode, scale: float) -> None:
    network = make_network(beta_mode=mode)
    assert network.scale.item() == pytest.approx(scale)
    assert network.scale.requires_grad == (mode == "learned")


def test_gradients_reach_embeddings_and_projection() -> None:
    network = make_network(beta=0.5)
    rows = np.arange(1, 21)
    clusters, _ = clusters_of(network, rows, K=4)
    loss = network.logits(**inputs(network, network.interests(clusters))).square().sum()
    to_table, to_projection = torch.autograd.grad(
        loss, [network.embedding.weight, network.projection]
    )
    assert (to_table[1:21].abs().sum(1) > 0).all()
    assert to_projection.abs().sum() > 0


@torch.no_grad()
def test_the_graphs_compute_what_the_network_does() -> None:
    network = make_network()
    feed = inputs(network, torch.randn(3, 8))
    torch.testing.assert_close(Scorer(network)(**feed), torch.sigmoid(network.logits(**feed)))
    E = network.embedding.weight
    torch.testing.assert_close(Projection(network)(E), E @ network.projection)
