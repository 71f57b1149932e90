from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.arrays import F32
from models.kernels.attention import attend
from models.kernels.clustering import cluster
from tests.models.kernels import equations as reference

SCALES = {"divide": 1 / 20, "multiply": 20.0}


def table(seed: int, n: int = 200, d: int = 32, m: int = 4) -> tuple[F32, F32]:
    """Embeddings f32[n,d] and their projections f32[n,m]."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(n, d)).astype(np.float32)
    return embeddings, (embeddings @ rng.normal(size=(d, m))).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    L=st.integers(1, 60),
    K=st.integers(1, 10),
    beta_mode=st.sampled_from(["divide", "multiply"]),
)
def test_agrees_with_the_papers_equations(seed: int, L: int, K: int, beta_mode: str) -> None:
    embeddings, projected = table(seed)
    rows = np.random.default_rng(seed).integers(0, len(embeddings), L).astype(np.int32)
    h = projected[rows]
    assign, centers, _, _ = cluster(h, K, 15)
    ours = attend(h, assign, centers, rows, embeddings, SCALES[beta_mode])
    u = reference.interests(h, embeddings[rows], assign, centers, 20.0, beta_mode)
    np.testing.assert_allclose(ours, u, atol=2e-5)


def test_a_sharp_softmax_picks_the_behavior_nearest_to_the_center() -> None:
    embeddings, projected = table(1)
    rows = np.arange(50, dtype=np.int32)
    assign, centers, _, _ = cluster(projected[:50], 1, 15)
    nearest = reference.distances(projected[:50], centers).argmin()
    u = attend(projected[:50], assign, centers, rows, embeddings, scale=1e6)
    np.testing.assert_allclose(u[0], embeddings[nearest], atol=1e-5)


def test_divided_by_twenty_the_weights_are_nearly_a_mean() -> None:
    embeddings, projected = table(2)
    rows = np.arange(50, dtype=np.int32)
    assign, centers, _, _ = cluster(projected[:50], 1, 15)
    u = attend(projected[:50], assign, centers, rows, embeddings, scale=1 / 20)
    np.testing.assert_allclose(u[0], embeddings[:50].mean(axis=0), atol=0.1)


def test_a_counted_behavior_is_that_many_behaviors() -> None:
    embeddings, projected = table(3)
    rows = np.arange(40, dtype=np.int32)
    counts = np.random.default_rng(3).integers(1, 9, 40).astype(np.uint32)
    h = projected[rows]
    assign, centers, _, _ = cluster(h, 5, 15, counts)
    ours = attend(h, assign, centers, rows, embeddings, 20.0, counts)
    repeat = np.repeat(rows, counts)
    repeated = attend(
        projected[repeat], np.repeat(assign, counts), centers, repeat, embeddings, 20.0
    )
    np.testing.assert_allclose(ours, repeated, atol=1e-5)


def test_a_cluster_of_one_is_its_behavior() -> None:
    embeddings, projected = table(4)
    rows = np.array([7, 70], np.int32)
    assign, centers, _, _ = cluster(projected[rows], 5, 15)
    u = attend(projected[rows], assign, centers, rows, embeddings, 20.0)
    np.testing.assert_array_equal(u[:2], embeddings[rows])


def test_an_empty_cluster_is_zero() -> None:
    embeddings, projected = table(5)
    rows = np.array([7, 70], np.int32)
    assign, centers, _, _ = cluster(projected[rows], 5, 15)
    assert not attend(projected[rows], assign, centers, rows, embeddings, 20.0)[2:].any()


def test_a_behavior_in_no_cluster_counts_nowhere() -> None:
    embeddings, projected = table(6)
    rows = np.arange(20, dtype=np.int32)
    h = projected[:20].copy()
    h[3] = np.nan
    assign, centers, _, _ = cluster(h, 4, 15)
    ours = attend(h, assign, centers, rows, embeddings, 20.0)
    kept = np.delete(rows, 3)
    without = attend(h[kept], assign[kept], centers, kept, embeddings, 20.0)
    np.testing.assert_array_equal(ours, without)


def test_no_behaviors_give_zero_interests() -> None:
    embeddings, _ = table(7)
    nothing = np.empty(0, np.int32)
    u = attend(
        np.empty((0, 4), np.float32), nothing, np.zeros((3, 4), np.float32), nothing, embeddings, 1
    )
    assert u.shape == (3, 32)
    assert not u.any()


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_scores_beyond_what_exp_can_hold_stay_finite(scale: float) -> None:
    embeddings, projected = table(8)
    rows = np.arange(100, dtype=np.int32)
    assign, centers, _, _ = cluster(projected[:100], 3, 15)
    assert np.isfinite(attend(projected[:100], assign, centers, rows, embeddings, scale)).all()
