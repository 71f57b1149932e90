from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lifelong.demo.plan import CANDIDATES, LiveRequest, _chances, plan_requests
from lifelong.shipped import Purchases

FIRST, LAST = 4000, 5500
MINUTE_MS = 60_000


@pytest.fixture(scope="module")
def purchases() -> Purchases:
    """6,000 purchases of 40 users and 300 items, in baskets of five, some items twice in one."""
    random = np.random.default_rng(7)
    baskets = 1200
    return Purchases(
        users=[f"user-{i}" for i in range(40)],
        items=[f"item-{i}" for i in range(300)],
        user=np.repeat(random.integers(0, 40, baskets), 5).astype(np.int32),
        item=(300 * random.random(5 * baskets) ** 2).astype(np.int32),
        time_ms=np.repeat(np.arange(baskets) * MINUTE_MS, 5),
        titles={},
    )


@pytest.fixture(scope="module")
def requests(purchases: Purchases) -> list[LiveRequest]:
    return plan_requests(purchases, FIRST, LAST, number=30)


def test_as_many_as_wanted_are_planned_one_a_user(
    purchases: Purchases, requests: list[LiveRequest]
) -> None:
    assert len(requests) == 30
    assert len({int(purchases.user[request.row]) for request in requests}) == 30


def test_no_more_requests_are_planned_than_there_are_users(purchases: Purchases) -> None:
    users = len(np.unique(purchases.user[FIRST:LAST]))

    assert len(plan_requests(purchases, FIRST, LAST, number=1000)) == users


def test_rows_are_live_and_ascending(requests: list[LiveRequest]) -> None:
    rows = [request.row for request in requests]

    assert rows == sorted(rows)
    assert rows[0] >= FIRST
    assert rows[-1] < LAST


def test_the_target_is_the_item_bought_in_that_row(
    purchases: Purchases, requests: list[LiveRequest]
) -> None:
    for request in requests:
        assert request.candidates[request.target] == purchases.item[request.row]


def test_the_targets_place_tells_nothing(requests: list[LiveRequest]) -> None:
    assert len({request.target for request in requests}) > 15


def test_candidates_are_distinct(requests: list[LiveRequest]) -> None:
    for request in requests:
        assert len(set(request.candidates.tolist())) == CANDIDATES == len(request.candidates)


def test_no_item_of_the_basket_is_a_candidate(
    purchases: Purchases, requests: list[LiveRequest]
) -> None:
    baskets = [
        set(
            purchases.item[
                (purchases.user == purchases.user[request.row])
                & (purchases.time_ms == purchases.time_ms[request.row])
            ].tolist()
        )
        for request in requests
    ]

    assert any(len(basket) > 1 for basket in baskets)
    for basket, request in zip(baskets, requests, strict=True):
        target = int(purchases.item[request.row])
        assert (basket - {target}).isdisjoint(request.candidates.tolist())


def test_no_item_that_the_basket_holds_is_a_target(
    purchases: Purchases, requests: list[LiveRequest]
) -> None:
    for request in requests:
        before = (
            (purchases.user == purchases.user[request.row])
            & (purchases.time_ms == purchases.time_ms[request.row])
            & (np.arange(len(purchases)) < request.row)
        )
        assert purchases.item[request.row] not in purchases.item[before]


def test_new_items_are_negatives_as_often_as_they_are_bought(purchases: Purchases) -> None:
    """A third of the live purchases is of ten items that nobody bought before."""
    random = np.random.default_rng(0)
    item = purchases.item.copy()
    new = (np.arange(len(item)) >= FIRST) & (random.random(len(item)) < 1 / 3)
    item[new] = 300 + random.integers(0, 10, new.sum())
    ids = [f"item-{i}" for i in range(310)]
    users = [f"user-{i}" for i in range(300)]
    user = np.repeat(random.integers(0, 300, len(item) // 5), 5).astype(np.int32)
    changed = replace(purchases, items=ids, users=users, item=item.astype(np.int32), user=user)
    chances = _chances(changed, np.bincount(item[:FIRST], minlength=310), FIRST, LAST)
    assert chances.sum() == pytest.approx(1)
    assert chances[300:].sum() == pytest.approx(1 / 3, abs=0.04)
    known = np.bincount(item[:FIRST], minlength=310)[:300]
    np.testing.assert_allclose(chances[:300] / chances[:300].sum(), known / known.sum())


def test_popularity_counts_everybodys_purchases_before_the_row(
    purchases: Purchases, requests: list[LiveRequest]
) -> None:
    for request in requests:
        before = np.bincount(purchases.item[: request.row], minlength=len(purchases.items))
        np.testing.assert_array_equal(request.popularity, before[request.candidates])


def test_bought_counts_the_users_own_purchases_before_the_row(
    purchases: Purchases, requests: list[LiveRequest]
) -> None:
    for request in requests:
        own = purchases.user[: request.row] == purchases.user[request.row]
        items = purchases.item[: request.row][own]
        before = np.bincount(items, minlength=len(purchases.items))
        np.testing.assert_array_equal(request.bought, before[request.candidates])


def test_a_negative_was_bought_by_somebody_before(requests: list[LiveRequest]) -> None:
    for request in requests:
        assert (np.delete(request.popularity, request.target) > 0).all()


def test_the_same_seed_plans_the_same_requests(
    purchases: Purchases, requests: list[LiveRequest]
) -> None:
    assert _plain(plan_requests(purchases, FIRST, LAST, number=30)) == _plain(requests)


def test_another_seed_plans_others(purchases: Purchases, requests: list[LiveRequest]) -> None:
    other = plan_requests(purchases, FIRST, LAST, number=30, seed=1)

    assert _plain(other) != _plain(requests)


def test_purchases_after_the_stream_change_nothing(
    purchases: Purchases, requests: list[LiveRequest]
) -> None:
    item, user = purchases.item.copy(), purchases.user.copy()
    item[LAST:] = 0
    user[LAST:] = 0

    changed = plan_requests(replace(purchases, item=item, user=user), FIRST, LAST, number=30)

    assert _plain(changed) == _plain(requests)


def _plain(requests: list[LiveRequest]) -> list[tuple[object, ...]]:
    return [
        (
            request.row,
            request.target,
            request.candidates.tolist(),
            request.popularity.tolist(),
            request.bought.tolist(),
        )
        for request in requests
    ]
