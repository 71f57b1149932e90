"""The demo's ranking requests: the item a user is about to buy, among 99 others.

Everything that decides them is fixed before the stream starts, from the purchases alone, so that
the live service, the offline evaluation and the rules answer exactly the same requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from infra.arrays import F64, I32, I64
from lifelong.shipped import Purchases
from models.data.live import RECENT_S

CANDIDATES: Final = 100
"""B: the target and 99 negatives."""


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """One request, right before a purchase is sent."""

    row: int
    """The purchase that is about to come."""
    candidates: I32
    """i32[B], item codes; the target's place is random."""
    target: int
    """Where among the candidates the item stands that is bought next."""
    popularity: I64
    """i64[B]: purchases of each candidate by anybody, before this row."""
    bought: I64
    """i64[B]: purchases of each candidate by this user, before this row."""


def plan_requests(
    purchases: Purchases, first: int, last: int, number: int, seed: int = 0
) -> list[LiveRequest]:
    """Up to ``number`` requests within rows [first, last), one a user, in the rows' order.

    The purchase is drawn at random among those of a random user; an item that is in the user's
    basket already is no target, and none of the basket is a negative. Negatives are distinct and
    drawn as in training (`models.data.live`): what was bought before the row ``first`` by its
    popularity up to there, newer items as often as they are among the purchases of the last days.
    """
    random = np.random.default_rng(seed)
    rows = _sample_rows(purchases, first, last, number, random)
    popularity = np.bincount(purchases.item[:first], minlength=len(purchases.items))
    known = popularity.copy()
    by_user = _rows_by_user(purchases, rows)
    requests = []
    counted = first
    for row in rows:
        np.add.at(popularity, purchases.item[counted:row], 1)
        counted = row
        own = by_user[int(purchases.user[row])]
        own = own[own < last]
        earlier = own[own < row]
        basket = own[purchases.time_ms[own] == purchases.time_ms[row]]
        target = int(purchases.item[row])
        chances = _chances(purchases, known, first, int(row))
        negatives = _draw(chances, {target, *purchases.item[basket].tolist()}, random)
        place = int(random.integers(CANDIDATES))
        candidates = np.insert(negatives, place, target).astype(np.int32)
        bought = np.bincount(purchases.item[earlier], minlength=len(purchases.items))
        requests.append(
            LiveRequest(
                row=int(row),
                candidates=candidates,
                target=place,
                popularity=popularity[candidates],
                bought=bought[candidates],
            )
        )
    return requests


def _sample_rows(
    purchases: Purchases, first: int, last: int, number: int, random: np.random.Generator
) -> I64:
    """One eligible row for each of ``number`` random users, ascending."""
    rows = np.arange(first, last)
    basket_items = np.stack(
        [purchases.user[rows], purchases.item[rows], purchases.time_ms[rows] // 60_000], axis=1
    )
    _, eligible = np.unique(basket_items, axis=0, return_index=True)
    shuffled = random.permutation(rows[eligible])
    _, one_each = np.unique(purchases.user[shuffled], return_index=True)
    chosen = random.permutation(shuffled[one_each])[:number]
    return np.sort(chosen)


def _rows_by_user(purchases: Purchases, rows: I64) -> dict[int, I64]:
    """All rows of each user that ``rows`` belong to, ascending."""
    order = np.argsort(purchases.user, kind="stable")
    starts = np.searchsorted(purchases.user[order], np.arange(len(purchases.users) + 1))
    users = {int(user) for user in purchases.user[rows]}
    return {user: order[starts[user] : starts[user + 1]] for user in users}


def _chances(purchases: Purchases, known: I64, first: int, row: int) -> F64:
    """f64[n]: how often each item is a negative right before a row.

    Args:
        known: i64[n], purchases of each item before the row ``first``.
    """
    recent = int(np.searchsorted(purchases.time_ms, purchases.time_ms[row] - 1000 * RECENT_S))
    window = purchases.item[max(first, recent) : row]
    newer = np.where(known > 0, 0, np.bincount(window, minlength=len(known))) / max(len(window), 1)
    chances: F64 = newer + (1 - newer.sum()) * known / known.sum()
    return chances


def _draw(chances: F64, taken: set[int], random: np.random.Generator) -> I64:
    """99 distinct items by their chances, none of ``taken``."""
    weights = chances.copy()
    weights[list(taken)] = 0
    return random.choice(len(weights), CANDIDATES - 1, replace=False, p=weights / weights.sum())
