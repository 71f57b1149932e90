from __future__ import annotations

import msgspec
import numpy as np
import pytest

from infra.errors import TrainingError
from models.data.interactions import Interactions
from models.data.live import (
    DAY_S,
    MAX_NEWER,
    Live,
    evaluation_requests,
    split_live,
    training_requests,
)
from models.data.requests import Requests, Sequences
from tests.models.generated import numbered, planted_interactions

LAG = 0.15
"""How far the negatives may lag behind: the last days have fewer unknown items than the moment."""

EVERYTHING = Live(behaviors_per_request=1, burn_in=0.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def small() -> tuple[Interactions, Sequences]:
    interactions = planted_interactions(users=10, items=20, baskets=10)
    return interactions, Sequences.of(interactions)


def test_positives_are_the_next_items_of_the_basket() -> None:
    interactions, sequences = small()
    requests = training_requests(interactions, sequences, EVERYTHING, rng())
    assert sorted(requests.cut) == list(range(len(interactions)))
    for r, cut in enumerate(requests.cut):
        ahead = sequences.items[cut : min(cut + 4, sequences.basket_end[cut])]
        chosen = requests.candidates[r][(requests.labels[r] > 0) & (requests.weights[r] > 0)]
        if requests.bundle[r] == sequences.position[cut]:
            ahead = ahead[interactions.first_seen[ahead] < requests.bundle[r]]
        assert chosen.tolist() == ahead.tolist()


def shares_of_the_unknown(interactions: Interactions, requests: Requests) -> tuple[float, float]:
    """Of the positives that count, and of the negatives."""
    unknown = interactions.first_seen[requests.candidates] >= requests.bundle[:, None]
    counted, positive = requests.weights > 0, requests.labels > 0
    return unknown[counted & positive].mean(), unknown[counted & ~positive].mean()


def growing() -> tuple[Interactions, Sequences]:
    """500 users choose at random among 200 items of the last 100 days; two appear a day."""
    choose = rng()
    n = 60_000
    times = np.sort(choose.integers(0, 300 * DAY_S, n))
    newest = 200 + 2 * times // DAY_S
    items = (newest - choose.integers(0, 200, n)).astype(np.int32)
    users = choose.integers(0, 500, n).astype(np.int32)
    names = [str(number) for number in range(items.max() + 1)]
    interactions = Interactions(names[:500], names, names, users, items, times)
    return interactions, Sequences.of(interactions)


def test_unknown_items_are_negatives_as_often_as_positives() -> None:
    interactions, sequences = growing()
    config = Live(behaviors_per_request=1, bundle_age_share=1.0, bundle_age_days=60.0, burn_in=0.5)
    requests = training_requests(interactions, sequences, config, rng())
    positives, negatives = shares_of_the_unknown(interactions, requests)
    assert 0.2 < positives < 0.4
    assert negatives == pytest.approx(positives, rel=LAG)
    evaluated = evaluation_requests(interactions, sequences, 48_000, 5000, rng(), negatives=20)
    positives, negatives = shares_of_the_unknown(interactions, evaluated)
    assert 0.2 < positives < 0.5
    assert negatives == pytest.approx(positives, rel=LAG)


def test_no_unknown_item_counts_where_no_negative_can_be_unknown() -> None:
    interactions, sequences = growing()
    fresh = msgspec.structs.replace(EVERYTHING, bundle_age_share=0.0)
    requests = training_requests(interactions, sequences, fresh, rng())
    assert shares_of_the_unknown(interactions, requests) == (0, 0)


def test_known_negatives_are_as_popular_as_the_bundle_knows_them() -> None:
    interactions, sequences = growing()
    requests = evaluation_requests(interactions, sequences, 48_000, 5000, rng(), negatives=20)
    negatives = requests.candidates[:, 1:]
    negatives = negatives[interactions.first_seen[negatives] < 48_000]
    drawn = np.bincount(negatives.ravel(), minlength=len(interactions.item_ids))
    before = np.bincount(interactions.items[:48_000], minlength=len(drawn))
    np.testing.assert_allclose(drawn / drawn.sum(), before / before.sum(), atol=1e-3)


def test_the_sampling_rate_is_that_of_the_weights() -> None:
    split = split_live(planted_interactions(users=40, items=120, baskets=10), Live(), seed=0)
    requests = split.epoch(0)
    counted = requests.weights.sum(0)
    assert split.sampling_rate == pytest.approx(counted[4:].sum() / counted[:4].sum() / 99)


def test_negatives_are_earlier_items_outside_the_basket() -> None:
    interactions, sequences = small()
    requests = training_requests(interactions, sequences, EVERYTHING, rng())
    for r, cut in enumerate(requests.cut):
        negatives = requests.candidates[r][(requests.labels[r] == 0) & (requests.weights[r] > 0)]
        basket = sequences.items[sequences.basket[cut] : sequences.basket_end[cut]]
        earlier = interactions.items[: max(sequences.position[cut], 1)]
        assert not set(negatives) & set(basket)
        assert set(negatives) <= set(earlier)
        assert len(set(negatives)) == len(negatives)


def test_an_item_that_the_basket_holds_is_no_positive() -> None:
    interactions = numbered([0, 0, 0], [1, 2, 1], [10, 10, 10])
    requests = training_requests(interactions, Sequences.of(interactions), EVERYTHING, rng())
    row = requests.cut.tolist().index(2)
    assert not requests.weights[row, :4].any()


def test_staleness_stays_within_the_user_and_the_bound() -> None:
    interactions, sequences = small()
    requests = training_requests(interactions, sequences, EVERYTHING, rng())
    newer = requests.cut - requests.as_of
    assert newer.min() == 0
    assert 0 < newer.max() <= MAX_NEWER
    assert (requests.as_of >= sequences.start[requests.cut]).all()


def test_a_bundle_is_as_old_as_told_and_never_younger_than_the_request() -> None:
    interactions, sequences = small()
    fresh = msgspec.structs.replace(EVERYTHING, bundle_age_share=0.0)
    requests = training_requests(interactions, sequences, fresh, rng())
    np.testing.assert_array_equal(requests.bundle, sequences.position[requests.cut])
    old = msgspec.structs.replace(EVERYTHING, bundle_age_share=1.0, bundle_age_days=2.0)
    requests = training_requests(interactions, sequences, old, rng())
    assert (requests.bundle <= sequences.position[requests.cut]).all()
    made = interactions.times[np.minimum(requests.bundle, len(interactions) - 1)]
    age = sequences.times[requests.cut] - made
    assert age.max() <= 2 * 86_400
    assert age.mean() > 86_400 / 2


def test_no_request_is_of_the_burn_in_or_of_what_comes_later() -> None:
    interactions, sequences = small()
    config = msgspec.structs.replace(EVERYTHING, burn_in=0.25)
    requests = training_requests(interactions, sequences, config, rng(), until=200)
    assert sorted(sequences.position[requests.cut]) == list(range(50, 200))


def test_what_happens_later_changes_no_request() -> None:
    """Later items are exchanged; users and the times' order stay, so requests are comparable."""
    before = planted_interactions(users=10, items=20, baskets=10)
    items, times = before.items.copy(), before.times.copy()
    items[240:] = rng().permutation(items[240:]) % 20 + 1
    items[240::3] = 21  # and there is a new item
    times[240:] += 1_000_000
    names = [*before.item_ids, "new"]
    after = Interactions(before.user_ids, names, names, before.users, items, times)
    made = []
    for interactions in (before, after):
        sequences = Sequences.of(interactions)
        requests = training_requests(interactions, sequences, EVERYTHING, rng())
        made.append(requests.part(np.flatnonzero(sequences.position[requests.cut] < 240)))
    assert len(made[0].cut) == 240
    for mine, other in zip(*made, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_an_evaluation_request_is_one_item_among_distinct_others() -> None:
    interactions, sequences = small()
    requests = evaluation_requests(interactions, sequences, 300, 50, rng(), negatives=9)
    assert len(requests.cut)
    assert (sequences.position[requests.cut] >= 300).all()
    assert (requests.bundle == 300).all()
    for cut, candidates in zip(requests.cut, requests.candidates, strict=True):
        assert candidates[0] == sequences.items[cut]
        assert len(set(candidates)) == 10
        assert not set(candidates) & set(sequences.items[sequences.basket[cut] : cut])


def test_training_ends_before_validation_begins() -> None:
    interactions = planted_interactions(users=40, items=120, baskets=10)
    split = split_live(interactions, Live(validation=0.2), seed=0)
    positions = split.sequences.position
    assert split.n_training == 1280
    assert positions[split.epoch(0).cut].max() < 1280
    assert positions[split.validation.cut].min() >= 1280
    assert split.whole().n_training == len(interactions)
    assert positions[split.whole().epoch(0).cut].max() >= 1280


def test_an_epoch_is_the_same_again_and_no_other_is() -> None:
    split = split_live(planted_interactions(users=40, items=120, baskets=10), Live(), seed=0)
    one, again, other = split.epoch(1), split.epoch(1), split.epoch(2)
    np.testing.assert_array_equal(one.candidates, again.candidates)
    assert one.cut.tolist() != other.cut.tolist()


def test_a_request_is_of_its_user_and_sees_their_behaviors() -> None:
    split = split_live(planted_interactions(users=40, items=120, baskets=10), Live(), seed=0)
    requests = split.epoch(0)
    sequences = split.sequences
    first = sequences.position[sequences.start[requests.cut]]
    np.testing.assert_array_equal(split.users(requests), split.interactions.users[first])
    np.testing.assert_array_equal(
        split.history(requests), requests.cut - sequences.start[requests.cut]
    )


def test_too_little_to_validate_on_is_said() -> None:
    with pytest.raises(
        TrainingError, match=r"of 5 behaviors give no request to validate"
    ) as caught:
        split_live(planted_interactions().head(5), Live(), seed=0)
    assert "\n" not in str(caught.value)
