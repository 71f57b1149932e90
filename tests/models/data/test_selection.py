from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.data.impressions import ShownItems
from models.data.interactions import Attribute
from models.data.selection import Selection, sample_users
from models.data.splits import split_requests
from tests.models.data.splitting import FEW, LAST, once_each


def test_samples_that_see_too_little_are_left_out() -> None:
    split = split_requests(once_each(), FEW, LAST, Selection(min_history=4))
    assert split.history(split.train).min() == 4
    assert len(split.test.cut) == 36


def test_few_requests_are_evaluated_if_so_wished() -> None:
    split = split_requests(once_each(), FEW, LAST, Selection(evaluated=7))
    assert len(split.validation.cut) == len(split.test.cut) == 7
    assert len(split.train.cut) == 12 * 14


def test_sampled_users_are_a_data_set_of_their_own() -> None:
    interactions = replace(
        once_each(items=400),
        item_attributes={
            "number": Attribute(
                [str(row) for row in range(400)], np.arange(200 + 1, dtype=np.int32)[:, None]
            )
        },
    )
    n = len(interactions.item_ids)
    attribute = Attribute([str(row) for row in range(n)], np.arange(n, dtype=np.int32)[:, None])
    interactions = replace(interactions, item_attributes={"number": attribute})
    shown = ShownItems(
        np.append(np.arange(12), -1).astype(np.int32),
        np.arange(1, 14, dtype=np.int32),
        np.arange(13),
        np.zeros(13, np.float32),
    )
    sampled, impressions = sample_users(interactions, shown, Selection(users=5))
    assert len(sampled.user_ids) == 5
    assert len(sampled) == 100
    assert sampled.first_seen[1:].tolist() == sorted(sampled.first_seen[1:].tolist())
    for user, item, at in zip(sampled.users, sampled.items, sampled.times, strict=True):
        old = int(at) // 3600
        assert sampled.user_ids[user] == interactions.user_ids[interactions.users[old]]
        assert sampled.item_ids[item] == interactions.item_ids[interactions.items[old]]
        assert sampled.item_attributes["number"].rows[item, 0] == interactions.items[old]
    assert impressions is not None
    assert impressions.users.tolist() == list(range(5))
    for user, item, at in zip(impressions.users, impressions.items, impressions.times, strict=True):
        assert sampled.user_ids[user] == interactions.user_ids[at]
        assert item == 0 or sampled.item_ids[item] == interactions.item_ids[at + 1]
