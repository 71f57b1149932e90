from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.data.divisions import LastOfUser
from models.data.protocols import NextItem, Rated
from models.data.splits import Split, split_requests
from models.measures.quality import measure, measure_slices, ranking_quality
from tests.models.generated import planted_interactions


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


def test_auc_compares_positives_with_the_negatives_of_other_requests_too() -> None:
    """Positives 3 and 1; negatives 2, 1.5, 0, 4: of eight pairs the first wins 3, the second 1."""
    scores = np.array([[3.0, 2.0, 1.5], [0.0, 4.0, 1.0]])
    assert ranking_quality(scores, [0, 2]).auc == pytest.approx(4 / 8)


def test_the_positive_may_stand_elsewhere_in_each_request() -> None:
    falling = np.tile(np.arange(20, 0, -1), (4, 1))
    assert ranking_quality(falling, [0, 9, 10, 19]).hit10 == pytest.approx(2 / 4)


def test_a_tie_across_the_tenth_place_hits_at_its_expected_value() -> None:
    """Eight are better, and four, the positive one of them, share the places 9 to 12."""
    scores = np.array([[2] * 8 + [1] * 4 + [0] * 8])
    assert ranking_quality(scores, 9).hit10 == pytest.approx(2 / 4)


def test_a_tie_within_the_first_ten_is_a_hit() -> None:
    assert ranking_quality(np.array([[1] * 5 + [0] * 15]), 3).hit10 == pytest.approx(1.0)


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
