from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.data.batches import Batch, Gatherer, prefetch
from models.data.interactions import Attribute, Interactions
from models.data.live import Live, training_requests
from models.data.requests import Requests, Sequences
from models.data.schema import Inputs, Schema
from models.data.withholding import Withholding
from models.features import (
    CROSS_FEATURES,
    USER_FEATURES,
    History,
    cross_features,
    dwell_bucket,
    user_features,
)
from tests.models.generated import numbered, planted_interactions

LATER = 10**6
"""A bundle that knows everything."""


def gatherer(
    interactions: Interactions,
    L: int = 64,
    schema: Schema = Schema(),  # noqa: B008 - frozen
) -> Gatherer:
    return Gatherer(interactions, Sequences.of(interactions), Inputs.of(interactions, schema), L)


def small() -> Interactions:
    return planted_interactions(users=10, items=20, baskets=10)


def request(cut: int, *candidates: int, as_of: int | None = None, bundle: int = LATER) -> Requests:
    shape = (1, len(candidates))
    return Requests(
        np.array([cut]),
        np.array([cut if as_of is None else as_of]),
        np.array([bundle]),
        np.array([candidates], np.int32),
        np.zeros(shape, np.float32),
        np.ones(shape, np.float32),
    )


def flat(batch: Batch) -> list[torch.Tensor]:
    parts: list[Any] = [list(part.values()) if isinstance(part, dict) else [part] for part in batch]
    return [tensor for part in parts for tensor in part]


def test_behaviors_stand_newest_last_behind_the_padding() -> None:
    gather = gatherer(small())
    pair = request(38, 1, 2).part(np.array([0, 0]))
    cut = np.array([38, 43])
    batch = gather(pair._replace(cut=cut, as_of=cut))
    items = gather.sequences.items
    assert batch.rows[0].tolist() == items[:38].tolist()
    assert batch.rows[1].tolist() == [0] * 35 + items[40:43].tolist()
    assert batch.mask.sum(1).tolist() == [38, 3]
    assert batch.mask[1, -3:].all()


def test_the_newer_behaviors_are_marked() -> None:
    batch = gatherer(small())(request(38, 1, as_of=33))
    assert batch.newer[0].tolist() == [False] * 33 + [True] * 5


def test_only_the_last_L_behaviors_are_seen_and_the_newer_ones() -> None:  # noqa: N802
    gather = gatherer(small(), L=10)
    items = gather.sequences.items
    first, seen = int(items[0]), int(items[28])
    batch = gather(request(38, first, seen))
    assert batch.rows[0].tolist() == items[28:38].tolist()
    count = CROSS_FEATURES.index("count")
    expected = np.log1p([(items[28:38] == item).sum() for item in (first, seen)]) / np.log(10_001)
    np.testing.assert_allclose(batch.cross[0, :, count], expected, rtol=1e-5)
    assert gather(request(38, 1, as_of=35)).rows.shape == (1, 13)


def test_nothing_at_or_after_the_request_is_visible() -> None:
    """What comes later is replaced by other items at other times; batches stay as they are."""
    before = replace(
        small(),
        actions=np.ones(400, np.uint8),
        action_names=["", "buy", "look"],
        dwell_s=np.ones(400, np.float32),
    )
    assert before.actions is not None
    assert before.dwell_s is not None
    late = np.arange(400) >= 240
    after = replace(
        before,
        item_ids=[*before.item_ids, "new"],
        titles=[*before.titles, "New"],
        items=np.where(late, 21, before.items).astype(np.int32),
        times=before.times + late * 1_000_000,
        actions=np.where(late, 2, before.actions).astype(np.uint8),
        dwell_s=np.where(late, 900.0, before.dwell_s).astype(np.float32),
    )
    everything = Live(behaviors_per_request=1, burn_in=0.0)
    batches = []
    for interactions in (before, after):
        gather = gatherer(interactions, schema=Schema(behavior=("action", "dwell", "age")))
        requests = training_requests(
            interactions, gather.sequences, everything, np.random.default_rng(0)
        )
        early = np.flatnonzero(gather.sequences.position[requests.cut] < 240)
        # A candidate is the next item of the basket, which for the last request is a later one.
        batches.append(gather(requests.part(early[:-1] if len(early) > 240 else early)))
    assert len(batches[0].rows) == 240
    for mine, other in zip(*map(flat, batches), strict=True):
        assert torch.equal(mine, other)


def test_a_bundle_does_not_know_items_that_came_after_it() -> None:
    gather = gatherer(numbered([0, 0, 0, 0], [1, 2, 3, 3], [10, 20, 30, 40]))
    batch = gather(request(3, 1, 3, bundle=2))
    assert batch.rows.tolist() == [[1, 2, 0]]
    assert batch.mask.all()  # an unknown item is a behavior all the same
    assert batch.candidates.tolist() == [[1, 0]]
    # It has no popularity there, and yet counts as bought before.
    named = dict(zip(CROSS_FEATURES, batch.cross[0, 1].tolist(), strict=True))
    assert named["popularity"] == 0
    assert named["bought"] == 1


def test_what_is_withheld_is_unknown_wherever_it_stands() -> None:
    """Twenty items on both sides; whichever a request withholds, it has as row 0 on both."""
    interactions = numbered([0] * 20, list(range(1, 21)), list(range(20)))
    gather = gatherer(interactions)
    items = list(range(1, 21))
    drawn = Withholding.draw(50, 0.3, np.random.default_rng(0))
    for r in range(50):
        batch = gather(request(19, *items)._replace(withheld=drawn.part(slice(r, r + 1))))
        assert batch.rows[0].tolist() == batch.candidates[0, :19].tolist()
        hidden = batch.candidates[0] == 0
        assert batch.candidates[0][~hidden].tolist() == np.array(items)[~hidden].tolist()
        assert batch.mask.all()
        popularity = batch.cross[0, :, CROSS_FEATURES.index("popularity")]
        assert torch.equal(popularity == 0, hidden)


def test_a_user_without_behaviors_has_nothing_but_padding() -> None:
    batch = gatherer(small())(request(40, 1, 2))  # the second user's first behavior
    assert batch.rows.tolist() == [[0]]
    assert not batch.mask.any()
    assert batch.user.tolist() == [[0.0] * len(USER_FEATURES)]


def test_features_are_those_that_the_service_computes() -> None:
    interactions = small()
    gather = gatherer(interactions)
    sequences = gather.sequences
    candidates = np.arange(1, 21)
    batch = gather(request(75, *candidates, bundle=len(interactions)))
    past, times = sequences.items[40:75], sequences.times[40:75]
    keys, place, counts = np.unique(past, return_inverse=True, return_counts=True)
    last = np.zeros(len(keys), np.uint32)
    np.maximum.at(last, place, times.astype(np.uint32))
    now_ms = int(sequences.times[75]) * 1000
    popularity = interactions.popularity(candidates.astype(np.int32), len(interactions))
    history = History(keys.astype(np.uint64), counts.astype(np.uint32), last)
    expected = cross_features(candidates.astype(np.uint64), popularity, history, now_ms)
    np.testing.assert_allclose(batch.cross[0], expected, atol=1e-6)
    user = user_features(35, int(times[-1]) * 1000, now_ms)
    np.testing.assert_allclose(batch.user[0], user, atol=1e-6)


def test_actions_have_the_rows_that_the_network_learned_them_by() -> None:
    """Data that are read later may meet the actions in another order, and new ones."""
    interactions = replace(
        numbered([0, 0, 0, 0], [1, 2, 3, 4], [1, 2, 3, 4]),
        actions=np.array([3, 1, 2, 0], np.uint8),
        action_names=["", "buy", "new", "look"],
    )
    gather = gatherer(interactions, schema=Schema(behavior=("action",)))
    learned = replace(gather.inputs, actions=("look", "buy"))
    batch = replace(gather, inputs=learned)(request(3, 1))
    assert batch.features["action"].tolist() == [[1, 2, 0]]


def test_rates_are_those_that_the_service_computes() -> None:
    interactions = liked(small())
    gather = gatherer(interactions, L=20, schema=Schema(positive=("like",)))
    sequences, rates = gather.sequences, gather.inputs.rates
    assert rates is not None
    candidates = np.arange(1, 21)
    batch = gather(request(75, *candidates, bundle=len(interactions)))
    assert interactions.actions is not None
    past = interactions.actions[sequences.position[55:75]]
    user = rates.of_users((past == 1).sum(), (past > 0).sum())
    assert batch.user[0, -1].item() == pytest.approx(float(user))
    before = np.arange(len(interactions)) < sequences.position[75]
    for item, rate in zip(candidates, batch.cross[0, :, -1].tolist(), strict=True):
        own = interactions.actions[before & (interactions.items == item)]
        expected = rates.of_items((own == 1).sum(), (own > 0).sum())
        assert rate == pytest.approx(float(expected))


def test_no_rate_tells_a_sample_s_own_label_or_a_later_one() -> None:
    """The action of the behavior that a request predicts, and all later ones, become others."""
    before = liked(small())
    assert before.actions is not None
    sequences = Sequences.of(before)
    inputs = Inputs.of(before, Schema(positive=("like",)))
    for cut in (1, 75, 200, 399):
        late = np.arange(len(before)) >= sequences.position[cut]
        actions = np.where(late, (before.actions + 1) % 3, before.actions).astype(np.uint8)
        asked = request(cut, int(sequences.items[cut]), 1, bundle=len(before))
        mine, other = (
            Gatherer(data, sequences, inputs, 64)(asked)
            for data in (before, replace(before, actions=actions))
        )
        assert torch.equal(mine.cross, other.cross)
        assert torch.equal(mine.user, other.user)


def test_a_request_after_the_training_part_sees_rates_of_all_of_it() -> None:
    interactions = liked(small())
    gather = gatherer(interactions, schema=Schema(positive=("like",)))
    late = int(np.argmax(gather.sequences.position))
    rates = [gather(request(late, 3, bundle=bundle)).cross[0, 0, -1] for bundle in (0, 200, LATER)]
    assert rates[0] == pytest.approx(0.5, abs=0.1)
    assert len({float(rate) for rate in rates}) == 3


def liked(interactions: Interactions) -> Interactions:
    """The interactions with actions, in turn "like", "look" and none that is known."""
    return replace(
        interactions,
        actions=np.random.default_rng(0).integers(0, 3, len(interactions)).astype(np.uint8),
        action_names=["", "like", "look"],
    )


def test_behavior_features_stand_beside_their_behaviors() -> None:
    actions, dwell_s = np.array([2, 1, 2, 1], np.uint8), np.array([0, 1, 5, 9], np.float32)
    interactions = replace(
        numbered([0, 0, 0, 0], [1, 2, 3, 4], [100, 968, 999, 1000]),
        actions=actions,
        action_names=["", "look", "buy"],
        dwell_s=dwell_s,
    )
    gather = gatherer(interactions, schema=Schema(behavior=("action", "dwell", "age")))
    features = gather(request(3, 1)).features
    assert features["action"].tolist() == [[2, 1, 2]]
    assert features["dwell"].tolist() == [dwell_bucket(dwell_s[:3]).tolist()]
    assert features["age"].tolist() == [[10, 6, 1]]  # 1 + log2 of 900, 32 and 1 seconds


def test_users_bring_their_attributes() -> None:
    interactions = replace(
        numbered([0, 1, 0], [1, 2, 3], [1, 2, 3]),
        user_attributes={"city": Attribute(["", "A", "B"], np.array([[1, 2], [2, 0]], np.int32))},
    )
    batch = gatherer(interactions, schema=Schema(user=("city", "id")))(request(2, 1))
    assert batch.user_rows["city"].tolist() == [[2, 0]]
    assert batch.user_rows["id"].tolist() == [[2]]


def test_batches_hold_every_request_once_and_in_order() -> None:
    interactions = small()
    gather = gatherer(interactions)
    requests = training_requests(interactions, gather.sequences, Live(), np.random.default_rng(0))
    batches = list(gather.batches(requests, 16))
    assert {len(batch.rows) for batch in batches[:-1]} == {16}
    labels = torch.cat([batch.labels for batch in batches])
    assert torch.equal(labels, torch.from_numpy(requests.labels))


def test_prefetched_items_come_in_order() -> None:
    assert list(prefetch(iter(range(50)))) == list(range(50))


def test_an_error_in_the_making_is_raised_where_it_is_used() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    made = prefetch(make())
    assert next(made) == 1
    with pytest.raises(ValueError, match="broken"):
        next(made)


def test_leaving_early_ends_the_thread() -> None:
    made = prefetch(iter(range(1000)))
    assert next(made) == 0
    made.close()
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}
