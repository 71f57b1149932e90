from __future__ import annotations

import msgspec
import numpy as np
import pytest

from infra.errors import TrainingError
from models.data.divisions import ByTime, Division, LastOfUser
from models.data.selection import Selection
from models.data.splits import split_requests
from tests.models.data.splitting import BY_TIME, FEW, LAST, once_each, parts
from tests.models.generated import numbered, planted_interactions


def test_the_last_samples_of_each_user_are_held_out() -> None:
    split = split_requests(once_each(), FEW, LAST, Selection(min_history=0))
    for user in range(12):
        history = [
            split.history(requests)[split.users(requests) == user].tolist()
            for _, requests in parts(split)
        ]
        assert history == [list(range(15)), [15, 16], [17, 18, 19]]


def test_time_divides_all_users_at_once() -> None:
    split = split_requests(once_each(), FEW, BY_TIME)
    times = [split.sequences.times[requests.cut] for _, requests in parts(split)]
    assert times[0].max() < times[1].min()
    assert times[1].max() < times[2].min()
    assert [len(part) for part in times] == [132, 48, 48]  # the first of each user sees nothing


def test_samples_of_one_time_stay_together() -> None:
    interactions = planted_interactions(users=10, baskets=10, size=7)
    split = split_requests(interactions, FEW, ByTime(validation=0.15, test=0.15))
    times = [set(split.sequences.times[part.cut].tolist()) for _, part in parts(split)]
    assert not times[0] & times[1]
    assert not times[1] & times[2]


@pytest.mark.parametrize(
    ("division", "name"),
    [(LastOfUser(validation=10, test=15), "training"), (LastOfUser(5, 20), "training")],
)
def test_a_part_without_samples_is_told(division: Division, name: str) -> None:
    with pytest.raises(TrainingError, match=f"the {name} part has no sample") as caught:
        split_requests(once_each(), FEW, division)
    assert "\n" not in str(caught.value)


def test_one_moment_cannot_be_divided() -> None:
    interactions = numbered(np.arange(20) % 4, np.arange(20), np.zeros(20))
    with pytest.raises(TrainingError, match="the training part has no sample"):
        split_requests(interactions, FEW, BY_TIME)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"kind": "time", "validation": 0.0}, "split.validation is 0.0"),
        ({"kind": "time", "validation": 0.5, "test": 0.5}, "leave a share for training"),
        ({"kind": "last", "test": 0}, "split.test is 0"),
    ],
)
def test_a_division_that_cannot_be_is_told(section: dict[str, object], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        msgspec.convert(section, ByTime | LastOfUser)
