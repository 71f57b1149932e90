"""Spherical k-means over one user's behaviors (ENCODE, Algorithm 1, line 11; distance of Eq. 11).

Made for what a worker does all day: a thousand behaviors of a few projected dimensions, thirty
clusters, fifteen iterations, one user after another, on one core each. What makes it fast:

- items lie along the vector axis (structure of arrays), so one instruction serves 8 or 16 items;
- three centers a pass, so each item is loaded once for three cosines; more would not fit into
  the registers;
- a center's sum changes by the items that moved, instead of being summed anew;
- a center whose members stayed did not move: after the first iterations most items need comparing
  with the few moved centers alone, and only members of moved clusters with all;
- the farthest-first start leaves each item's nearest center behind, which is the first
  assignment; a warm start needs three iterations at most, because few behaviors are new.

A behavior without a direction (a zero vector, a NaN, an infinity) is in no cluster: its cosine to
anything is undefined.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from infra.arrays import F32, F64, I32, I64, U8, U32, Bools
from infra.compiling import fast_kernel, kernel

WARM_ITERATIONS: Final = 3
"""Iterations allowed after a warm start: the old centers already sit in their clusters."""

SAME: Final = 1e-6
"""Behaviors whose cosine distance is below this are one point and never get two clusters. Ten
times what float32 rounding leaves between a unit vector and itself."""

LANES: Final = 16
"""Items are padded to a multiple of this, so that compiled loops have no scalar remainder."""

CANCELED: Final = 1e-12  # a squared sum below this is rounding, not a direction

SORTING: Final = 17
"""Cost of finding out which centers an item needs, in cosines (measured)."""

SMALL: Final = np.float32(1e-30)  # squared lengths between these are good float32 numbers
LARGE: Final = np.float32(1e30)

NOWHERE: Final = np.float32(-2.0)  # below every cosine: any center is better
SETTLED: Final = np.float32(1.5)  # above every cosine: padding is never the worst served

STEPS: Final = np.float32(2**30)  # of a cosine, as an integer; from NOWHERE to SETTLED they fit


class Clusters(NamedTuple):
    """One user's clustering."""

    assign: I32
    """i32[L]: each behavior's cluster; -1: it has no direction and is in none."""
    centers: F32
    """f32[K,m], unit length: the direction of the sum of the cluster's members. Zero: empty."""
    sizes: U32
    """u32[K]: behaviors in each cluster, by their counts."""
    iterations: int
    """Assignments made; 0: there was nothing to cluster."""


def cluster(
    h: F32,
    clusters: int,
    iterations: int,
    counts: U32 | None = None,
    start: F32 | None = None,
) -> Clusters:
    """Cluster behaviors by cosine.

    Stops when no behavior changes its cluster, or after ``iterations`` assignments (with ``start``
    after `WARM_ITERATIONS` of them). A cluster that loses all its members moves to the behavior
    that is worst served. With fewer distinct directions than clusters each gets one of its own,
    and the clusters left over are empty.

    Args:
        h: f32[L,m], projected behaviors; their lengths do not matter.
        clusters: K.
        iterations: T.
        counts: u32[L], >= 1, how many behaviors each row stands for; None: one each. Clustering a
            row counted c times is clustering it repeated c times.
        start: f32[<=K,m], an earlier clustering's centers; zero rows are ignored, and the clusters
            still missing begin farthest first. None: begin with the behavior met most often (the
            first of those), then always the one farthest from all centers.

    Raises:
        ValueError: K or T below 1, or shapes that do not fit each other.

    >>> import numpy as np
    >>> h = np.array([[1, 0], [2, 0.1], [0, 1], [0, 0]], np.float32)
    >>> cluster(h, clusters=3, iterations=15).assign
    array([ 0,  1,  2, -1], dtype=int32)
    >>> cluster(h, clusters=2, iterations=15).sizes
    array([2, 1], dtype=uint32)
    """
    if h.ndim != 2 or clusters < 1 or iterations < 1:
        raise ValueError(
            f"cluster needs h[L,m], K >= 1 and T >= 1; got {h.shape}, {clusters}, {iterations}"
        )
    if counts is None:
        counts = np.empty(0, np.uint32)
    elif len(counts) != len(h):
        raise ValueError(f"{len(counts)} counts for {len(h)} behaviors")
    if start is None:
        start = np.empty((0, h.shape[1]), np.float32)
    elif start.shape[1:] != h.shape[1:] or len(start) > clusters:
        raise ValueError(f"start of shape {start.shape} for K={clusters}, m={h.shape[1]}")
    return Clusters(
        *cluster_kernel(plain_f32(h), plain_u32(counts), plain_f32(start), clusters, iterations)
    )


def farthest_first(h: F32, clusters: int, counts: U32 | None = None) -> F32:
    """The centers at which `cluster` begins for the same h and counts, f32[<=K,m]; fewer than K
    where there are fewer distinct directions.
    """
    counts = np.ones(len(h), np.uint32) if counts is None else plain_u32(counts)
    return _farthest_first(plain_f32(h), counts, clusters)


def plain_f32(array: F32) -> F32:
    """The array in the one layout that kernels are compiled for. A store's record comes read-only
    and perhaps unaligned; every such variant would be compiled anew.
    """
    if array.dtype == np.float32 and array.flags.carray:
        return array
    return np.require(array, np.float32, ("C", "A", "W"))


def plain_u32(array: U32) -> U32:
    """Counts in the one layout that kernels are compiled for; see `plain_f32`."""
    if array.dtype == np.uint32 and array.flags.carray:
        return array
    return np.require(array, np.uint32, ("C", "A", "W"))


# --- kernels: n items with a direction, padded to p; width w is m padded to a multiple of four ---


class Points(NamedTuple):
    """Items under clustering, and what is known of each."""

    columns: F32
    """f32[w,p], unit vectors, an item a column."""
    cosine: F32
    """f32[p]: cosine to the nearest center met so far."""
    nearest: I32
    """i32[p]: which center that is."""


class Tally(NamedTuple):
    """The clusters' members, kept up to date by what changes."""

    sums: F64
    """f64[K,w]: weighted sum of each cluster's members. Wide, since it is added to and taken from
    many times over."""
    members: I64
    """i64[K]: items in each cluster."""
    moved: Bools
    """bool[K]: whether members have come or gone since the last centers but one."""


@kernel
def cluster_kernel(
    h: F32, counts: U32, start: F32, clusters: int, iterations: int
) -> tuple[I32, F32, U32, int]:
    """The loops of `cluster`; arrays as `plain_f32` makes them; empty counts: one each."""
    length, m = h.shape
    if len(counts) == 0:
        counts = np.ones(length, np.uint32)
    columns, members = _unit_columns(h)
    n = len(members)
    width = len(columns)
    points = _unmet(columns, n)
    weights = counts if n == length else counts[members]
    centers = np.zeros((clusters + 2, width), np.float32)
    done = 0
    if n <= clusters:
        for i in range(n):
            points.nearest[i] = i
            for j in range(width):
                centers[i, j] = columns[j, i]
    else:
        live = _take_start(start, centers)
        if live:
            iterations = min(iterations, WARM_ITERATIONS)
            _meet_all(points, centers, live)
        live = _seed(points, weights, centers, live, clusters)
        done = _lloyd(points, weights, centers, live, iterations)

    assign = np.full(length, -1, np.int32)
    sizes = np.zeros(clusters, np.uint32)
    for i in range(n):
        k = points.nearest[i]
        assign[members[i]] = k
        sizes[k] += weights[i]
    found = np.zeros((clusters, m), np.float32)
    for k in range(clusters):
        if sizes[k]:
            for j in range(m):
                found[k, j] = centers[k, j]
    return assign, found, sizes, done


@kernel
def cluster_each(
    h: F32, rows: I64, mask: Bools, iterations: int, assign: I64, centers: F32
) -> None:
    """Cluster each of R users as the extractor does: an item met n times counts n times.

    Args:
        h: f32[R,L,m].
        rows: i64[R,L] in [0, n): equal where behaviors are of the same item, hence of equal h.
        mask: bool[R,L]; what it leaves out is in no cluster.
        iterations: T.
        assign: i64[R,L], written to: the behaviors' clusters, 0 for those in none.
        centers: f32[R,K,m], written to.
    """
    length, m = h.shape[1:]
    cold = np.empty((0, m), np.float32)
    place = np.full(rows.max() + 1 if rows.size else 1, -1, np.int64)
    first = np.empty(length, np.int64)
    counts = np.empty(length, np.uint32)
    for r in range(len(h)):
        n = 0
        for i in range(length):
            if mask[r, i]:
                row = rows[r, i]
                if place[row] < 0:
                    place[row] = n
                    first[n] = i
                    counts[n] = 0
                    n += 1
                counts[place[row]] += 1
        items = h[r][first[:n]]
        found, at, _, _ = cluster_kernel(items, counts[:n], cold, centers.shape[1], iterations)
        centers[r] = at
        for i in range(length):
            if mask[r, i]:
                assign[r, i] = max(found[place[rows[r, i]]], 0)
        for k in range(n):
            place[rows[r, first[k]]] = -1


@kernel
def _farthest_first(h: F32, counts: U32, clusters: int) -> F32:
    columns, members = _unit_columns(h)
    n = len(members)
    centers = np.zeros((clusters, len(columns)), np.float32)
    live = _seed(_unmet(columns, n), counts[members], centers, 0, min(clusters, n))
    return centers[:live, : h.shape[1]].copy()


@kernel
def _unit_columns(h: F32) -> tuple[F32, I32]:
    """f32[w,p] unit vectors, an item a column, and i32[n], the row of h that each stands for."""
    length, m = h.shape
    padded = (length + LANES - 1) // LANES * LANES
    columns = np.zeros(((m + 3) // 4 * 4, padded), np.float32)
    members = np.empty(length, np.int32)
    for j in range(m):
        column = columns[j]
        for i in range(length):
            column[i] = h[i, j]
    squares = np.zeros(length, np.float32)
    for j in range(m):  # apart, since no vector instruction reads across rows
        column = columns[j]
        for i in range(length):
            squares[i] += column[i] * column[i]
    plain = 0
    for i in range(length):
        plain += (squares[i] > SMALL) & (squares[i] < LARGE)
    if plain == length:
        for i in range(length):
            squares[i] = np.float32(1.0) / np.sqrt(squares[i])
            members[i] = i
        for j in range(m):
            column = columns[j]
            for i in range(length):
                column[i] *= squares[i]
        return columns, members

    return columns, members[: _unit_columns_wide(h, columns, members)]


@kernel
def _unit_columns_wide(h: F32, columns: F32, members: I32) -> int:
    """`_unit_columns` one by one and in float64, where some lengths cannot be squared in float32
    or some items have no direction; how many have one.
    """
    length, m = h.shape
    n = 0
    for i in range(length):
        squared = 0.0
        for j in range(m):
            squared += np.float64(h[i, j]) * np.float64(h[i, j])
        if squared > 0.0 and squared < np.inf:  # false for NaN too
            for j in range(m):
                columns[j, n] = h[i, j] / np.sqrt(squared)
            members[n] = i
            n += 1
    for j in range(m):
        for i in range(n, length):
            columns[j, i] = 0.0
    return n


@kernel
def _unmet(columns: F32, n: int) -> Points:
    """Items that have met no center yet. Padding is settled with center 0 from the beginning."""
    padded = columns.shape[1]
    cosine = np.empty(padded, np.float32)
    for i in range(padded):
        cosine[i] = NOWHERE if i < n else SETTLED
    return Points(columns, cosine, np.zeros(padded, np.int32))


@kernel
def _take_start(start: F32, centers: F32) -> int:
    """Put the start's rows that have a direction in front of ``centers``; how many they are."""
    live = 0
    for k in range(len(start)):
        squared = 0.0
        for j in range(start.shape[1]):
            squared += np.float64(start[k, j]) * np.float64(start[k, j])
        if squared > 0.0 and squared < np.inf:
            for j in range(start.shape[1]):
                centers[live, j] = start[k, j] / np.sqrt(squared)
            live += 1
    return live


@kernel
def _seed(points: Points, weights: U32, centers: F32, live: int, clusters: int) -> int:
    """Add centers farthest first, until there are K or each item has one; how many there are."""
    padded = len(points.cosine)
    dots = np.empty(padded, np.float32)
    first = live == 0 and len(weights) > 0
    i = int(np.argmax(weights)) if first else _worst_served(points.cosine)
    while live < clusters and points.cosine[i] < 1.0 - SAME:
        for j in range(len(points.columns)):
            centers[live, j] = points.columns[j, i]
        _meet_one(
            points.columns,
            padded,
            centers[live],
            np.int32(live),
            dots,
            points.cosine,
            points.nearest,
        )
        live += 1
        i = _worst_served(points.cosine)
    return live


@kernel
def _lloyd(points: Points, weights: U32, centers: F32, live: int, iterations: int) -> int:
    """Iterate from a first assignment; the assignments made, that one included. Centers are those
    of the last assignment's members.
    """
    n = len(weights)
    nearest = points.nearest
    width, padded = points.columns.shape
    tally = Tally(
        np.zeros((live, width), np.float64),
        np.zeros(live, np.int64),
        np.ones(live, np.bool_),
    )
    for i in range(n):
        tally.members[nearest[i]] += 1
    shares = np.empty(n, np.float64)
    sums = np.empty(live, np.float64)
    for j in range(width):
        column = points.columns[j]
        for i in range(n):
            shares[i] = np.float64(weights[i]) * column[i]
        sums[:] = 0.0
        for i in range(n):
            sums[np.uint32(nearest[i])] += shares[i]
        tally.sums[:, j] = sums
    before = np.empty(padded, np.int32)
    differs = np.empty(padded, np.uint8)
    changed = np.empty(padded + 1, np.int32)
    part = Points(
        np.empty((width, padded), np.float32),
        np.empty(padded, np.float32),
        np.empty(padded, np.int32),
    )
    for done in range(1, iterations):
        _update_centers(points, weights, centers, tally)
        for i in range(padded):
            before[i] = nearest[i]
        _reassign(points, n, centers, tally, part, changed)
        count = _differing(before, nearest, differs, changed)
        if count == 0:
            return done + 1
        _recount(points, weights, before, changed, count, tally)
    _update_centers(points, weights, centers, tally)
    return iterations


@kernel
def _differing(before: I32, after: I32, differs: U8, changed: I32) -> int:
    """Where two assignments differ, into ``changed``; how often. Most eights of items are alike.
    ``differs`` u8[p] is scratch.
    """
    for i in range(len(before)):
        differs[i] = before[i] != after[i]
    eights = differs.view(np.uint64)
    count = 0
    for block in range(len(eights)):
        if eights[block]:
            for i in range(8 * block, 8 * block + 8):
                changed[count] = i
                count += differs[i]  # not a branch: it could not be predicted
    return count


@kernel
def _recount(
    points: Points, weights: U32, before: I32, changed: I32, count: int, tally: Tally
) -> None:
    """Take the changed items out of their old clusters and into their new ones."""
    nearest, moved = points.nearest, tally.moved
    for k in range(len(moved)):
        moved[k] = False
    for a in range(count):
        i = changed[a]
        old, new, weight = before[i], nearest[i], np.float64(weights[i])
        moved[old] = True
        moved[new] = True
        tally.members[old] -= 1
        tally.members[new] += 1
        for j in range(len(points.columns)):
            share = weight * points.columns[j, i]
            tally.sums[old, j] -= share
            tally.sums[new, j] += share


@kernel
def _update_centers(points: Points, weights: U32, centers: F32, tally: Tally) -> None:
    """Point the moved centers where their members point. Members that cancel each other out
    leave the center as it was.
    """
    sums = tally.sums
    for k in range(len(tally.members)):
        if tally.members[k] == 0:
            _adopt_worst_served(points, weights, k, tally)
    for k in range(len(tally.members)):
        squared = 0.0
        for j in range(sums.shape[1]):
            squared += sums[k, j] * sums[k, j]
        if tally.moved[k] and squared > CANCELED:
            scale = 1.0 / np.sqrt(squared)
            for j in range(sums.shape[1]):
                centers[k, j] = sums[k, j] * scale


@kernel
def _adopt_worst_served(points: Points, weights: U32, k: int, tally: Tally) -> None:
    """Give the empty cluster k the item farthest from its own center, unless it sits alone."""
    i = np.argmin(points.cosine[: len(weights)])  # rare, so it may be slow
    old = points.nearest[i]
    if points.cosine[i] >= 1.0 - SAME or tally.members[old] < 2:
        return
    for j in range(len(points.columns)):
        share = weights[i] * np.float64(points.columns[j, i])
        tally.sums[old, j] -= share
        tally.sums[k, j] = share
    tally.members[old] -= 1
    tally.members[k] = 1
    tally.moved[old] = True
    tally.moved[k] = True
    points.nearest[i] = k
    points.cosine[i] = 1.0


@kernel
def _reassign(points: Points, n: int, centers: F32, tally: Tally, part: Points, left: I32) -> None:
    """Find each item's nearest center, given those of the last pass and which centers moved.

    Only a center that moved can win an item over, unless the item's own center moved away from
    it: then the others may be nearer too. ``part`` and ``left`` are scratch.
    """
    live = len(tally.moved)
    labels = np.empty(live + 2, np.int32)
    some = 0
    affected = 0
    for k in range(live):
        labels[some] = k
        some += tally.moved[k]
        affected += tally.members[k] if tally.moved[k] else 0
    # In cosines; sorting an item out costs as much as SORTING of them.
    saved = n * (live - some) - affected * (live - some) // 2
    if saved < n * SORTING:
        for i in range(n):
            points.cosine[i] = NOWHERE
        _meet_all(points, centers, live)
        return
    last = part.cosine
    for i in range(len(last)):
        last[i] = points.cosine[i]
    for a in range(some):
        _forget(points.cosine, points.nearest, labels[a])
    _meet_some(points, len(points.cosine), centers, labels, some)

    count = 0
    for i in range(n):
        left[count] = i
        count += points.cosine[i] < last[i]
    others = 0
    for k in range(live):
        labels[others] = k
        others += not tally.moved[k]
    for a in range(count):
        part.cosine[a] = points.cosine[left[a]]
        part.nearest[a] = points.nearest[left[a]]
    for j in range(len(points.columns)):
        column, part_column = points.columns[j], part.columns[j]
        for a in range(count):
            part_column[a] = column[left[a]]
    _meet_some(part, (count + LANES - 1) // LANES * LANES, centers, labels, others)
    for a in range(count):
        points.cosine[left[a]] = part.cosine[a]
        points.nearest[left[a]] = part.nearest[a]


@fast_kernel
def _forget(cosine: F32, nearest: I32, label: np.int32) -> None:
    """Unsettle the members of a center that moved. Padding forgets center 0 and finds it again."""
    for i in range(len(cosine)):
        known = cosine[i]
        cosine[i] = NOWHERE if nearest[i] == label else known


@kernel
def _meet_some(points: Points, length: int, centers: F32, labels: I32, count: int) -> None:
    """`_meet` with the ``count`` centers that ``labels`` names (and has two places more)."""
    width = centers.shape[1]
    chosen = np.empty((count + 2, width), np.float32)
    for a in range(count):
        for j in range(width):
            chosen[a, j] = centers[labels[a], j]
    _meet(points, length, chosen, labels, count)


@kernel
def _meet_all(points: Points, centers: F32, live: int) -> None:
    """`_meet` with the first ``live`` centers, labeled by their rows. Two rows behind them are
    scratch.
    """
    labels = np.empty(live + 2, np.int32)
    for k in range(live):
        labels[k] = k
    _meet(points, points.columns.shape[1], centers, labels, live)


@kernel
def _meet(points: Points, length: int, centers: F32, labels: I32, count: int) -> None:
    """Keep, for each of the first ``length`` items, the larger of its cosine so far and that to
    ``count`` centers, with the label of the center it belongs to. An equal cosine changes nothing.
    """
    columns, cosine, nearest = points
    for k in range(count, (count + 2) // 3 * 3):  # fill up the last three: equal, so no change
        labels[k] = labels[count - 1]
        for j in range(centers.shape[1]):
            centers[k, j] = centers[count - 1, j]
    if len(columns) == 4:
        for k in range(0, count, 3):
            _meet_three_narrow(columns, length, centers, labels, k, cosine, nearest)
    else:
        dots = np.empty(length, np.float32)
        for k in range(count):
            _meet_one(columns, length, centers[k], labels[k], dots, cosine, nearest)


@fast_kernel
def _meet_three_narrow(
    columns: F32, length: int, centers: F32, labels: I32, k: int, cosine: F32, nearest: I32
) -> None:
    """`_meet` with three centers from k on, at width four: everything stays in registers."""
    x0, x1, x2, x3 = columns[0], columns[1], columns[2], columns[3]
    a, b, c = centers[k], centers[k + 1], centers[k + 2]
    a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
    b0, b1, b2, b3 = b[0], b[1], b[2], b[3]
    c0, c1, c2, c3 = c[0], c[1], c[2], c[3]
    label_a, label_b, label_c = labels[k], labels[k + 1], labels[k + 2]
    for i in range(length):
        p, q, r, s = x0[i], x1[i], x2[i], x3[i]
        first = p * a0 + q * a1 + r * a2 + s * a3
        second = p * b0 + q * b1 + r * b2 + s * b3
        third = p * c0 + q * c1 + r * c2 + s * c3
        best, label = cosine[i], nearest[i]
        label = label_a if first > best else label
        best = max(best, first)
        label = label_b if second > best else label
        best = max(best, second)
        label = label_c if third > best else label
        cosine[i], nearest[i] = max(best, third), label


@fast_kernel
def _meet_one(
    columns: F32,
    length: int,
    center: F32,
    label: np.int32,
    dots: F32,
    cosine: F32,
    nearest: I32,
) -> None:
    """`_meet` with one center; ``dots`` f32[length] is scratch for widths beyond four.

    No cosine is below NOWHERE; without the comparison the compiler would see that an item that
    stays need not be written, and go item by item to spare it.
    """
    x0, x1, x2, x3 = columns[0], columns[1], columns[2], columns[3]
    c0, c1, c2, c3 = center[0], center[1], center[2], center[3]
    if len(columns) == 4:
        for i in range(length):
            dot = x0[i] * c0 + x1[i] * c1 + x2[i] * c2 + x3[i] * c3
            best, now = max(cosine[i], NOWHERE), nearest[i]
            now = label if dot > best else now
            cosine[i], nearest[i] = max(best, dot), now
        return
    for i in range(length):
        dots[i] = x0[i] * c0 + x1[i] * c1 + x2[i] * c2 + x3[i] * c3
    for j in range(4, len(columns)):
        x, c = columns[j], center[j]
        for i in range(length):
            dots[i] += x[i] * c
    for i in range(length):
        dot, best, now = dots[i], max(cosine[i], NOWHERE), nearest[i]
        now = label if dot > best else now
        cosine[i], nearest[i] = max(best, dot), now


@kernel
def _worst_served(cosine: F32) -> int:
    """The first item with the lowest cosine. Cosines are compared as integers, of which compiled
    code compares many at a time; compilers will not do that to floats.
    """
    lowest = np.int32(2**31 - 1)
    for i in range(len(cosine)):
        lowest = min(lowest, np.int32(cosine[i] * STEPS))
    behind = np.int32(len(cosine))
    first = behind
    for i in range(len(cosine)):
        here = np.int32(i) if np.int32(cosine[i] * STEPS) == lowest else behind
        first = min(first, here)
    return int(first)
