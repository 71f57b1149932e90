from __future__ import annotations

import numpy as np
import pytest

from models.features import (
    CROSS_FEATURES,
    EMPTY_HISTORY,
    RATE,
    USER_FEATURES,
    History,
    Rates,
    cross_features,
    feature_names,
    user_features,
)

NOW_MS = 1_700_000_000_000
DAY_S = 86_400


def keys(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def history(*rows: tuple[int, int, int]) -> History:
    """Rows of (item key, count, days ago)."""
    rows = tuple(sorted(rows))
    return History(
        keys(*(row[0] for row in rows)),
        np.array([row[1] for row in rows], np.uint16),
        np.array([NOW_MS // 1000 - row[2] * DAY_S for row in rows], np.uint32),
    )


def test_a_bought_item_carries_its_count_and_its_age() -> None:
    row = cross_features(keys(7), np.zeros(1, np.float32), history((7, 3, 1), (9, 1, 0)), NOW_MS)[0]
    named = dict(zip(CROSS_FEATURES, row, strict=True))
    assert named["bought"] == 1
    assert named["count"] == pytest.approx(np.log(4) / np.log(10_001))
    assert named["recency_day"] == pytest.approx(0.5)
    assert named["recency_month"] == pytest.approx(30 / 31)
    assert named["popularity"] == 0


def test_an_item_never_bought_has_popularity_alone() -> None:
    row = cross_features(keys(8), np.array([1e6], np.float32), history((7, 3, 1)), NOW_MS)[0]
    np.testing.assert_allclose(row, [0, 0, 0, 0, 1], atol=1e-6)


def test_keys_beyond_the_last_of_the_history_are_not_bought() -> None:
    none = cross_features(keys(2**64 - 1), np.zeros(1, np.float32), history((7, 3, 1)), NOW_MS)
    assert not none.any()


def test_no_history_and_no_candidates_are_fine() -> None:
    assert cross_features(keys(), np.zeros(0, np.float32), EMPTY_HISTORY, NOW_MS).shape == (0, 5)
    assert not cross_features(keys(1), np.zeros(1, np.float32), EMPTY_HISTORY, NOW_MS).any()


def test_a_behavior_from_the_future_counts_as_one_from_now() -> None:
    row = cross_features(keys(7), np.zeros(1, np.float32), history((7, 1, -5)), NOW_MS)[0]
    assert row[CROSS_FEATURES.index("recency_day")] == 1


def test_a_stranger_has_no_user_features() -> None:
    assert not user_features(0, 0, NOW_MS).any()


def test_a_user_is_described_by_count_and_gap() -> None:
    row = dict(zip(USER_FEATURES, user_features(99, NOW_MS - 3_600_000, NOW_MS), strict=True))
    assert row["known"] == 1
    assert row["count"] == pytest.approx(np.log(100) / np.log(10_001))
    assert row["gap_hour"] == pytest.approx(0.5)


def test_all_features_stay_in_the_unit_interval() -> None:
    rng = np.random.default_rng(0)
    past = history(*((int(i), int(rng.integers(1, 10_000)), int(i)) for i in range(50)))
    cross = cross_features(
        np.arange(60, dtype=np.uint64), (rng.random(60) * 1e6).astype(np.float32), past, NOW_MS
    )
    user = user_features(10_000, NOW_MS, NOW_MS)
    assert cross.dtype == user.dtype == np.float32
    assert ((cross >= 0) & (cross <= 1)).all()
    assert ((user >= 0) & (user <= 1)).all()


LIKED = Rates(positive=("like",), base=0.4, item_prior=20.0, user_prior=10.0)


def test_of_whom_nothing_is_known_the_rate_is_the_base() -> None:
    assert LIKED.of_items(np.array(0), np.array(0)) == pytest.approx(0.4)
    assert LIKED.of_users(np.array(0), np.array(0)) == pytest.approx(0.4)


def test_a_rate_is_pulled_to_the_base_as_if_by_further_behaviors() -> None:
    rates = LIKED.of_users(np.array([10, 1000]), np.array([10, 1000]))
    np.testing.assert_allclose(rates, [14 / 20, 1004 / 1010], rtol=1e-6)


def test_an_action_that_is_unknown_counts_for_no_rate() -> None:
    positive, counted = LIKED.kinds(("", "like", "view"))
    assert positive.tolist() == [False, True, False]
    assert counted.tolist() == [False, True, True]


def test_rates_stand_behind_the_other_columns() -> None:
    user, cross = feature_names(LIKED)
    rate = np.array(0.75, np.float32)
    row = user_features(3, NOW_MS, NOW_MS, rate)
    assert dict(zip(user, row, strict=True))[RATE] == 0.75
    pair = cross_features(keys(7), np.zeros(1, np.float32), EMPTY_HISTORY, NOW_MS, rate[None])[0]
    assert dict(zip(cross, pair, strict=True))[RATE] == 0.75


def test_without_rates_the_columns_are_as_before() -> None:
    assert feature_names(None) == (USER_FEATURES, CROSS_FEATURES)
