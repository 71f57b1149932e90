from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infra.behaviors import item_key
from models.bundle import Bundle
from models.data.divisions import LastOfUser
from models.data.live import evaluation_requests
from models.data.protocols import NextItem, Rated
from models.data.requests import Sequences
from models.data.splits import Split, split_requests
from models.features import EMPTY_HISTORY
from models.reference.evaluation import (
    OfflineRequest,
    add_to_history,
    baseline_qualities,
    evaluate_offline,
    extract_plainly,
    measure,
    measure_slices,
    ranking_quality,
    score_stored,
)
from tests.bundles import tiny_bundle
from tests.models.generated import planted_interactions

NOW_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny"))


def keys(*numbers: int) -> np.ndarray:
    return np.array([item_key(f"item-{number}") for number in numbers], np.uint64)


def times(n: int) -> np.ndarray:
    return NOW_MS - 60_000 * np.arange(n, 0, -1, dtype=np.int64)


def test_gauc_compares_within_requests_alone() -> None:
    """The second request's scores are all higher; only pooling notices."""
    scores = np.array([[0.2, 0.1], [0.9, 0.8]])
    assert ranking_quality(scores).gauc == 1.0
    assert ranking_quality(scores).auc == 0.75


def test_ties_count_at_their_expectation() -> None:
    constant = np.zeros((3, 100))
    quality = ranking_quality(constant)
    assert quality.hit10 == pytest.approx(0.1)
    assert quality.auc == quality.gauc == 0.5


@pytest.mark.parametrize(("above", "hit"), [(0, 1.0), (9, 1.0), (10, 0.0)])
def test_a_hit_is_within_the_first_ten(above: int, hit: float) -> None:
    scores = np.zeros((1, 100))
    scores[0, 0] = 0.5
    scores[0, 1 : above + 1] = 1.0
    assert ranking_quality(scores).hit10 == hit


def rated_split() -> Split:
    interactions = planted_interactions(users=20, items=20)
    values = np.random.default_rng(0).integers(1, 6, len(interactions)).astype(np.float32)
    return split_requests(replace(interactions, values=values), Rated(), LastOfUser(5, 5))


def test_rated_requests_have_every_measure_but_places() -> None:
    split = rated_split()
    perfect = np.clip(split.test.labels, 0.01, 0.99)
    measures = measure(perfect, split.test, split.users(split.test)).named()
    assert measures["auc"] == measures["gauc"] == 1
    assert measures["log_loss"] == pytest.approx(-np.log(0.99))
    assert measures["calibration_error"] == pytest.approx(0.01)
    assert "hit10" not in measures


def test_lists_are_measured_by_places_too() -> None:
    split = split_requests(planted_interactions(), NextItem(1, 15), LastOfUser(5, 5))
    measures = measure(np.full((300, 16), 0.1, np.float32), split.test, split.users(split.test))
    assert measures.hit10 == pytest.approx(10 / 16)
    assert measures.auc == measures.gauc == 0.5


def test_slices_cover_every_request() -> None:
    split = rated_split()
    ctrs = np.random.default_rng(1).random(split.test.labels.shape).astype(np.float32)
    tables = measure_slices(ctrs, split.test, split, parts=3)
    assert {name: sum(part.rows for part in table) for name, table in tables.items()} == {
        "history": 100,
        "popularity": 100,
        "staleness": 100,
    }
    assert len(tables["staleness"]) == 1  # all are scored with fresh interests


def test_a_list_is_sliced_by_the_popularity_of_its_positive() -> None:
    split = split_requests(planted_interactions(), NextItem(1, 15), LastOfUser(5, 5))
    ctrs = np.full((300, 16), 0.1, np.float32)
    table = measure_slices(ctrs, split.test, split)["popularity"]
    assert all(part.rows == 16 * part.positives for part in table)


def test_rules_know_what_was_bought_before() -> None:
    interactions = planted_interactions(users=10, items=20, baskets=10)
    sequences = Sequences.of(interactions)
    requests = evaluation_requests(
        interactions, sequences, 300, 60, np.random.default_rng(0), negatives=9
    )
    rules = baseline_qualities(interactions, sequences, requests)
    # Half of the items are never bought by a user, and the positive never is of that half.
    assert rules["auc_repeat"] > 0.65
    assert 0.3 < rules["auc_popularity"] < 0.7


def test_histories_add_up() -> None:
    first = add_to_history(EMPTY_HISTORY, keys(1, 2, 1), np.array([1000, 2000, 3000]))
    second = add_to_history(first, keys(2, 3), np.array([1500, 9000]))
    counted = dict(zip(second.item_keys, zip(second.counts, second.last, strict=True), strict=True))
    one, two, three = keys(1, 2, 3)
    assert counted == {one: (2, 3), two: (2, 2), three: (1, 9)}
    assert (np.diff(second.item_keys.astype(object)) > 0).all()


def test_interests_are_convex_mixtures_of_their_members(bundle: Bundle) -> None:
    user = extract_plainly(bundle, keys(*range(1, 31)), times(30))
    assert user.sizes.sum() == 30
    assert np.linalg.norm(user.interests, axis=1).max() <= (
        np.linalg.norm(bundle.embeddings, axis=1).max() + 1e-6
    )


def test_few_behaviors_are_interests_of_their_own(bundle: Bundle) -> None:
    user = extract_plainly(bundle, keys(3, 5), times(2))
    np.testing.assert_allclose(user.interests[:2], bundle.embeddings[[3, 5]], rtol=1e-6)
    assert user.sizes.tolist() == [1, 1, 0, 0]


def test_newer_behaviors_count_as_if_they_had_been_clustered(bundle: Bundle) -> None:
    """With fewer behaviors than clusters each is an interest anyway, so the CTRs are the same."""
    session = bundle.scorer_session()
    whole = extract_plainly(bundle, keys(3, 5, 3), times(3))
    part = extract_plainly(bundle, keys(3, 5), times(3)[:2])
    newer = type(part)(
        interests=part.interests,
        sizes=part.sizes,
        recent=part.recent,
        history=part.history,
        newer=keys(9),
        newer_times=times(3)[2:],
        count=3,
        last_time_ms=int(times(3)[2]),
    )
    all_clustered = extract_plainly(bundle, keys(3, 5, 9), times(3))
    candidates = keys(9, 5, 7, 777)
    mine = score_stored(bundle, session, newer, candidates, NOW_MS)
    same = score_stored(bundle, session, all_clustered, candidates, NOW_MS)
    other = score_stored(bundle, session, whole, candidates, NOW_MS)
    np.testing.assert_allclose(mine, same, atol=1e-6)
    assert np.abs(mine - other).max() > 1e-6


def test_a_stranger_and_an_empty_sequence_are_scored_alike(bundle: Bundle) -> None:
    session = bundle.scorer_session()
    empty = extract_plainly(bundle, keys(), times(0))
    np.testing.assert_array_equal(
        score_stored(bundle, session, None, keys(1, 2), NOW_MS),
        score_stored(bundle, session, empty, keys(1, 2), NOW_MS),
    )


def test_an_unknown_item_gets_a_ctr(bundle: Bundle) -> None:
    user = extract_plainly(bundle, keys(1, 777), times(2))
    ctrs = score_stored(bundle, bundle.scorer_session(), user, keys(777, 778), NOW_MS)
    assert ((ctrs > 0) & (ctrs < 1)).all()
    # Both have row 0, but the user bought one of them before.
    assert ctrs[0] != ctrs[1]


def test_an_offline_evaluation_keeps_the_ctrs(bundle: Bundle) -> None:
    user = extract_plainly(bundle, keys(1, 2), times(2))
    requests = [
        OfflineRequest(None, keys(1, 2, 3), NOW_MS),
        OfflineRequest(user, keys(2, 3, 1), NOW_MS),
    ]
    evaluation = evaluate_offline(bundle, requests)
    assert [len(ctrs) for ctrs in evaluation.ctrs] == [3, 3]
    assert 0 <= evaluation.quality.auc <= 1
