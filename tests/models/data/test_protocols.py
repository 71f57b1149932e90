from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from infra.errors import TrainingError
from models.data.divisions import ByTime, Division, LastOfUser
from models.data.impressions import ShownItems
from models.data.interactions import Interactions
from models.data.protocols import NextItem, Rated, Shown
from models.data.selection import Selection
from models.data.splits import split_requests
from tests.models.data.splitting import FEW, LAST, once_each, parts, seen, with_values
from tests.models.generated import numbered, planted_interactions


def test_the_next_item_is_the_first_candidate() -> None:
    split = split_requests(once_each(), FEW, LAST)
    for _, requests in parts(split):
        np.testing.assert_array_equal(
            requests.candidates[:, 0], split.sequences.items[requests.cut]
        )
        assert (requests.labels[:, 0] == 1).all()
        assert (requests.labels[:, 1:] == 0).all()
    assert split.train.candidates.shape[1] == 3
    assert split.test.candidates.shape[1] == 6


def test_a_repeat_in_the_same_basket_is_no_sample() -> None:
    interactions = numbered([0] * 8, [1, 2, 1, 3, 4, 5, 6, 7], [1, 1, 1, 2, 3, 4, 5, 6])
    split = split_requests(
        interactions,
        NextItem(1, 1, unknown_positives="keep"),
        LastOfUser(),
        Selection(min_history=0),
    )
    assert split.train.cut.tolist() == [0, 1, 3, 4, 5]


def test_a_basket_can_be_hidden_from_its_own_samples() -> None:
    split = split_requests(
        planted_interactions(), NextItem(see_basket=False, evaluation_negatives=9), LAST
    )
    for _, requests in parts(split):
        assert (requests.cut == split.sequences.basket[requests.cut]).all()
    assert (split.history(split.test) % 4 == 0).all()


def test_ratings_are_labels() -> None:
    interactions = with_values(once_each())
    split = split_requests(interactions, Rated(threshold=4), LAST)
    for _, requests in parts(split):
        value = split.interactions.values
        assert value is not None
        np.testing.assert_array_equal(
            requests.labels[:, 0], value[split.sequences.position[requests.cut]] >= 4
        )
        assert requests.candidates.shape == (len(requests.cut), 1)
    assert len(split.test.cut) == 3 * 12


def test_a_behavior_without_a_value_is_seen_and_not_predicted() -> None:
    interactions = with_values(once_each())
    assert interactions.values is not None
    interactions.values[::2] = np.nan
    split = split_requests(interactions, Rated(), LAST, Selection(min_history=0))
    requests = [part for _, part in parts(split)]
    assert sum(len(part.cut) for part in requests) == 120
    assert max(split.history(part).max() for part in requests) > 17


@pytest.mark.parametrize(("choice", "requests"), [("skip", 0), ("keep", 10)])
def test_unknown_positives_are_skipped_or_kept(choice: str, requests: int) -> None:
    users = np.repeat(np.arange(10), 10)
    items = np.random.default_rng(0).integers(0, 5, 100)
    items[9::10] = 50 + np.arange(10)
    times = np.tile(np.arange(10), 10)
    interactions = numbered(np.append(users, 99), np.append(items, 1), np.append(times, 0))
    protocol = NextItem(1, 2, unknown_positives=choice)  # type: ignore[arg-type]
    division = LastOfUser(validation=1, test=2)
    split = split_requests(interactions, protocol, division)
    assert (split.test.candidates[:, 0] == 0).sum() == requests


def shown_data() -> tuple[Interactions, ShownItems]:
    """Users 0 and 1 act at 10, 20, ..., 100; user 2 and a stranger are shown items alone."""
    times = np.repeat(np.arange(10, 101, 10), 2)
    interactions = numbered(np.tile([0, 1], 10), np.arange(20) % 7, times)
    interactions = replace(interactions, user_ids=[*interactions.user_ids, "user-2"])
    at = np.tile(np.arange(5, 125, 5), 4)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(at))
    users = np.repeat(np.array([0, 1, 2, -1], np.int32), 24)
    return interactions, ShownItems(
        users[order],
        rng.integers(1, 8, len(at)).astype(np.int32),
        at[order],
        rng.integers(0, 2, len(at)).astype(np.float32),
    )


@pytest.mark.parametrize("division", [LastOfUser(validation=6, test=6), ByTime(0.3, 0.3)])
def test_an_impression_sees_the_behaviors_before_its_time(division: Division) -> None:
    interactions, impressions = shown_data()
    split = split_requests(interactions, Shown(), division, impressions=impressions)
    count, latest = 0, 0
    for _, requests in parts(split):
        users = split.users(requests)
        assert requests.times is not None
        assert set(users.tolist()) == {0, 1}
        for r, (user, at) in enumerate(zip(users, requests.times, strict=True)):
            before = interactions.items[(interactions.users == user) & (interactions.times < at)]
            assert seen(split, requests, r) == before.tolist()
        count += len(users)
        latest = max(latest, requests.times.max())
    assert count == 2 * 22  # those at 5 and at 10 see nothing
    assert latest == 120


def test_impressions_need_impressions() -> None:
    with pytest.raises(TrainingError, match="hold no impressions"):
        split_requests(once_each(), Shown(), LAST)


def test_ratings_need_values() -> None:
    with pytest.raises(TrainingError, match="no values"):
        split_requests(once_each(), Rated(), LAST)


@pytest.mark.parametrize("threshold", [0, 9])
def test_one_class_is_told(threshold: float) -> None:
    with pytest.raises(TrainingError, match=r"labels of the training part are [01]: value >= "):
        split_requests(with_values(once_each()), Rated(threshold=threshold), LAST)


def test_impressions_of_one_class_are_told() -> None:
    interactions, impressions = shown_data()
    impressions = impressions._replace(labels=np.zeros(96, np.float32))
    with pytest.raises(TrainingError, match="that were taken"):
        split_requests(interactions, Shown(), LAST, impressions=impressions)


def test_sections_are_told_apart_by_their_kind() -> None:
    section = {"kind": "next_item", "negatives": 3}
    assert msgspec.convert(section, NextItem | Rated | Shown) == NextItem(negatives=3)
