"""From users' distinct items to their interests (ENCODE, Algorithm 1), several users a call.

Users lie end to end in every array, and bounds say where each begins: a call costs as much as the
clustering of a few behaviors, and so do the arrays that it is given and gives back.
"""

from __future__ import annotations

import numpy as np

from infra.arrays import F32, I32, I64, U32
from infra.compiling import kernel
from models.kernels.attention import attend_kernel
from models.kernels.clustering import cluster_kernel


@kernel
def interests_kernel(  # noqa: PLR0917  # kernels take nothing by name
    rows: I32,
    counts: U32,
    bounds: I64,
    start: F32,
    start_bounds: I64,
    projected: F32,
    embeddings: F32,
    clusters: int,
    iterations: int,
    scale: np.float32,
) -> tuple[F32, F32, U32, I64]:
    """The interests of U users, n distinct items of theirs together.

    Items that the tables do not know (row 0) become one point, where the first of them stands.

    Args:
        rows: i32[n], rows of the items in the tables.
        counts: u32[n], behaviors on each.
        bounds: i64[U+1], where each user's items begin.
        start: f32[s,m], centers at which the clustering begins.
        start_bounds: i64[U+1], where each user's begin; none for a cold start.
        projected: f32[N,m], h of every item.
        embeddings: f32[N,d].
        clusters: K.
        iterations: T.
        scale: what the cosine is multiplied with (Eq. 9).

    Returns:
        centers f32[c,m], interests f32[c,d] and sizes u32[c] of the clusters that have members,
        and i64[U+1], where each user's begin.
    """
    users, m = len(bounds) - 1, projected.shape[1]
    centers = np.empty((users * clusters, m), np.float32)
    interests = np.empty((users * clusters, embeddings.shape[1]), np.float32)
    sizes = np.empty(users * clusters, np.uint32)
    found = np.zeros(users + 1, np.int64)
    at = 0
    for user in range(users):
        begin, end = bounds[user], bounds[user + 1]
        points, weights, h = _points(rows[begin:end], counts[begin:end], projected)
        old = start[start_bounds[user] : start_bounds[user + 1]]
        assign, directions, members, _ = cluster_kernel(h, weights, old, clusters, iterations)
        vectors = attend_kernel(h, assign, directions, points, embeddings, scale, weights)
        for k in range(clusters):
            if members[k]:
                centers[at] = directions[k]
                interests[at] = vectors[k]
                sizes[at] = members[k]
                at += 1
        found[user + 1] = at
    return centers[:at], interests[:at], sizes[:at], found


@kernel
def _points(rows: I32, counts: U32, projected: F32) -> tuple[I32, U32, F32]:
    """A user's points: rows i32[p], weights u32[p] and h f32[p,m]."""
    m = projected.shape[1]
    points = np.empty(len(rows), np.int32)
    weights = np.empty(len(rows), np.uint32)
    h = np.empty((len(rows), m), np.float32)
    unknown = -1
    n = 0
    for i in range(len(rows)):
        row = rows[i]
        if row == 0 and unknown >= 0:
            weights[unknown] += counts[i]
            continue
        if row == 0:
            unknown = n
        points[n], weights[n] = row, counts[i]
        for j in range(m):
            h[n, j] = projected[row, j]
        n += 1
    return points[:n], weights[:n], h[:n]
