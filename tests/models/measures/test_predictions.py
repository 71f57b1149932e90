from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from models.measures.predictions import (
    auc,
    calibration,
    calibration_error,
    calibration_ratio,
    edges_of,
    gauc,
    group_auc,
    hit_rate,
    log_loss,
    paired_bootstrap,
    slices,
)


def rows(n: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CTRs with many ties, labels that they tell something about, and users."""
    rng = np.random.default_rng(seed)
    ctrs = (rng.integers(1, 20, n) / 20).astype(np.float32)
    return ctrs, rng.random(n) < ctrs, rng.integers(0, 25, n)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), max_size=20))
@settings(max_examples=100, deadline=None)
def test_auc_is_the_chance_to_rank_right(drawn: list[tuple[int, bool, int]]) -> None:
    scores, labels, weights = (
        (np.array(column) for column in zip(*drawn, strict=True))
        if (drawn)
        else (np.empty(0), np.empty(0), np.empty(0))
    )
    positives = [(s, w) for s, label, w in drawn if label]
    negatives = [(s, w) for s, label, w in drawn if not label]
    pairs = [
        (((p > n) + (p == n) / 2) * v * w, v * w)
        for (p, v), (n, w) in itertools.product(positives, negatives)
    ]
    total = sum(weight for _, weight in pairs)
    found = auc(scores, labels, weights)
    if not total:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(sum(win for win, _ in pairs) / total)


def test_auc_agrees_with_scikit_learn() -> None:
    ctrs, labels, _ = rows(5000)
    weights = np.random.default_rng(1).random(5000)
    assert auc(ctrs, labels) == pytest.approx(roc_auc_score(labels, ctrs))
    assert auc(ctrs, labels, weights) == pytest.approx(
        roc_auc_score(labels, ctrs, sample_weight=weights)
    )


@pytest.mark.parametrize("scores", [[], [0.1, 0.2], [0.1, float("nan"), 0.3]])
def test_an_auc_that_the_data_cannot_give_is_not_a_number(scores: list[float]) -> None:
    labels = np.arange(len(scores)) < 2
    assert np.isnan(auc(np.array(scores), labels))


def test_gauc_weighs_users_by_impressions_and_skips_one_class() -> None:
    ctrs, labels, users = rows()
    labels = labels & (users != 3)  # user 3 never clicks
    total = weight = 0.0
    for user in range(25):
        mine = users == user
        if 0 < labels[mine].sum() < mine.sum():
            total += roc_auc_score(labels[mine], ctrs[mine]) * mine.sum()
            weight += mine.sum()
    assert gauc(ctrs, labels, users) == pytest.approx(total / weight)
    assert np.isnan(group_auc(ctrs, labels, users).auc[3])


def test_rows_of_weight_zero_do_not_count() -> None:
    ctrs, labels, users = rows()
    weights = np.random.default_rng(2).integers(0, 2, len(ctrs))
    kept = weights > 0
    for measure in (auc, log_loss, calibration_ratio):
        assert measure(ctrs, labels, weights) == pytest.approx(measure(ctrs[kept], labels[kept]))
    assert gauc(ctrs, labels, users, weights) == pytest.approx(
        gauc(ctrs[kept], labels[kept], users[kept])
    )


def test_no_group_to_rank_gives_no_gauc() -> None:
    assert np.isnan(gauc(np.ones(3), np.ones(3), np.zeros(3, int)))
    assert np.isnan(gauc(np.empty(0), np.empty(0), np.empty(0, int)))


def test_log_loss_agrees_with_scikit_learn() -> None:
    ctrs, labels, _ = rows()
    assert log_loss(ctrs, labels) == pytest.approx(sklearn_log_loss(labels, ctrs))
    assert np.isfinite(log_loss(np.array([0.0]), np.array([1.0])))


def test_calibrated_ctrs_have_a_small_error_and_a_ratio_of_one() -> None:
    ctrs, labels, _ = rows(200_000)
    assert calibration_error(ctrs, labels) < 0.01
    assert calibration_error(ctrs / 2, labels) == pytest.approx(ctrs.mean() / 2, abs=0.01)
    assert calibration_ratio(ctrs, labels) == pytest.approx(1, abs=0.01)
    assert calibration_ratio(ctrs / 2, labels) == pytest.approx(0.5, abs=0.01)


def test_calibration_error_by_width_is_the_textbooks() -> None:
    ctrs, labels, _ = rows()
    ctrs = ctrs * 0.999
    error = 0.0
    for low in np.arange(10) / 10:
        inside = (ctrs >= low) & (ctrs < low + 0.1)
        if inside.any():
            error += inside.mean() * abs(ctrs[inside].mean() - labels[inside].mean())
    assert calibration(ctrs, labels, bins=10, by="width").error == pytest.approx(error)


def test_bins_hold_equal_ctrs_together() -> None:
    table = calibration(np.array([0.1] * 50 + [0.7] * 50), np.arange(100) % 2, bins=20)
    assert table.predicted.tolist() == pytest.approx([0.1, 0.7])
    assert table.weight.sum() == 100


def test_a_hit_rate_by_counting() -> None:
    rng = np.random.default_rng(3)
    scores = rng.permuted(np.tile(np.arange(30.0), (50, 1)), axis=1)
    labels = np.zeros((50, 30))
    labels[:, 4] = 1
    place = (scores > scores[:, 4:5]).sum(1)
    assert hit_rate(scores, labels, k=10) == pytest.approx((place < 10).mean())


def test_ties_hit_at_their_expectation() -> None:
    labels = np.eye(100)[:3]
    assert hit_rate(np.zeros((3, 100)), labels, k=10) == pytest.approx(0.1)


def test_a_candidate_of_weight_zero_does_not_compete() -> None:
    scores, labels = np.array([[0.1, 0.9]]), np.array([[1.0, 0.0]])
    assert hit_rate(scores, labels, k=1) == 0
    assert hit_rate(scores, labels, k=1, weights=np.array([[1.0, 0.0]])) == 1


def test_slices_measure_their_own_rows() -> None:
    ctrs, labels, users = rows()
    values = np.random.default_rng(4).integers(0, 100, len(ctrs))
    table = slices(ctrs, labels, values, [0, 10, 50, np.inf], users)
    assert sum(part.rows for part in table) == len(ctrs)
    inside = (values >= 10) & (values < 50)
    assert table[1].auc == pytest.approx(auc(ctrs[inside], labels[inside]))
    assert table[1].gauc == pytest.approx(gauc(ctrs[inside], labels[inside], users[inside]))
    assert table[1].positives == labels[inside].sum()


def test_a_value_of_the_request_keeps_it_whole() -> None:
    ctrs = np.array([[0.9, 0.1], [0.2, 0.8]])
    labels = np.array([[1, 0], [1, 0]])
    short, long = slices(ctrs, labels, np.array([3, 30]), [0, 10, np.inf])
    assert (short.rows, short.auc) == (2, 1.0)
    assert (long.rows, long.auc) == (2, 0.0)


def test_a_slice_without_rows_has_no_measures() -> None:
    (part,) = slices(np.ones(2), np.ones(2), np.zeros(2), [5, 6])
    assert part.rows == 0
    assert np.isnan(part.auc)
    assert np.isnan(part.log_loss)


def test_edges_cut_evenly() -> None:
    values = np.arange(1000)
    edges = edges_of(values, 4)
    assert np.histogram(values, [*edges[:-1], 1000])[0].tolist() == pytest.approx([250] * 4, abs=1)


@pytest.mark.parametrize("measure", ["auc", "gauc"])
def test_the_better_method_is_found_better(measure: str) -> None:
    ctrs, labels, users = rows(4000)
    noise = np.random.default_rng(5).normal(size=len(ctrs))
    found = paired_bootstrap(ctrs, ctrs + noise, labels, users, measure, replicates=200)  # type: ignore[arg-type]
    assert found.p < 0.05
    assert 0 < found.low < found.observed < found.high
    assert found.mean == pytest.approx(found.observed, abs=0.02)


@pytest.mark.parametrize("measure", ["auc", "gauc"])
def test_equal_methods_do_not_differ(measure: str) -> None:
    ctrs, labels, users = rows()
    found = paired_bootstrap(ctrs, ctrs, labels, users, measure, replicates=50)  # type: ignore[arg-type]
    assert (found.observed, found.mean, found.p) == (0, 0, 1)


def test_a_bootstrap_draws_users_with_all_their_rows() -> None:
    """With one user every resampling is the data themselves."""
    ctrs, labels, _ = rows()
    found = paired_bootstrap(ctrs, -ctrs, labels, np.full(len(ctrs), 7), replicates=10)
    assert found.low == found.high == pytest.approx(found.observed)
    assert found.observed == pytest.approx(2 * auc(ctrs, labels) - 1)


def test_a_bootstrap_draws_again_with_its_seed() -> None:
    ctrs, labels, users = rows()
    noisy = ctrs + np.random.default_rng(6).normal(size=len(ctrs))
    first, again, other = (
        paired_bootstrap(ctrs, noisy, labels, users, replicates=30, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_bootstrap_of_several_runs_is_of_their_mean_difference() -> None:
    rng = np.random.default_rng(5)
    labels = (rng.random((40, 6)) < 0.4).astype(np.float32)
    users = rng.integers(0, 15, 40)
    runs = labels + rng.normal(0, 1, (3, 40, 6))
    others = labels + rng.normal(0, 1.5, (3, 40, 6))
    for measure in ("auc", "gauc"):
        single = [
            paired_bootstrap(mine, theirs, labels, users, measure, replicates=20)
            for mine, theirs in zip(runs, others, strict=True)
        ]
        found = paired_bootstrap(runs, others, labels, users, measure, replicates=20)
        assert found.observed == pytest.approx(np.mean([each.observed for each in single]))
        assert found.mean == pytest.approx(np.mean([each.mean for each in single]))
