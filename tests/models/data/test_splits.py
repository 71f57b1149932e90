from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from infra.errors import TrainingError
from models.data.divisions import ByTime, Division, LastOfUser
from models.data.protocols import AnyProtocol, NextItem, Rated
from models.data.requests import Requests
from models.data.selection import Selection
from models.data.splits import split_requests
from tests.models.data.splitting import FEW, LAST, once_each, parts, seen, with_values
from tests.models.generated import numbered


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


def test_the_seed_alone_decides() -> None:
    first, again, other = (
        split_requests(once_each(), FEW, LAST, Selection(seed=seed)) for seed in (1, 1, 2)
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


def test_training_withholds_a_share_of_the_items_from_each_request() -> None:
    split = split_requests(once_each(), FEW, LAST, Selection(withheld=0.25))
    requests = split.epoch(0)
    assert requests.withheld is not None
    withheld = requests.withheld.of(requests.candidates)
    positives, negatives = withheld[:, 0].mean(), withheld[:, 1:].mean()
    assert positives == pytest.approx(0.25, abs=0.08)
    assert negatives == pytest.approx(0.25, abs=0.08)
    assert split.validation.withheld is None
    other = split.epoch(1).withheld
    assert other is not None
    assert (other.keys != requests.withheld.keys).any()


def test_nothing_is_withheld_where_nothing_is_to_be() -> None:
    assert split_requests(once_each(), FEW, LAST, Selection(withheld=0)).epoch(0).withheld is None


def test_what_is_drawn_has_the_sampling_rate_of_its_protocol() -> None:
    few = NextItem(negatives=2, evaluation_negatives=8)
    assert split_requests(once_each(), few, LAST).sampling_rate == 0.25
    assert split_requests(with_values(once_each()), Rated(), LAST).sampling_rate == 1


def size_of(requests: Requests) -> int:
    """Bytes of the distinct arrays."""
    arrays = [array for array in requests if isinstance(array, np.ndarray)]
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
    drawn: list[tuple[int, int, int]], protocol: AnyProtocol, division: Division, min_history: int
) -> None:
    """Stated again by plain Python on the behaviors as they were given."""
    users, items, times = map(np.array, zip(*sorted(drawn, key=lambda row: row[2]), strict=True))
    interactions = with_values(numbered(users, items, times))
    try:
        split = split_requests(interactions, protocol, division, Selection(min_history=min_history))
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
