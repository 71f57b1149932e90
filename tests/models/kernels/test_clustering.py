from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.cluster import KMeans

from infra.arrays import F32
from models.kernels.clustering import SAME, WARM_ITERATIONS, cluster, farthest_first
from tests.models.kernels import equations as reference


def gaussian(L: int, m: int, seed: int) -> F32:
    return np.random.default_rng(seed).normal(size=(L, m)).astype(np.float32)


def grouped(L: int, m: int, seed: int, groups: int = 25, spread: float = 0.25) -> F32:
    rng = np.random.default_rng(seed)
    heads = rng.normal(size=(groups, m))
    h = heads[rng.integers(0, groups, L)] + spread * rng.normal(size=(L, m))
    return h.astype(np.float32)


def unit(h: F32) -> F32:
    return np.asarray(h / np.linalg.norm(h, axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize("m", [1, 2, 4, 5, 8, 13])
@pytest.mark.parametrize("T", [1, 2, 15])
def test_agrees_with_the_papers_equations(m: int, T: int) -> None:
    h = grouped(90, m, seed=m)
    K = min(7, 2 if m == 1 else 7)
    assign, centers = reference.kmeans(h, reference.farthest_first(h, K), T)
    ours = cluster(h, K, T)
    np.testing.assert_array_equal(ours.assign, assign)
    np.testing.assert_allclose(ours.centers, centers, atol=1e-6)
    np.testing.assert_array_equal(ours.sizes, np.bincount(assign, minlength=K))


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_papers_equations_at_the_papers_size(seed: int) -> None:
    """L = 400 takes centers that stand still through the shortcuts of the late iterations."""
    h = gaussian(400, 4, seed)
    assign, centers = reference.kmeans(h, reference.farthest_first(h, 30), 15)
    ours = cluster(h, 30, 15)
    np.testing.assert_array_equal(ours.assign, assign)
    np.testing.assert_allclose(ours.centers, centers, atol=1e-5)


@pytest.mark.parametrize("data", [gaussian, grouped])
@pytest.mark.parametrize(("L", "m", "K"), [(1000, 4, 30), (300, 8, 30), (1000, 2, 10)])
@pytest.mark.parametrize("seed", range(3))
def test_is_as_tight_as_scikit_learn_from_the_same_start(
    data: object, L: int, m: int, K: int, seed: int
) -> None:
    assert callable(data)
    h = unit(data(L, m, seed))
    theirs = KMeans(K, init=farthest_first(h, K), n_init=1, max_iter=15, tol=0).fit(h)
    ours = cluster(h, K, 15)
    expected = reference.inertia(h, theirs.labels_, unit(theirs.cluster_centers_))
    assert reference.inertia(h, ours.assign, ours.centers) <= 1.01 * expected


def test_starts_with_the_behavior_met_most_often() -> None:
    h = gaussian(50, 4, seed=1)
    counts = np.ones(50, np.uint32)
    counts[[20, 30]] = 5
    np.testing.assert_allclose(farthest_first(h, 3, counts)[0], unit(h)[20], atol=1e-6)


def test_every_start_is_farthest_from_those_before() -> None:
    h = gaussian(300, 4, seed=2)
    np.testing.assert_allclose(
        farthest_first(h, 20), unit(reference.farthest_first(h, 20).astype(np.float32)), atol=1e-6
    )


def test_a_counted_behavior_is_that_many_behaviors() -> None:
    h = gaussian(120, 4, seed=3)
    counts = np.random.default_rng(3).integers(1, 6, 120).astype(np.uint32)
    counts[0] = 9  # where both begin
    ours = cluster(h, 10, 15, counts)
    repeated = cluster(np.repeat(h, counts, axis=0), 10, 15)
    np.testing.assert_array_equal(np.repeat(ours.assign, counts), repeated.assign)
    np.testing.assert_array_equal(ours.sizes, repeated.sizes)
    np.testing.assert_allclose(ours.centers, repeated.centers, atol=1e-6)


def test_lengths_do_not_matter() -> None:
    h = gaussian(200, 4, seed=4)
    stretched = h * np.random.default_rng(4).uniform(1e-12, 1e12, (200, 1)).astype(np.float32)
    np.testing.assert_array_equal(cluster(h, 8, 15).assign, cluster(stretched, 8, 15).assign)


def test_the_same_input_gives_the_same_clusters() -> None:
    h = gaussian(500, 4, seed=5)
    for first, second in zip(cluster(h, 30, 15), cluster(h, 30, 15), strict=True):
        np.testing.assert_array_equal(first, second)


def test_input_stays_as_it_was() -> None:
    h = gaussian(100, 4, seed=6)
    before = h.copy()
    cluster(h, 10, 15)
    np.testing.assert_array_equal(h, before)


@pytest.mark.parametrize("layout", ["read-only", "strided", "float64"])
def test_any_layout_of_the_input_will_do(layout: str) -> None:
    h = gaussian(100, 4, seed=7)
    other: npt.NDArray[np.floating] = h.copy()
    if layout == "read-only":
        other.flags.writeable = False
    elif layout == "strided":
        other = np.repeat(h, 2, axis=1)[:, ::2]
    else:
        other = h.astype(np.float64)
    np.testing.assert_array_equal(cluster(other, 9, 15).assign, cluster(h, 9, 15).assign)


def test_stops_when_no_behavior_changes_its_cluster() -> None:
    h = grouped(200, 4, seed=8, groups=3, spread=0.01)
    assert cluster(h, 3, 15).iterations == 2


def test_ends_at_the_last_iteration_allowed() -> None:
    assert cluster(gaussian(1000, 4, seed=9), 30, 4).iterations == 4


# --- a warm start ---


def test_a_warm_start_is_capped() -> None:
    h = gaussian(1000, 4, seed=10)
    start = cluster(h[:500], 30, 15).centers
    assert cluster(h, 30, 15, start=start).iterations == WARM_ITERATIONS


def test_a_warm_start_at_the_solution_stays_there() -> None:
    h = grouped(500, 4, seed=11)
    cold = cluster(h, 20, 50)
    warm = cluster(h, 20, 50, start=cold.centers)
    assert warm.iterations == 2
    np.testing.assert_array_equal(warm.assign, cold.assign)


def test_a_warm_start_goes_on_where_the_last_one_ended() -> None:
    h = gaussian(400, 4, seed=12)
    warm = cluster(h, 30, 15, start=cluster(h, 30, 4).centers)
    cold = cluster(h, 30, 4 + WARM_ITERATIONS)
    np.testing.assert_array_equal(warm.assign, cold.assign)


def test_a_warm_start_with_few_new_behaviors_is_nearly_as_tight_as_a_cold_one() -> None:
    h = grouped(1000, 4, seed=13)
    warm = cluster(h, 30, 15, start=cluster(h[:936], 30, 15).centers)
    cold = cluster(h, 30, 15)
    assert reference.inertia(h, warm.assign, warm.centers) <= 1.05 * reference.inertia(
        h, cold.assign, cold.centers
    )


def test_empty_clusters_of_a_warm_start_begin_anew() -> None:
    h = gaussian(200, 4, seed=14)
    start = np.zeros((10, 4), np.float32)
    start[3] = h[0]
    assert (cluster(h, 10, 15, start=start).sizes > 0).all()


def test_a_center_that_no_behavior_is_near_moves_to_the_worst_served_one() -> None:
    h = np.concatenate((grouped(50, 4, seed=15, groups=2, spread=0.02), -gaussian(1, 4, seed=15)))
    far = -h.sum(axis=0, keepdims=True)
    start = np.concatenate((h[:1], h[:1] + 0.001, far, far * 2)).astype(np.float32)
    assert (cluster(h, 4, 15, start=start).sizes > 0).all()


def test_an_unusable_start_is_no_start() -> None:
    h = gaussian(200, 4, seed=16)
    start = np.full((10, 4), np.nan, np.float32)
    np.testing.assert_array_equal(cluster(h, 10, 15, start=start).assign, cluster(h, 10, 15).assign)


# --- degenerate input ---


def test_no_behaviors_give_empty_clusters() -> None:
    ours = cluster(np.empty((0, 4), np.float32), 5, 15)
    assert len(ours.assign) == 0
    assert not ours.centers.any()
    assert not ours.sizes.any()
    assert ours.iterations == 0


def test_one_cluster_holds_everything() -> None:
    h = gaussian(100, 4, seed=17)
    ours = cluster(h, 1, 15)
    assert ours.sizes.tolist() == [100]
    mean = unit(h).sum(axis=0)
    np.testing.assert_allclose(ours.centers[0], mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize("K", [6, 7, 30])
def test_with_clusters_enough_each_behavior_has_its_own(K: int) -> None:
    h = gaussian(6, 4, seed=18)
    ours = cluster(h, K, 15)
    assert ours.assign.tolist() == list(range(6))
    assert ours.sizes.tolist() == [1] * 6 + [0] * (K - 6)
    np.testing.assert_allclose(ours.centers[:6], unit(h), atol=1e-6)
    assert not ours.centers[6:].any()


def test_identical_behaviors_share_a_cluster() -> None:
    ours = cluster(np.tile(gaussian(1, 4, seed=19), (50, 1)), 5, 15)
    assert ours.assign.tolist() == [0] * 50
    assert ours.sizes.tolist() == [50, 0, 0, 0, 0]


def test_fewer_directions_than_clusters_leave_clusters_empty() -> None:
    h = np.repeat(gaussian(3, 4, seed=20), 20, axis=0)
    ours = cluster(h, 10, 15)
    assert sorted(ours.sizes.tolist()) == [0] * 7 + [20] * 3
    assert len(set(ours.assign[::20].tolist())) == 3


def test_behaviors_that_cancel_out_keep_their_center() -> None:
    h = np.array([[1, 0], [-1, 0]] * 2, np.float32)
    np.testing.assert_array_equal(cluster(h, 1, 15).centers, [[1, 0]])


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, -np.inf])
def test_a_behavior_without_a_direction_is_in_no_cluster(bad: float) -> None:
    h = gaussian(60, 4, seed=21)
    kept = np.arange(60) % 7 != 3
    h[~kept] = bad
    ours = cluster(h, 5, 15)
    assert (ours.assign[~kept] == -1).all()
    np.testing.assert_array_equal(ours.assign[kept], cluster(h[kept], 5, 15).assign)


def test_without_any_direction_all_clusters_are_empty() -> None:
    ours = cluster(np.zeros((40, 4), np.float32), 5, 15)
    assert (ours.assign == -1).all()
    assert not ours.centers.any()


@pytest.mark.parametrize(
    ("h", "K", "T", "more"),
    [
        (np.zeros(4), 1, 1, {}),
        (np.zeros((4, 2)), 0, 1, {}),
        (np.zeros((4, 2)), 1, 0, {}),
        (np.zeros((4, 2)), 1, 1, {"counts": np.ones(3, np.uint32)}),
        (np.zeros((4, 2)), 2, 1, {"start": np.zeros((3, 2))}),
        (np.zeros((4, 2)), 2, 1, {"start": np.zeros((2, 3))}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    h: F32, K: int, T: int, more: dict[str, npt.NDArray[np.generic]]
) -> None:
    with pytest.raises(ValueError, match=r"cluster needs|counts for|start of shape"):
        cluster(h, K, T, **more)  # type: ignore[arg-type]


@settings(max_examples=120, deadline=None)
@given(
    h=hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 60), st.sampled_from([1, 3, 4, 6])),
        elements=st.floats(-4, 4, width=32).map(round) | st.floats(width=32),
    ),
    K=st.integers(1, 20),
    T=st.integers(1, 15),
)
def test_whatever_comes_the_result_is_a_clustering(h: F32, K: int, T: int) -> None:
    ours = cluster(h, K, T)
    with np.errstate(all="ignore"):
        squares = (h.astype(np.float64) ** 2).sum(axis=1)
    directed = (squares > 0) & np.isfinite(squares)
    assert ((ours.assign >= 0) == directed).all()
    assert (ours.assign < K).all()
    np.testing.assert_array_equal(ours.sizes, np.bincount(ours.assign[directed], minlength=K))
    assert np.isfinite(ours.centers).all()
    norms = np.linalg.norm(ours.centers, axis=1)
    np.testing.assert_allclose(norms[ours.sizes > 0], 1, atol=1e-5)
    assert not norms[ours.sizes == 0].any()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), L=st.integers(2, 80), K=st.integers(1, 12))
def test_a_converged_behavior_is_nearest_to_its_own_center(seed: int, L: int, K: int) -> None:
    h = gaussian(L, 4, seed)
    ours = cluster(h, K, 500)
    cosines = unit(h) @ ours.centers[ours.sizes > 0].T
    own = (unit(h) * ours.centers[ours.assign]).sum(axis=1)
    assert (own >= cosines.max(axis=1) - SAME).all()
