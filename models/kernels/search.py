"""TWIN's search and attention for many candidates, in memory that does not grow with them.

Every candidate ranks a user's behaviors once a head, takes the heads' rankings in turns until k
different behaviors are found (CP-GSU; TWIN, section 4.3), and attends to those (ESU, Eq. 7).
Behaviors on one item have one score, so an item is scored once, and counts as often as behaviors on
it were found: always its newest ones. Where a cross feature (Eq. 5) tells behaviors on one item
apart, an item of this file is an item with one code of it: few more, as long as users do few things
with an item.

Nothing is sorted but a head's few best. Items lie in rows of lanes; of the lanes' greatest scores,
a few hundred and cheap to count in, a threshold is taken that enough of them reach, and only lanes
that reach it are looked through. How many ranks a candidate takes is told by the one before it;
where that was too few, all k are ranked.

Scores are exact sums (`models.modules.rounding`), and a bias is added to the finished sum in one
step, which IEEE 754 rounds alike everywhere; so it is never a runtime's order of additions that
decides who is k-th. An exported graph, and training on other devices, say the same in torch
(`models.networks.twin`); the tests hold the one against the other.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from infra.arrays import F32, I32, U16, Bools
from infra.compiling import fast_kernel, kernel, on_threads

LANES: Final = 256
"""Lanes in which items lie: some times as many as ranks that are looked at, which are k at most;
more make them longer to count in, and fewer longer to look through."""

TOGETHER: Final = 16
"""Candidates that are scored together, at most: a row's keys are read once for all of them."""

SCORES: Final = 1 << 17
"""Scores of candidates together, about: they stay in the processor's second cache."""

VECTORS: Final = 32
"""Numbers that compiled code compares in one turn of a loop: what is left over it takes singly."""

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
    codes: U16
    """u16[D]: rows of their cross features; zeros where there are none."""


def items_of(rows: I32, codes: U16 | None = None) -> Items:
    """Behaviors on rows i32[L], oldest first, by item; or by item and code u16[L].

    >>> import numpy as np
    >>> found = items_of(np.array([7, 5, 7], np.int32))
    >>> found.rows.tolist(), found.counts.tolist(), found.ages.tolist()
    ([7, 5], [2, 1], [0, 2, 1])
    >>> found = items_of(np.array([7, 5, 7], np.int32), np.array([0, 0, 1], np.uint8))
    >>> found.rows.tolist(), found.codes.tolist(), found.counts.tolist()
    ([7, 5, 7], [1, 0, 0], [1, 1, 1])
    """
    return Items(*_items_kernel(rows, np.zeros(len(rows), np.uint16) if codes is None else codes))


@kernel
def _items_kernel(rows: I32, codes: U16) -> tuple[I32, I32, I32, I32, U16]:
    length = len(rows)
    size = 16
    while size < 2 * length:
        size *= 2
    table = np.full(size, -1, np.int32)
    mask = np.uint32(size - 1)
    items, counts = np.empty(length, np.int32), np.zeros(length, np.int32)
    codes_of, item_of = np.empty(length, np.uint16), np.empty(length, np.int32)
    found = 0
    for age in range(length):
        row, code = rows[length - 1 - age], codes[length - 1 - age]
        mixed = np.uint32(row) + np.uint32(code) * HASH_FACTOR
        slot = (mixed * HASH_FACTOR >> np.uint32(7)) & mask
        while table[slot] >= 0 and (items[table[slot]] != row or codes_of[table[slot]] != code):
            slot = (slot + np.uint32(1)) & mask
        if table[slot] < 0:
            table[slot] = found
            items[found], codes_of[found] = row, code
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
    return items[:found].copy(), counts[:found].copy(), bounds, ages, codes_of[:found].copy()


def attend_to_found(
    queries: F32,
    keys: F32,
    values: F32,
    items: Items,
    k: int,
    heads: int,
    biases: F32 | None = None,
) -> F32:
    """What each candidate's attention makes of the k behaviors that it finds.

    Args:
        queries: f32[B, heads * w], of the candidates, divided by sqrt(w).
        keys: f32[D, heads * w], of the items.
        values: f32[D, heads * w], likewise.
        items: the user's behaviors.
        k: behaviors that are found, or all where there are no more.
        biases: f32[D, heads], what the items' cross features add to their scores; None: nothing.

    Returns:
        f32[B, heads * w], the heads side by side; without behaviors zeros.
    """
    if not len(items.rows) or not len(queries):
        return np.zeros_like(queries)
    laid, laid_biases, together = _laid(keys, heads, biases)
    found: F32 = _search_kernel(
        np.ascontiguousarray(queries),
        laid,
        laid_biases,
        np.ascontiguousarray(values),
        items.counts,
        items.bounds,
        items.ages,
        k,
        together,
    )
    return found


def behaviors_found(
    queries: F32, keys: F32, items: Items, k: int, heads: int, biases: F32 | None = None
) -> Bools:
    """The behaviors that `attend_to_found` attends to, of the same arguments: bool[B, L], oldest
    first.
    """
    found = np.zeros((len(queries), len(items.ages)), np.bool_)
    if found.size:
        laid, laid_biases, together = _laid(keys, heads, biases)
        _behaviors_kernel(
            np.ascontiguousarray(queries),
            laid,
            laid_biases,
            items.counts,
            items.bounds,
            items.ages,
            k,
            together,
            found,
        )
    return found


def _laid(keys: F32, heads: int, biases: F32 | None) -> tuple[F32, F32, int]:
    """Keys f32[D, heads * w] as f32[heads, rows, w * LANES], the items row by row, biases
    f32[D, heads] likewise (no rows, where there are none), and how many candidates are scored
    together.
    """
    n, width = len(keys), keys.shape[1] // heads
    rows = -(-n // LANES)
    padded = np.zeros((rows * LANES, heads * width), np.float32)
    padded[:n] = keys
    laid = padded.reshape(rows, LANES, heads, width).transpose(2, 0, 3, 1)
    laid_biases = np.zeros((heads, 0 if biases is None else rows, LANES), np.float32)
    if biases is not None:
        laid_biases.reshape(heads, -1)[:, :n] = biases.T
    together = max(1, min(TOGETHER, SCORES // (heads * len(padded))))
    return laid.reshape(heads, rows, -1), laid_biases, together


def search_scores(scores: F32, mask: Bools, k: int, threads: int = 1) -> Bools:
    """The k behaviors that each candidate finds, by scores that are known: for training.

    Args:
        scores: f32[R, heads, B, L], finite; newest last.
        mask: bool[R, L], False for what is no behavior.

    Returns:
        bool[R, B, L].
    """
    requests, _, candidates, length = scores.shape
    found = np.zeros((requests, candidates, length), np.bool_)
    if length:
        on_threads(
            lambda begin, end: _found_kernel(
                scores[begin:end], mask[begin:end], k, found[begin:end]
            ),
            requests,
            threads,
        )
    return found


class _Scratch(NamedTuple):
    """Arrays that are used again for each candidate."""

    places: I32
    best: F32
    order: I32
    ranked: I32
    """i32[heads, k]: the item of each rank."""
    ordinals: I32
    """i32[heads, k]: which of its behaviors, from 1."""
    lengths: I32
    """i32[heads]: how many ranks are known."""
    met: I32
    """i32[D]: behaviors found of each item; zeros in between."""
    chosen: I32
    """i32[<=k]: items with any."""


@fast_kernel
def _scratch(heads: int, padded: int, n: int, k: int) -> _Scratch:
    return _Scratch(
        np.empty(padded + 1, np.int32),
        np.empty(padded + VECTORS, np.float32),
        np.empty(padded + 1, np.int32),
        np.empty((heads, k), np.int32),
        np.empty((heads, k), np.int32),
        np.empty(heads, np.int32),
        np.zeros(n, np.int32),
        np.empty(min(k, n), np.int32),
    )


@fast_kernel
def _search_kernel(  # noqa: PLR0917  # kernels take nothing by name
    queries: F32,
    keys: F32,
    biases: F32,
    values: F32,
    counts: I32,
    bounds: I32,
    ages: I32,
    k: int,
    together: int,
) -> F32:
    """`attend_to_found`, of keys f32[heads, rows, w * LANES], the items row by row, and biases
    f32[heads, rows, LANES] likewise; no rows of them: there are none.
    """
    heads, padded = len(keys), keys.shape[1] * LANES
    out = np.empty(queries.shape, np.float32)
    block_scores = np.empty((together, heads, padded), np.float32)
    block_greatest = np.empty((together, heads, LANES), np.float32)
    scratch = _scratch(heads, padded, len(counts), k)
    bits = np.empty(len(scratch.chosen), np.int32)
    weights = np.empty((heads, len(bits)), np.float32)
    ranks = FIRST_RANKS
    for b in range(len(queries)):
        if b % together == 0:
            part = queries[b : b + together]
            _score(part, keys, biases, len(counts), block_scores, block_greatest)
        scores, greatest = block_scores[b % together], block_greatest[b % together]
        size, ranks = _find(scores, greatest, counts, bounds, ages, k, ranks, scratch)
        chosen = scratch.chosen[:size]
        for h in range(heads):
            _weigh(scores[h], chosen, scratch.met, weights[h], bits)
        _pool(weights, values, chosen, out[b])
        for i in range(size):
            scratch.met[chosen[i]] = 0
    return out


@fast_kernel
def _behaviors_kernel(  # noqa: PLR0917  # kernels take nothing by name
    queries: F32,
    keys: F32,
    biases: F32,
    counts: I32,
    bounds: I32,
    ages: I32,
    k: int,
    together: int,
    found: Bools,
) -> None:
    """`behaviors_found`: the search of `_search_kernel`, without its attention."""
    heads, padded = len(keys), keys.shape[1] * LANES
    scores = np.empty((together, heads, padded), np.float32)
    greatest = np.empty((together, heads, LANES), np.float32)
    scratch = _scratch(heads, padded, len(counts), k)
    newest, ranks = len(ages) - 1, FIRST_RANKS
    for b in range(len(queries)):
        at = b % together
        if at == 0:
            _score(queries[b : b + together], keys, biases, len(counts), scores, greatest)
        size, ranks = _find(scores[at], greatest[at], counts, bounds, ages, k, ranks, scratch)
        for i in range(size):
            item = scratch.chosen[i]
            for j in range(bounds[item], bounds[item] + scratch.met[item]):
                found[b, newest - ages[j]] = True
            scratch.met[item] = 0


@fast_kernel
def _found_kernel(scores: F32, mask: Bools, k: int, found: Bools) -> None:
    """`search_scores`: each behavior is an item of its own."""
    heads, length = scores.shape[1], scores.shape[3]
    padded = (length + LANES - 1) // LANES * LANES
    ones, every = np.ones(length, np.int32), np.arange(length + 1).astype(np.int32)
    laid = np.empty((heads, padded), np.float32)
    greatest = np.empty((heads, LANES), np.float32)
    places = np.empty(length, np.int64)
    scratch = _scratch(heads, padded, length, k)
    ranks = FIRST_RANKS
    for r in range(len(scores)):
        n = 0
        for place in range(length - 1, -1, -1):
            places[n] = place
            n += int(mask[r, place])
        if not n:
            continue
        for b in range(scores.shape[2]):
            for h in range(heads):
                mine = scores[r, h, b]
                for i in range(n):
                    laid[h, i] = mine[places[i]]
                laid[h, n:] = NOWHERE
                greatest[h] = laid[h, :LANES]
                for begin in range(LANES, padded, LANES):
                    for i in range(LANES):
                        greatest[h, i] = max(greatest[h, i], laid[h, begin + i])
            size, ranks = _find(
                laid, greatest, ones[:n], every[: n + 1], every[:n], k, ranks, scratch
            )
            for i in range(size):
                item = scratch.chosen[i]
                found[r, b, places[item]] = True
                scratch.met[item] = 0


@fast_kernel
def _find(
    scores: F32,
    greatest: F32,
    counts: I32,
    bounds: I32,
    ages: I32,
    k: int,
    ranks: int,
    scratch: _Scratch,
) -> tuple[int, int]:
    """The items of which one candidate finds behaviors, into ``scratch.chosen``, and how many of
    each, into ``scratch.met``.

    Args:
        scores: f32[heads, rows * LANES], and the greatest of each lane, f32[heads, LANES].
        ranks: how many of each head are looked at first.

    Returns:
        How many items, and how many ranks the next candidate should look at.
    """
    n = len(counts)
    if len(ages) <= k:
        for i in range(n):
            scratch.chosen[i], scratch.met[i] = i, counts[i]
        return n, ranks
    places, best, order, alone = scratch.places, scratch.best, scratch.order, len(ages) == n
    looked = min(ranks, k)
    while True:
        for h in range(len(scores)):
            least = _threshold(greatest[h, : min(n, LANES)], looked)
            m = _collect(scores[h], greatest[h], least, n, places, best)
            whole = True
            if m > 3 * looked:
                m, whole = _narrow(places, best, m, looked)
            _sort(best, m, order)
            scratch.lengths[h] = _expand(
                places, best, order, m, k if whole else looked, alone,
                counts, bounds, ages, scratch.ranked[h], scratch.ordinals[h],
            )  # fmt: skip
        size, turns = _take_turns(
            scratch.ranked, scratch.ordinals, scratch.lengths, k, scratch.met, scratch.chosen
        )
        if turns > 0:
            return size, turns + turns // 8 + 2
        for i in range(size):
            scratch.met[scratch.chosen[i]] = 0
        looked = k


@fast_kernel
def _score(queries: F32, keys: F32, biases: F32, n: int, scores: F32, greatest: F32) -> None:
    """Products of some queries f32[c, heads * w] with keys f32[heads, rows, w * LANES] of n items,
    and their biases, if there are any: f32[c, heads, rows * LANES], and the greatest of each lane,
    f32[c, heads, LANES]. What fills the last row has `NOWHERE`.
    """
    heads, rows, width = len(keys), keys.shape[1], keys.shape[2] // LANES
    for h in range(heads):
        for r in range(rows):
            for c in range(len(queries)):
                query = queries[c, h * width : (h + 1) * width]
                part = scores[c, h, r * LANES : (r + 1) * LANES]
                _score_row(query, keys[h, r], part)
                if biases.shape[1]:
                    _add(part, biases[h, r])
                if r == rows - 1:
                    part[n - r * LANES :] = NOWHERE
                most = greatest[c, h]
                if r == 0:
                    most[:] = part
                else:
                    for i in range(LANES):
                        most[i] = part[i] if part[i] > most[i] else most[i]


@fast_kernel
def _score_row(query: F32, keys: F32, scores: F32) -> None:
    """Products of a query f32[w] with a row's keys f32[w * LANES], eight numbers of it a pass."""
    j = 0
    if len(query) >= 8:
        a, b, c, d = query[0], query[1], query[2], query[3]
        e, f, g, h = query[4], query[5], query[6], query[7]
        for i in range(LANES):
            half = a * keys[i] + b * keys[i + LANES]
            half += c * keys[i + 2 * LANES] + d * keys[i + 3 * LANES]
            half += e * keys[i + 4 * LANES] + f * keys[i + 5 * LANES]
            scores[i] = half + g * keys[i + 6 * LANES] + h * keys[i + 7 * LANES]
        j = 8
    else:
        scores[:] = 0
    while j < len(query):
        a, key = query[j], keys[j * LANES : (j + 1) * LANES]
        for i in range(LANES):
            scores[i] += a * key[i]
        j += 1


@kernel
def _add(scores: F32, biases: F32) -> None:
    """Add biases to finished scores. Not as a fast kernel, which may add them to a product before
    the others, and round otherwise.
    """
    for i in range(LANES):
        scores[i] += biases[i]


@fast_kernel
def _threshold(values: F32, least: int) -> np.float32:
    """What at least ``least`` of the values reach, or all where there are no more; hardly more of
    them do, if not many are alike.
    """
    low, high = _bounds(values)
    if len(values) <= least:
        return np.float32(low)
    while True:
        middle = low + (high - low) * np.float32(0.5)
        if middle <= low:
            return np.float32(low)
        count = np.float32(0)  # a float, as wide as what is compared
        for i in range(len(values)):
            count += np.float32(1) if values[i] >= middle else np.float32(0)
        if count >= least:
            low = middle
            if count <= least + least // 4:
                return np.float32(low)
        elif middle >= high:
            return np.float32(low)
        else:
            high = middle


@fast_kernel
def _bounds(values: F32) -> tuple[np.float32, np.float32]:
    """The least and the greatest value, four at a time, so that none waits for the one before."""
    a = b = c = d = values[0]
    e = f = g = h = values[0]
    for i in range(0, len(values) - 3, 4):
        four = values[i : i + 4]
        a, b, c, d = min(a, four[0]), min(b, four[1]), min(c, four[2]), min(d, four[3])
        e, f, g, h = max(e, four[0]), max(f, four[1]), max(g, four[2]), max(h, four[3])
    rest = values[len(values) // 4 * 4 :]
    for i in range(len(rest)):
        a, e = min(a, rest[i]), max(e, rest[i])
    return min(a, b, c, d), max(e, f, g, h)


@fast_kernel
def _collect(scores: F32, greatest: F32, least: np.float32, n: int, places: I32, best: F32) -> int:
    """Places of items, with their scores, in their order, of all that are at least ``least``; how
    many they are.
    """
    lanes, hot = np.empty(LANES + 1, np.int32), 0
    for lane in range(LANES):
        lanes[hot] = lane
        hot += int(greatest[lane] >= least)
    m = 0
    for begin in range(0, len(scores), LANES):
        for i in range(hot):
            place = begin + lanes[i]
            score = scores[place]
            places[m], best[m] = place, score
            m += int(score >= least)
    while m and places[m - 1] >= n:
        m -= 1
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
    it: for some dozens that is faster than moving them. ``best`` has room for `VECTORS` more.
    """
    whole = (m + VECTORS - 1) // VECTORS * VECTORS
    best[m:whole] = NOWHERE
    every = best[:whole]
    for i in range(m):
        # Floats, as wide as what is compared.
        mine, before, alike = best[i], np.float32(0), np.float32(0)
        for j in range(len(every)):
            before += np.float32(1) if every[j] > mine else np.float32(0)
            alike += np.float32(1) if every[j] == mine else np.float32(0)
        place = int(before)
        if alike > 1:
            for j in range(i):
                place += int(best[j] == mine)
        order[place] = i


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
def _weigh(scores: F32, chosen: I32, met: I32, weights: F32, bits: I32) -> None:
    """One head's attention weights of the chosen items, each as often as it was met (Eq. 7)."""
    top = NOWHERE
    for i in range(len(chosen)):
        weights[i] = scores[chosen[i]]
        top = max(top, weights[i])
    _exponentials(weights[: len(chosen)], top, bits)
    total = np.float32(0)
    for i in range(len(chosen)):
        weights[i] *= np.float32(met[chosen[i]])
        total += weights[i]
    for i in range(len(chosen)):
        weights[i] /= total


@fast_kernel
def _pool(weights: F32, values: F32, chosen: I32, out: F32) -> None:
    """The chosen items' values f32[., heads * w], each head's by its weights f32[heads, .]."""
    heads = len(weights)
    width = len(out) // heads
    for head in range(heads):
        mine, at, end = weights[head], head * width, (head + 1) * width
        while at + 8 <= end:
            a = b = c = d = e = f = g = h = np.float32(0)
            for i in range(len(chosen)):
                value, weight = values[chosen[i], at : at + 8], mine[i]
                a, b = a + weight * value[0], b + weight * value[1]
                c, d = c + weight * value[2], d + weight * value[3]
                e, f = e + weight * value[4], f + weight * value[5]
                g, h = g + weight * value[6], h + weight * value[7]
            eight = out[at : at + 8]
            eight[0], eight[1], eight[2], eight[3] = a, b, c, d
            eight[4], eight[5], eight[6], eight[7] = e, f, g, h
            at += 8
        while at < end:
            a = np.float32(0)
            for i in range(len(chosen)):
                a += mine[i] * values[chosen[i], at]
            out[at] = a
            at += 1


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
