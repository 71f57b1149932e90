from __future__ import annotations

import numpy as np
import pytest

from lifelong.quality import measure_quality


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    # Positives 3 and 1; negatives 2, 1.5, 0, 4: of eight pairs the first wins 3, the second 1.
    scores = [np.array([3.0, 2.0, 1.5]), np.array([0.0, 4.0, 1.0])]

    assert measure_quality(scores, [0, 2]).auc == pytest.approx(4 / 8)


def test_auc_counts_a_tie_half() -> None:
    assert measure_quality([np.array([1, 1, 0])], [0]).auc == pytest.approx(1.5 / 2)


def test_auc_compares_positives_with_the_negatives_of_other_requests_too() -> None:
    # Within each request the target is first; across them 10 beats all and 1 loses to 9.
    scores = [np.array([10.0, 9.0]), np.array([1.0, 0.0])]

    assert measure_quality(scores, [0, 0]).auc == pytest.approx(3 / 4)


def test_hit_rate_is_the_share_of_targets_among_the_first_ten() -> None:
    falling = np.arange(20, 0, -1)

    quality = measure_quality([falling] * 4, [0, 9, 10, 19])

    assert quality.hit10 == pytest.approx(2 / 4)


def test_a_tie_across_the_tenth_place_hits_at_its_expected_value() -> None:
    # Eight are better, and four, the target one of them, share the places 9 to 12.
    scores = np.array([2] * 8 + [1] * 4 + [0] * 8)

    assert measure_quality([scores], [9]).hit10 == pytest.approx(2 / 4)


def test_scores_that_are_all_equal_hit_as_often_as_chance() -> None:
    quality = measure_quality([np.zeros(100, np.int64)], [42])

    assert [quality.auc, quality.hit10] == pytest.approx([0.5, 0.1])


def test_a_tie_within_the_first_ten_is_a_hit() -> None:
    scores = np.array([1] * 5 + [0] * 15)

    assert measure_quality([scores], [3]).hit10 == pytest.approx(1.0)
