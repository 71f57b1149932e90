"""Spherical k-means over one user's behaviors (ENCODE, Algorithm 1, line 11; distance of Eq. 11).

Made for what a worker does all day: a thousand behaviors of a few projected dimensions, thirty
clusters, fifteen iterations, one user after another, on one core each. What makes it fast:

- items lie along the vector axis (structure of arrays), so one instruction serves 8 or 16 items;
- four centers a pass, so each item is loaded once for four cosines;
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
import numpy.typing as npt

from extractor.kernels import fast_kernel, kernel

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]

WARM_ITERATIONS: Final = 3
"""Iterations allowed after a warm start: the old centers already sit in their clusters."""

SAME: Final = 1e-6
"""Behaviors whose cosine distance is below this are one point and never get two clusters. Ten
times what float32 rounding leaves between a unit vector and itself."""

LANES: Final = 128
"""Items are padded to a multiple of this, so that compiled loops have no scalar remainder; wide
enough that the running minima of `_worst_served` do not wait for each other."""

CANCELED: Final = 1e-12  # a squared sum below this is rounding, not a direction

NOWHERE: Final = np.float32(-2.0)  # below every cosine: any center is better
SETTLED: Final = np.float32(2.0)  # above every cosine: padding is never the worst served


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
        counts = np.ones(len(h), np.uint32)
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
    """`plain_f32` for counts."""
    if array.dtype == np.uint32 and array.flags.carray:
        return array
    return np.require(array, np.uint32, ("C", "A", "W"))


# --- kernels: n items with a direction, padded to p; width w is m padded to a multiple of four ---


@kernel
def cluster_kernel(
    h: F32, counts: U32, start: F32, clusters: int, iterations: int
) -> tuple[I32, F32, U32, int]:
    """`cluster`, on plain arrays."""
    length, m = h.shape
    assign = np.full(length, -1, np.int32)
    found = np.zeros((clusters, m), np.float32)
    sizes = np.zeros(clusters, np.uint32)
    columns, members = _unit_columns(h)
    n = len(members)
    weights = counts[members]
    width, padded = columns.shape
    cosine = np.full(padded, SETTLED, np.float32)
    cosine[:n] = NOWHERE
    nearest = np.zeros(padded, np.int32)
    centers = np.zeros((clusters + 3, width), np.float32)
    done = 0
    if n <= clusters:
        for i in range(n):
            nearest[i] = i
            for j in range(width):
                centers[i, j] = columns[j, i]
    else:
        live = _take_start(start, centers)
        if live:
            iterations = min(iterations, WARM_ITERATIONS)
            _meet_all(columns, centers, live, cosine, nearest)
        live = _seed(columns, weights, centers, live, clusters, cosine, nearest)
        done = _lloyd(columns, weights, centers, live, iterations, cosine, nearest)
    for i in range(n):
        assign[members[i]] = nearest[i]
        sizes[nearest[i]] += weights[i]
    for k in range(clusters):
        if sizes[k]:
            for j in range(m):
                found[k, j] = centers[k, j]
    return assign, found, sizes, done


@kernel
def _farthest_first(h: F32, counts: U32, clusters: int) -> F32:
    columns, members = _unit_columns(h)
    n = len(members)
    width, padded = columns.shape
    cosine = np.full(padded, SETTLED, np.float32)
    cosine[:n] = NOWHERE
    nearest = np.zeros(padded, np.int32)
    centers = np.zeros((clusters, width), np.float32)
    weights = counts[members]
    live = _seed(columns, weights, centers, 0, min(clusters, n), cosine, nearest)
    return centers[:live, : h.shape[1]].copy()


@kernel
def _unit_columns(h: F32) -> tuple[F32, I32]:
    """f32[w,p] unit vectors, an item a column, and i32[n], the row of h that each stands for."""
    length, m = h.shape
    inverse = np.zeros(length, np.float64)
    for i in range(length):
        for j in range(m):
            inverse[i] += np.float64(h[i, j]) * np.float64(h[i, j])
    members = np.empty(length, np.int32)
    n = 0
    for i in range(length):
        if inverse[i] > 0.0 and inverse[i] < np.inf:  # false for NaN too
            members[n] = i
            n += 1
    for i in range(length):
        inverse[i] = 1.0 / np.sqrt(inverse[i])
    columns = np.zeros(((m + 3) // 4 * 4, (n + LANES - 1) // LANES * LANES), np.float32)
    for j in range(m):
        column = columns[j]
        for a in range(n):
            column[a] = h[members[a], j] * inverse[members[a]]
    return columns, members[:n]


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
def _seed(
    columns: F32, weights: U32, centers: F32, live: int, clusters: int, cosine: F32, nearest: I32
) -> int:
    """Add centers farthest first, until there are K or each item has one; how many there are."""
    lowest = np.empty(LANES, np.float32)
    where = np.empty(LANES, np.int32)
    if live == 0 and len(weights) > 0:
        i = int(np.argmax(weights))
    else:
        i = _worst_served(cosine, lowest, where)
    while live < clusters and cosine[i] < 1.0 - SAME:
        for j in range(len(columns)):
            centers[live, j] = columns[j, i]
        _meet_one(columns, centers[live], live, cosine, nearest)
        live += 1
        i = _worst_served(cosine, lowest, where)
    return live


@kernel
def _lloyd(
    columns: F32,
    weights: U32,
    centers: F32,
    live: int,
    iterations: int,
    cosine: F32,
    nearest: I32,
) -> int:
    """Iterate from a first assignment (``cosine``, ``nearest``); the assignments made, that one
    included. Centers are those of the last assignment's members.
    """
    n = len(weights)
    sums = np.zeros((len(columns), live), np.float64)
    members = np.zeros(live, np.int64)
    moved = np.ones(live, np.bool_)
    before = np.empty_like(nearest)
    changed = np.empty(n, np.int32)
    for i in range(n):
        members[nearest[i]] += 1
    for j in range(len(columns)):
        column, total = columns[j], sums[j]
        for i in range(n):
            total[nearest[i]] += weights[i] * np.float64(column[i])
    for done in range(1, iterations):
        _update_centers(columns, weights, centers, sums, members, moved, cosine, nearest)
        for i in range(len(nearest)):
            before[i] = nearest[i]
        _reassign(columns, centers, moved, n, cosine, nearest)
        count = _differing(before, nearest, changed)
        if count == 0:
            return done + 1
        moved[:] = False
        for a in range(count):
            old, new = before[changed[a]], nearest[changed[a]]
            moved[old] = moved[new] = True
            members[old] -= 1
            members[new] += 1
        for j in range(len(columns)):
            column, total = columns[j], sums[j]
            for a in range(count):
                i = changed[a]
                share = weights[i] * np.float64(column[i])
                total[before[i]] -= share
                total[nearest[i]] += share
    _update_centers(columns, weights, centers, sums, members, moved, cosine, nearest)
    return iterations


@kernel
def _differing(before: I32, after: I32, changed: I32) -> int:
    """Where two assignments differ, into ``changed``; how often. Few do, so blocks are compared
    whole first. Padding never differs: it keeps the center 0 that it began with.
    """
    count = 0
    for block in range(0, len(before), LANES):
        old, new = before[block : block + LANES], after[block : block + LANES]
        any_bit = np.int32(0)
        for lane in range(LANES):
            any_bit |= old[lane] ^ new[lane]
        if any_bit:
            for lane in range(LANES):
                if old[lane] != new[lane]:
                    changed[count] = block + lane
                    count += 1
    return count


@kernel
def _update_centers(
    columns: F32,
    weights: U32,
    centers: F32,
    sums: F64,
    members: I64,
    moved: Flags,
    cosine: F32,
    nearest: I32,
) -> None:
    """Point the moved centers where their members point. Members that cancel each other out
    leave the center as it was.
    """
    live = len(members)
    for k in range(live):
        if members[k] == 0:
            _adopt_worst_served(columns, weights, k, sums, members, moved, cosine, nearest)
    for k in range(live):
        squared = 0.0
        for j in range(len(sums)):
            squared += sums[j, k] * sums[j, k]
        if moved[k] and squared > CANCELED:
            scale = 1.0 / np.sqrt(squared)
            for j in range(len(sums)):
                centers[k, j] = sums[j, k] * scale


@kernel
def _adopt_worst_served(
    columns: F32,
    weights: U32,
    k: int,
    sums: F64,
    members: I64,
    moved: Flags,
    cosine: F32,
    nearest: I32,
) -> None:
    """Give the empty cluster k the item farthest from its own center, unless it sits alone."""
    i = np.argmin(cosine)  # rare, so it may be slow
    old = nearest[i]
    if cosine[i] >= 1.0 - SAME or members[old] < 2:
        return
    for j in range(len(columns)):
        share = weights[i] * np.float64(columns[j, i])
        sums[j, old] -= share
        sums[j, k] = share
    members[old] -= 1
    members[k] = 1
    moved[old] = moved[k] = True
    nearest[i] = k
    cosine[i] = 1.0


@kernel
def _reassign(columns: F32, centers: F32, moved: Flags, n: int, cosine: F32, nearest: I32) -> None:
    """Find each item's nearest center, given those of the last pass and which centers moved.

    Only a center that moved can win an item over, unless the item's own center moved away from
    it: then the others may be nearer too.
    """
    live = len(moved)
    labels = np.empty(live + 3, np.int32)
    some = 0
    for k in range(live):
        if moved[k]:
            labels[some] = k
            some += 1
    if 2 * some > live:  # sorting items out would cost more than it saves
        cosine[:n] = NOWHERE
        _meet_all(columns, centers, live, cosine, nearest)
        return
    last = cosine.copy()
    for i in range(n):
        cosine[i] = NOWHERE if moved[nearest[i]] else cosine[i]
    _meet_some(columns, centers, labels, some, cosine, nearest)

    left = np.empty(n, np.int32)
    count = 0
    for i in range(n):
        left[count] = i
        count += cosine[i] < last[i]
    others = 0
    for k in range(live):
        if not moved[k]:
            labels[others] = k
            others += 1
    part = np.zeros((len(columns), (count + 31) // 32 * 32), np.float32)
    part_cosine = np.empty(part.shape[1], np.float32)
    part_nearest = np.empty(part.shape[1], np.int32)
    for a in range(count):
        part_cosine[a] = cosine[left[a]]
        part_nearest[a] = nearest[left[a]]
    for j in range(len(columns)):
        column, part_column = columns[j], part[j]
        for a in range(count):
            part_column[a] = column[left[a]]
    _meet_some(part, centers, labels, others, part_cosine, part_nearest)
    for a in range(count):
        cosine[left[a]] = part_cosine[a]
        nearest[left[a]] = part_nearest[a]


@kernel
def _meet_some(
    columns: F32, centers: F32, labels: I32, count: int, cosine: F32, nearest: I32
) -> None:
    """`_meet` with the ``count`` centers that ``labels`` names (and has three places more)."""
    chosen = np.empty((count + 3, centers.shape[1]), np.float32)
    for a in range(count):
        for j in range(centers.shape[1]):
            chosen[a, j] = centers[labels[a], j]
    _meet(columns, chosen, labels, count, cosine, nearest)


@kernel
def _meet_all(columns: F32, centers: F32, live: int, cosine: F32, nearest: I32) -> None:
    """`_meet` with the first ``live`` centers, labeled by their rows. Three rows behind them are
    scratch.
    """
    labels = np.arange(live + 3, dtype=np.int32)
    _meet(columns, centers, labels, live, cosine, nearest)


@kernel
def _meet(columns: F32, centers: F32, labels: I32, count: int, cosine: F32, nearest: I32) -> None:
    """Keep, for each item, the larger of its cosine so far and that to ``count`` centers, with
    the label of the center it belongs to. An equal cosine changes nothing.
    """
    for k in range(count, (count + 3) // 4 * 4):  # fill up the last four: equal, so no change
        for j in range(centers.shape[1]):
            centers[k, j] = centers[count - 1, j]
        labels[k] = labels[count - 1]
    if len(columns) == 4:
        for k in range(0, count, 4):
            _meet_four_narrow(columns, centers[k : k + 4], labels[k : k + 4], cosine, nearest)
    else:
        dots = np.empty((4, columns.shape[1]), np.float32)
        for k in range(0, count, 4):
            _meet_four(columns, centers[k : k + 4], labels[k : k + 4], dots, cosine, nearest)


@fast_kernel
def _meet_four_narrow(columns: F32, centers: F32, labels: I32, cosine: F32, nearest: I32) -> None:
    """Four centers against all items of width four: everything stays in registers."""
    x0, x1, x2, x3 = columns[0], columns[1], columns[2], columns[3]
    a0, a1, a2, a3 = centers[0, 0], centers[0, 1], centers[0, 2], centers[0, 3]
    b0, b1, b2, b3 = centers[1, 0], centers[1, 1], centers[1, 2], centers[1, 3]
    c0, c1, c2, c3 = centers[2, 0], centers[2, 1], centers[2, 2], centers[2, 3]
    d0, d1, d2, d3 = centers[3, 0], centers[3, 1], centers[3, 2], centers[3, 3]
    label_a, label_b, label_c, label_d = labels[0], labels[1], labels[2], labels[3]
    for i in range(columns.shape[1]):
        p, q, r, s = x0[i], x1[i], x2[i], x3[i]
        a = p * a0 + q * a1 + r * a2 + s * a3
        b = p * b0 + q * b1 + r * b2 + s * b3
        c = p * c0 + q * c1 + r * c2 + s * c3
        d = p * d0 + q * d1 + r * d2 + s * d3
        best, label = cosine[i], nearest[i]
        label = label_a if a > best else label
        best = max(best, a)
        label = label_b if b > best else label
        best = max(best, b)
        label = label_c if c > best else label
        best = max(best, c)
        label = label_d if d > best else label
        best = max(best, d)
        cosine[i], nearest[i] = best, label


@fast_kernel
def _meet_four(
    columns: F32, centers: F32, labels: I32, dots: F32, cosine: F32, nearest: I32
) -> None:
    """Four centers against all items of any width, through ``dots`` f32[4,p]."""
    dots[:] = 0.0
    for j in range(0, len(columns), 4):
        x0, x1, x2, x3 = columns[j], columns[j + 1], columns[j + 2], columns[j + 3]
        for k in range(4):
            c0, c1, c2, c3 = centers[k, j], centers[k, j + 1], centers[k, j + 2], centers[k, j + 3]
            dot = dots[k]
            for i in range(columns.shape[1]):
                dot[i] += x0[i] * c0 + x1[i] * c1 + x2[i] * c2 + x3[i] * c3
    for k in range(4):
        label = labels[k]
        dot = dots[k]
        for i in range(columns.shape[1]):
            here, best, now = dot[i], cosine[i], nearest[i]
            nearest[i] = label if here > best else now
            cosine[i] = max(best, here)


@fast_kernel
def _meet_one(columns: F32, center: F32, label: int, cosine: F32, nearest: I32) -> None:
    """One more center against all items (`_meet`)."""
    label_i32 = np.int32(label)
    if len(columns) == 4:
        x0, x1, x2, x3 = columns[0], columns[1], columns[2], columns[3]
        c0, c1, c2, c3 = center[0], center[1], center[2], center[3]
        for i in range(columns.shape[1]):
            dot = x0[i] * c0 + x1[i] * c1 + x2[i] * c2 + x3[i] * c3
            best, now = cosine[i], nearest[i]
            nearest[i] = label_i32 if dot > best else now
            cosine[i] = max(best, dot)
        return
    dots = np.zeros(columns.shape[1], np.float32)
    for j in range(len(columns)):
        x, c = columns[j], center[j]
        for i in range(columns.shape[1]):
            dots[i] += x[i] * c
    for i in range(columns.shape[1]):
        dot, best, now = dots[i], cosine[i], nearest[i]
        nearest[i] = label_i32 if dot > best else now
        cosine[i] = max(best, dot)


@fast_kernel
def _worst_served(cosine: F32, lowest: F32, where: I32) -> int:
    """The item with the lowest cosine. A plain argmin is a chain of dependent comparisons; this
    runs LANES minima side by side (``lowest``, ``where``: scratch of that size), then halves.
    """
    for lane in range(LANES):
        lowest[lane] = cosine[lane]
        where[lane] = lane
    for block in range(LANES, len(cosine), LANES):
        part = cosine[block : block + LANES]
        first = np.int32(block)
        for lane in range(LANES):
            here = np.int32(lane) + first
            value, low, at = part[lane], lowest[lane], where[lane]
            where[lane] = here if value < low else at
            lowest[lane] = min(low, value)
    half = LANES // 2
    while half:
        for lane in range(half):
            other = lane + half
            value, low = lowest[other], lowest[lane]
            at, there = where[lane], where[other]
            where[lane] = there if value < low else at
            lowest[lane] = min(low, value)
        half //= 2
    return int(where[0])
