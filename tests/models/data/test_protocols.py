from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from infra.errors import TrainingError
from models.data.interactions import Attribute, Interactions
from models.data.protocols import (
    ByTime,
    Division,
    LastOfUser,
    NextItem,
    Protocol,
    Rated,
    Samples,
    Shown,
    ShownItems,
    Split,
    sample_users,
    split_requests,
)
from models.data.requests import Requests
from tests.models.generated import numbered, planted_interactions

FEW = NextItem(negatives=2, evaluation_negatives=5)
LAST = LastOfUser(validation=2, test=3)
BY_TIME = ByTime(validation=0.2, test=0.2)


def with_values(interactions: Interactions, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    return replace(interactions, values=rng.integers(1, 6, len(interactions)).astype(np.float32))


def once_each(users: int = 12, items: int = 40, each: int = 20) -> Interactions:
    """Users who never repeat an item; one behavior an hour, users in turn."""
    rng = np.random.default_rng(0)
    chosen = np.stack([rng.permutation(items)[:each] for _ in range(users)], axis=1)
    return numbered(np.tile(np.arange(users), each), chosen.ravel(), 3600 * np.arange(users * each))


def parts(split: Split) -> Iterator[tuple[str, Requests]]:
    yield "train", split.train
    yield "validation", split.validation
    yield "test", split.test


def seen(split: Split, requests: Requests, r: int) -> list[int]:
    cut = requests.cut[r]
    return list(split.sequences.items[split.sequences.start[cut] : cut])


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


def test_the_last_samples_of_each_user_are_held_out() -> None:
    split = split_requests(once_each(), FEW, LAST, Samples(min_history=0))
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


def test_negatives_are_what_the_user_has_never_chosen_where_nobody_repeats() -> None:
    split = split_requests(once_each(), FEW, LAST)
    chosen: dict[int, set[int]] = {}
    interactions = split.interactions
    for user, item in zip(interactions.users.tolist(), interactions.items.tolist(), strict=True):
        chosen.setdefault(user, set()).add(item)
    for _, requests in parts(split):
        for user, row in zip(split.users(requests), requests.candidates[:, 1:], strict=True):
            assert not chosen[int(user)] & set(row.tolist())


def test_where_items_are_repeated_negatives_may_stand_in_the_history() -> None:
    split = split_requests(planted_interactions(), NextItem(4, 5), LAST)
    sequences, hits = split.sequences, 0
    for r, row in enumerate(split.train.candidates):
        cut = split.train.cut[r]
        basket = sequences.items[sequences.basket[cut] : sequences.basket_end[cut]]
        assert not set(basket.tolist()) & set(row[1:].tolist())
        hits += bool(set(seen(split, split.train, r)) & set(row[1:].tolist()))
    assert hits > len(split.train.cut) / 2


def test_no_candidate_stands_twice() -> None:
    split = split_requests(planted_interactions(), NextItem(evaluation_negatives=30), LAST)
    for row in split.test.candidates:
        assert len(set(row.tolist())) == 31


def test_a_user_who_leaves_few_items_gets_candidates_of_weight_zero() -> None:
    interactions = once_each(users=6, items=24, each=20)
    split = split_requests(interactions, NextItem(negatives=6, evaluation_negatives=6), LAST)
    assert (split.train.weights.sum(1) == 5).all()
    assert ((split.train.candidates > 0) == (split.train.weights > 0)).all()


def test_popular_items_are_popular_negatives() -> None:
    """Items 1 and 2 are chosen by others in nine of ten behaviors."""
    rng = np.random.default_rng(0)
    items = np.where(rng.random(4000) < 0.9, rng.integers(0, 2, 4000), rng.integers(2, 50, 4000))
    interactions = numbered(np.arange(4000) % 40, items, np.arange(4000))
    share = {}
    for sampling in ("popularity", "uniform"):
        protocol = NextItem(sampling=sampling, exclude="basket", evaluation_negatives=9)
        split = split_requests(interactions, protocol, LAST)
        popular = np.argsort(-split.popularity)[:2]
        # Where the positive is popular itself, it cannot be a negative.
        rare = ~np.isin(split.train.candidates[:, 0], popular)
        share[sampling] = np.isin(split.train.candidates[rare, 1], popular).mean()
    assert share["popularity"] == pytest.approx(0.9, abs=0.05)
    assert share["uniform"] == pytest.approx(2 / 50, abs=0.03)


def test_a_repeat_in_the_same_basket_is_no_sample() -> None:
    interactions = numbered([0] * 8, [1, 2, 1, 3, 4, 5, 6, 7], [1, 1, 1, 2, 3, 4, 5, 6])
    split = split_requests(
        interactions, NextItem(1, 1, unknown_positives="keep"), LastOfUser(), Samples(min_history=0)
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
    split = split_requests(interactions, Rated(), LAST, Samples(min_history=0))
    requests = [part for _, part in parts(split)]
    assert sum(len(part.cut) for part in requests) == 120
    assert max(split.history(part).max() for part in requests) > 17


def test_an_item_first_chosen_after_training_is_unknown() -> None:
    users = np.repeat(np.arange(10), 10)
    items = np.tile(np.arange(10), 10)
    items[9::10] = 50 + np.arange(10)  # everybody's last is new
    interactions = with_values(numbered(users, items, np.tile(np.arange(10), 10)))
    split = split_requests(interactions, Rated(), LastOfUser(validation=2, test=1))
    assert (split.test.candidates == 0).all()
    assert (split.train.candidates > 0).all()
    unknown = np.flatnonzero(~split.known)[1:]
    assert len(unknown) == 12  # and the two that only validation has
    assert (split.interactions.first_seen[unknown] >= split.n_training).all()
    assert (split.popularity[unknown] == 0).all()


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


def test_samples_that_see_too_little_are_left_out() -> None:
    split = split_requests(once_each(), FEW, LAST, Samples(min_history=4))
    assert split.history(split.train).min() == 4
    assert len(split.test.cut) == 36


def test_few_requests_are_evaluated_if_so_wished() -> None:
    split = split_requests(once_each(), FEW, LAST, Samples(evaluated=7))
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
    sampled, impressions = sample_users(interactions, shown, Samples(users=5))
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


def test_the_seed_alone_decides() -> None:
    first, again, other = (
        split_requests(once_each(), FEW, LAST, Samples(seed=seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.train.candidates, again.train.candidates)
    np.testing.assert_array_equal(first.epoch(3).candidates, again.epoch(3).candidates)
    assert (first.train.candidates != other.train.candidates).any()


def test_an_epoch_has_every_sample_in_its_own_order_with_its_own_negatives() -> None:
    split = split_requests(once_each(), FEW, LAST)
    first, second = split.epoch(0), split.epoch(1)
    assert sorted(second.cut.tolist()) == split.train.cut.tolist()
    assert (first.cut != second.cut).any()
    np.testing.assert_array_equal(second.cut, split.train.cut[split.order(1)])
    by_cut = np.argsort(second.cut)
    np.testing.assert_array_equal(second.candidates[by_cut, 0], split.train.candidates[:, 0])
    assert (second.candidates[by_cut, 1:] != split.train.candidates[:, 1:]).any()


def size_of(requests: Requests) -> int:
    """Bytes of the distinct arrays."""
    arrays = [array for array in requests if array is not None]
    return sum({id(array): array.nbytes for array in arrays}.values())


@pytest.mark.parametrize("L", [100, 10_000])
def test_a_sample_costs_the_same_however_long_its_sequence(L: int) -> None:
    rng = np.random.default_rng(0)
    items = rng.integers(0, 500, 4 * L)
    interactions = with_values(numbered(np.arange(4 * L) % 4, items, np.arange(4 * L)))
    for protocol, limit in ((NextItem(negatives=4), 76), (Rated(), 28)):
        split = split_requests(interactions, protocol, LAST)
        assert split.history(split.train).max() >= L - 10
        bytes_per_sample = size_of(split.train) / len(split.train.cut)
        assert bytes_per_sample <= limit
        assert bytes_per_sample * 10_000_000 < 1 << 30
        assert len(split.sequences.items) == 4 * L


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


def test_too_few_items_for_the_negatives_are_told() -> None:
    with pytest.raises(TrainingError, match="40 items, too few for 99 negatives"):
        split_requests(planted_interactions(), NextItem(), LAST)


def test_users_without_behaviors_do_no_harm() -> None:
    interactions = once_each()
    more = replace(interactions, user_ids=[*interactions.user_ids, "nobody"])
    split = split_requests(more, FEW, LAST)
    np.testing.assert_array_equal(
        split.train.candidates, split_requests(interactions, FEW, LAST).train.candidates
    )


def test_no_behavior_gives_no_sample() -> None:
    with pytest.raises(TrainingError, match="give no sample"):
        split_requests(numbered([], [], []), FEW, LAST)


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


def test_sections_are_told_apart_by_their_kind() -> None:
    section = {"kind": "next_item", "negatives": 3}
    assert msgspec.convert(section, NextItem | Rated | Shown) == NextItem(negatives=3)


histories = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 12)), min_size=12, max_size=60
)
protocols = st.one_of(
    st.builds(
        NextItem,
        negatives=st.just(1),
        evaluation_negatives=st.just(1),
        sampling=st.sampled_from(["uniform", "popularity"]),
        exclude=st.sampled_from(["seen", "basket"]),
        see_basket=st.booleans(),
        unknown_positives=st.sampled_from(["skip", "keep"]),
    ),
    st.builds(Rated, threshold=st.integers(2, 5)),
)
divisions = st.one_of(
    st.builds(ByTime, validation=st.floats(0.1, 0.4), test=st.floats(0.1, 0.4)),
    st.builds(LastOfUser, validation=st.integers(1, 3), test=st.integers(1, 3)),
)


@given(histories, protocols, divisions, st.integers(0, 3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_nothing_leaks(
    drawn: list[tuple[int, int, int]], protocol: Protocol, division: Division, min_history: int
) -> None:
    """Stated again by plain Python on the behaviors as they were given."""
    users, items, times = map(np.array, zip(*sorted(drawn, key=lambda row: row[2]), strict=True))
    interactions = with_values(numbered(users, items, times))
    try:
        split = split_requests(interactions, protocol, division, Samples(min_history=min_history))
    except TrainingError:
        reject()
    start = split.sequences.start
    own = {
        user: [
            (int(at), int(item))
            for at, item, owner in zip(
                interactions.times, interactions.items, interactions.users, strict=True
            )
            if owner == user
        ]
        for user in range(len(interactions.user_ids))
    }
    learned = split.interactions.items[: split.n_training]
    latest: dict[tuple[int, int], int] = {}
    for number, (_, requests) in enumerate(parts(split)):
        for r, user in enumerate(split.users(requests).tolist()):
            cut = requests.cut[r]
            place = int(cut - start[cut])
            assert place >= min_history
            # It sees the beginning of its user's behaviors, and predicts what comes after it.
            assert seen(split, requests, r) == [item for _, item in own[user][:place]]
            positive = requests.candidates[r, 0]
            assert positive in {0} | {item for _, item in own[user][place:]}
            # Only the training part is known.
            for item in requests.candidates[r].tolist():
                assert item == 0 or item in learned
            assert requests.as_of[r] == cut
            assert requests.bundle[r] == split.n_training
            key = (user, number)
            latest[key] = max(latest.get(key, -1), own[user][place][0])
            for later in range(number):
                assert latest.get((user, later), -1) <= own[user][place][0]
    if isinstance(division, ByTime):
        ends = [split.sequences.times[requests.cut] for _, requests in parts(split)]
        assert ends[0].max() < ends[1].min() <= ends[1].max() < ends[2].min()
        assert split.interactions.times[: split.n_training].max() < ends[1].min()
    # The statistics are those of the training part, which is the beginning of each user.
    counts = np.bincount(learned, minlength=split.n_items + 1)
    np.testing.assert_allclose(split.popularity, counts / len(learned) * 1e6, rtol=1e-5)
    for user, behaviors in own.items():
        mine = learned[split.interactions.users[: split.n_training] == user].tolist()
        assert mine == [item for _, item in behaviors[: len(mine)]]


@given(histories, divisions, st.integers(0, 1000))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_training_does_not_change_with_what_comes_after_it(
    drawn: list[tuple[int, int, int]], division: Division, seed: int
) -> None:
    """Held-out behaviors on other items leave every training request as it was."""
    users, items, times = map(np.array, zip(*sorted(drawn, key=lambda row: row[2]), strict=True))
    protocol = NextItem(1, 1, exclude="basket", see_basket=False, unknown_positives="keep")
    # One item a moment: another item of the same basket would change which are samples.
    times = times * 100 + np.arange(len(times))
    interactions = numbered(users, items, times)
    try:
        split = split_requests(interactions, protocol, division)
    except TrainingError:
        reject()
    held_out = np.ones(len(interactions), bool)
    learned = split.interactions.times[: split.n_training]
    held_out[np.searchsorted(interactions.times, learned)] = False
    rng = np.random.default_rng(seed)
    changed = interactions.items.copy()
    changed[held_out] = rng.integers(1, len(interactions.item_ids), held_out.sum())
    other = split_requests(replace(interactions, items=changed), protocol, division)
    for before, after in zip(split.train, other.train, strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(split.popularity, other.popularity)
