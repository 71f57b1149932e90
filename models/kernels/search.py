"""TWIN's search and attention for many candidates, in memory that does not grow with them.

Every candidate ranks a user's behaviors once a head, takes the heads' rankings in turns until k
different behaviors are found (CP-GSU; TWIN, section 4.3), and attends to those (ESU, Eq. 7).
Behaviors on one item have one score, so an item is scored once, and counts as often as behaviors on
it were found: always its newest ones.

Nothing is sorted but a head's few best. Items lie in lanes; of the lanes' greatest scores, a vector
wide and cheap to count in, a threshold is taken that enough of them reach, and only lanes that
reach it are looked through. How many ranks a candidate takes is told by the one before it; where
that was too few, all k are ranked.

Scores are exact sums (`models.modules.rounding`), so that it is never rounding that decides who is
k-th. Training needs gradients and says the same in torch, in `models.networks.twin`; the tests hold
the one against the other.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from infra.arrays import F32, I32
from models.kernels.compiling import fast_kernel, kernel

LANES: Final = 256
"""Lanes in which items lie: some times as many as ranks that are looked at, which are k at most;
more make them longer to count in, and fewer longer to look through."""

NOWHERE: Final = np.float32(-1e30)
"""Score of what fills the last lanes: less than any other."""

FIRST_RANKS: Final = 40
"""Ranks of each head that the first candidate looks at."""

HASH_FACTOR: Final = np.uint32(0x9E3779B1)
"""2^32 / golden ratio (Fibonacci hashing): neighboring rows land apart."""


class Items(NamedTuple):
    """L behaviors by distinct item, D of them, the one with the newest behavior first."""

    rows: I32
    """i32[D]: rows in the item tables."""
    counts: I32
    """i32[D]: behaviors on each."""
    bounds: I32
    """i32[D + 1]: where each item's ages begin."""
    ages: I32
    """i32[L]: how many behaviors are newer than each; an item's ascending."""


def items_of(rows: I32) -> Items:
    """Behaviors on rows i32[L], oldest first, by item.

    >>> import numpy as np
    >>> found = items_of(np.array([7, 5, 7], np.int32))
    >>> found.rows.tolist(), found.counts.tolist(), found.ages.tolist()
    ([7, 5], [2, 1], [0, 2, 1])
    """
    return Items(*_items_kernel(rows))


@kernel
def _items_kernel(rows: I32) -> tuple[I32, I32, I32, I32]:
    length = len(rows)
    size = 16
    while size < 2 * length:
        size *= 2
    table = np.full(size, -1, np.int32)
    mask = np.uint32(size - 1)
    items, counts = np.empty(length, np.int32), np.zeros(length, np.int32)
    item_of = np.empty(length, np.int32)
    found = 0
    for age in range(length):
        row = rows[length - 1 - age]
        slot = (np.uint32(row) * HASH_FACTOR >> np.uint32(7)) & mask
        while table[slot] >= 0 and items[table[slot]] != row:
            slot = (slot + np.uint32(1)) & mask
        if table[slot] < 0:
            table[slot] = found
            items[found] = row
            found += 1
        item_of[age] = table[slot]
        counts[table[slot]] += 1
    bounds = np.zeros(found + 1, np.int32)
    for i in range(found):
        bounds[i + 1] = bounds[i] + counts[i]
    ages, end = np.empty(length, np.int32), bounds[:-1].copy()
    for age in range(length):
        i = item_of[age]
        ages[end[i]] = age
        end[i] += 1
    return items[:found].copy(), counts[:found].copy(), bounds, ages


def attend_to_found(queries: F32, keys: F32, values: F32, items: Items, k: int, heads: int) -> F32:
    """What each candidate's attention makes of the k behaviors that it finds.

    Args:
        queries: f32[B, heads * w], of the candidates, divided by sqrt(w).
        keys: f32[D, heads * w], of the items.
        values: f32[D, heads * w], likewise.
        items: the user's behaviors.
        k: behaviors that are found, or all where there are no more.

    Returns:
        f32[B, heads * w], the heads side by side; without behaviors zeros.
    """
    n = len(items.rows)
    if not n or not len(queries):
        return np.zeros_like(queries)
    lanes = min(LANES, n)
    width = queries.shape[1] // heads
    laid = np.zeros((heads, width, -(-n // lanes) * lanes), np.float32)
    laid[..., :n] = keys.reshape(n, heads, width).transpose(1, 2, 0)
    found: F32 = _search_kernel(
        np.ascontiguousarray(queries), laid, np.ascontiguousarray(values), *items[1:], k, lanes
    )
    return found


@fast_kernel
def _search_kernel(
    queries: F32,
    keys: F32,
    values: F32,
    counts: I32,
    bounds: I32,
    ages: I32,
    k: int,
    lanes: int,
) -> F32:
    """`attend_to_found`, of keys f32[heads, w, n], n a multiple of ``lanes``."""
    heads, width, padded = keys.shape
    n, all_found = len(counts), len(ages) <= k
    alone = len(ages) == n
    out = np.empty(queries.shape, np.float32)
    scores = np.empty((heads, padded), np.float32)
    greatest = np.empty(lanes, np.float32)
    places = np.empty(padded + 1, np.int32)
    best = np.empty(padded + 1, np.float32)
    order = np.empty(padded + 1, np.int32)
    ranked = np.empty((heads, k), np.int32)
    ordinals = np.empty((heads, k), np.int32)
    lengths = np.empty(heads, np.int32)
    met = np.zeros(n, np.int32)
    chosen = np.empty(min(k, n), np.int32)
    bits = np.empty(len(chosen), np.int32)
    weights = np.empty(len(chosen), np.float32)
    ranks = min(FIRST_RANKS, k)
    for b in range(len(queries)):
        for h in range(heads):
            _score(queries[b, h * width : (h + 1) * width], keys[h], scores[h])
            scores[h, n:] = NOWHERE
        size = 0
        if all_found:
            size = n
            for i in range(n):
                chosen[i], met[i] = i, counts[i]
        else:
            looked = ranks
            while True:
                for h in range(heads):
                    _greatest_of_lanes(scores[h], greatest)
                    least = _threshold(greatest, looked)
                    m = _collect(scores[h], greatest, least, places, best)
                    whole = True
                    if m > 3 * looked:
                        m, whole = _narrow(places, best, m, looked)
                    _sort(best, m, order)
                    lengths[h] = _expand(
                        places, best, order, m, k if whole else looked, alone,
                        counts, bounds, ages, ranked[h], ordinals[h],
                    )  # fmt: skip
                size, turns = _take_turns(ranked, ordinals, lengths, k, met, chosen)
                if turns > 0:
                    break
                for i in range(size):
                    met[chosen[i]] = 0
                looked = k
            ranks = min(turns + turns // 8 + 2, k)
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            _attend(scores[h], values[:, part], chosen[:size], met, weights, bits, out[b, part])
        for i in range(size):
            met[chosen[i]] = 0
    return out


@fast_kernel
def _score(query: F32, keys: F32, scores: F32) -> None:
    """Products of a query f32[w] with keys f32[w, n]; f32[n]."""
    n, j = keys.shape[1], 0
    scores[:] = 0
    while j + 8 <= len(query):
        a, b, c, d = query[j], query[j + 1], query[j + 2], query[j + 3]
        e, f, g, h = query[j + 4], query[j + 5], query[j + 6], query[j + 7]
        k0, k1, k2, k3 = keys[j], keys[j + 1], keys[j + 2], keys[j + 3]
        k4, k5, k6, k7 = keys[j + 4], keys[j + 5], keys[j + 6], keys[j + 7]
        for i in range(n):
            first = a * k0[i] + b * k1[i] + c * k2[i] + d * k3[i]
            scores[i] += first + e * k4[i] + f * k5[i] + g * k6[i] + h * k7[i]
        j += 8
    while j < len(query):
        a, k0 = query[j], keys[j]
        for i in range(n):
            scores[i] += a * k0[i]
        j += 1


@fast_kernel
def _greatest_of_lanes(scores: F32, greatest: F32) -> None:
    """The greatest score of each lane; scores lie lane by lane, over and over."""
    lanes = len(greatest)
    greatest[:] = scores[:lanes]
    for begin in range(lanes, len(scores), lanes):
        row = scores[begin : begin + lanes]
        for lane in range(lanes):
            greatest[lane] = max(greatest[lane], row[lane])


@fast_kernel
def _threshold(values: F32, least: int) -> np.float32:
    """What at least ``least`` of the values reach, or all where there are no more; hardly more of
    them do, if not many are alike.
    """
    low, high = values[0], values[0]
    for i in range(len(values)):
        low, high = min(low, values[i]), max(high, values[i])
    if len(values) <= least:
        return np.float32(low)
    while True:
        middle = low + (high - low) * np.float32(0.5)
        if middle <= low:
            return np.float32(low)
        count = np.int32(0)
        for i in range(len(values)):
            count += np.int32(values[i] >= middle)
        if count >= least:
            low = middle
            if count <= least + least // 4:
                return np.float32(low)
        elif middle >= high:
            return np.float32(low)
        else:
            high = middle


@fast_kernel
def _collect(scores: F32, greatest: F32, least: np.float32, places: I32, best: F32) -> int:
    """Places with their scores, in their order, of all that are at least ``least``; how many."""
    lanes, hot = len(greatest), 0
    looked = np.empty(lanes + 1, np.int32)
    for lane in range(lanes):
        looked[hot] = lane
        hot += int(greatest[lane] >= least)
    m = 0
    for begin in range(0, len(scores), lanes):
        for i in range(hot):
            place = begin + looked[i]
            places[m], best[m] = place, scores[place]
            m += int(best[m] >= least)
    return m


@fast_kernel
def _narrow(places: I32, best: F32, m: int, ranks: int) -> tuple[int, bool]:
    """Of m collected only those that can have one of the first ``ranks``: how many are left, and
    whether all that are as good as the last of them are among them. Of equal ones the first have
    the newest behaviors.
    """
    least = _threshold(best[:m], ranks)
    left, alike, whole = 0, 0, True
    for i in range(m):
        if best[i] == least:
            alike += 1
            if alike > ranks:
                whole = False
                continue
        if best[i] >= least:
            places[left], best[left] = places[i], best[i]
            left += 1
    return left, whole


@fast_kernel
def _sort(best: F32, m: int, order: I32) -> None:
    """The order of m values, greatest first, equal ones as they stand. Each counts who is before
    it: for some dozens that is faster than moving them.
    """
    for i in range(m):
        mine, before = best[i], np.int32(0)
        for j in range(i):
            before += np.int32(best[j] >= mine)
        for j in range(i + 1, m):
            before += np.int32(best[j] > mine)
        order[before] = i


@fast_kernel
def _expand(  # noqa: PLR0917  # kernels take nothing by name
    places: I32,
    best: F32,
    order: I32,
    m: int,
    most: int,
    alone: bool,
    counts: I32,
    bounds: I32,
    ages: I32,
    ranked: I32,
    ordinals: I32,
) -> int:
    """A head's ranking of behaviors, from that of items: which item has each rank, and which of its
    behaviors it is, from 1. Behaviors of equal score rank newest first.

    Args:
        alone: no item has more than one behavior.
    """
    filled, p = 0, 0
    while p < m and filled < most:
        end = p + 1
        while end < m and best[order[end]] == best[order[p]]:
            end += 1
        if alone:
            while p < end and filled < most:
                ranked[filled], ordinals[filled] = places[order[p]], 1
                filled, p = filled + 1, p + 1
            continue
        if end == p + 1:
            item = places[order[p]]
            for ordinal in range(1, min(counts[item], most - filled) + 1):
                ranked[filled], ordinals[filled] = item, ordinal
                filled += 1
        else:
            taken = np.zeros(end - p, np.int32)
            while filled < most:
                newest, age = -1, len(ages)
                for j in range(end - p):
                    item = places[order[p + j]]
                    if taken[j] < counts[item] and ages[bounds[item] + taken[j]] < age:
                        newest, age = j, ages[bounds[item] + taken[j]]
                if newest < 0:
                    break
                taken[newest] += 1
                ranked[filled], ordinals[filled] = places[order[p + newest]], taken[newest]
                filled += 1
        p = end
    return filled


@fast_kernel
def _take_turns(
    ranked: I32, ordinals: I32, lengths: I32, k: int, met: I32, chosen: I32
) -> tuple[int, int]:
    """Go through the heads' rankings in turns until k behaviors are found.

    Args:
        met: i32[D], zeros: how many of each item's behaviors are found; written to.
        chosen: the items that have any, in the order in which they were met; written to.

    Returns:
        How many items, and how many ranks were gone through; 0: the rankings ended before.
    """
    size, found, rank = 0, 0, 0
    while True:
        for h in range(len(ranked)):
            if rank >= lengths[h]:
                return size, 0
            item, ordinal = ranked[h, rank], ordinals[h, rank]
            if met[item] < ordinal:
                if ordinal == 1:
                    chosen[size] = item
                    size += 1
                met[item] = ordinal
                found += 1
                if found == k:
                    return size, rank + 1
        rank += 1


@fast_kernel
def _attend(
    scores: F32, values: F32, chosen: I32, met: I32, weights: F32, bits: I32, out: F32
) -> None:
    """One head's attention to the chosen items, each as often as it was met (Eq. 7); f32[w]."""
    top = NOWHERE
    for i in range(len(chosen)):
        weights[i] = scores[chosen[i]]
        top = max(top, weights[i])
    _exponentials(weights[: len(chosen)], top, bits)
    total = np.float32(0)
    for i in range(len(chosen)):
        weights[i] *= np.float32(met[chosen[i]])
        total += weights[i]
    out[:] = 0
    for i in range(len(chosen)):
        value, weight = values[chosen[i]], weights[i] / total
        for j in range(len(out)):
            out[j] += weight * value[j]


@fast_kernel
def _exponentials(x: F32, top: np.float32, bits: I32) -> None:
    """e^(x - top) in the place of x <= top, to float32's precision: a polynomial, which compiled
    code computes for many at a time, times a power of two made of its bits.
    """
    powers = bits.view(np.float32)
    for i in range(len(x)):
        halvings = max((x[i] - top) * np.float32(1.44269504), np.float32(-126))
        whole = np.floor(halvings + np.float32(0.5))
        r = (halvings - whole) * np.float32(0.693147181)
        tail = np.float32(1 / 24) + r * (np.float32(1 / 120) + r * np.float32(1 / 720))
        tail = np.float32(0.5) + r * (np.float32(1 / 6) + r * tail)
        x[i] = np.float32(1) + r * (np.float32(1) + r * tail)
        bits[i] = (np.int32(whole) + np.int32(127)) << np.int32(23)
    for i in range(len(x)):
        x[i] *= powers[i]
