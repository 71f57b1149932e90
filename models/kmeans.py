"""Spherical k-means for training: the same algorithm that serving uses, on distinct items.

Training clusters anew at every step, since the projection moves; assignments and centers are
constants as far as gradients go (ENCODE, section 3.2.2). Kernels that call each other stand in one
file, because numba's cache on disk notices a change of a kernel's own file alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.kernels import kernel

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]
Labels = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


def cluster(projected: Floats, weights: Floats, K: int, T: int) -> tuple[Labels, Floats]:
    """Cluster points by cosine, from a farthest-first start.

    The start is deterministic: the heaviest point, then again and again the point that is least
    similar to every center so far. An iteration moves each center to the direction of its points'
    weighted sum and assigns each point to the most similar center; it stops at T or when nothing
    changes. With no more points than clusters, each point is a cluster of its own.

    Args:
        projected: f32[n, m]; length does not matter.
        weights: f32[n], behaviors that a point stands for.
        K: clusters, at most.
        T: iterations, at most.

    Returns:
        Labels i32[n] in [0, min(n, K)) and centers f32[min(n, K), m] of unit length. A label that
        no point carries is an empty cluster.

    >>> points = np.array([[1, 0], [0, 2], [3, 0.1]], np.float32)
    >>> cluster(points, np.ones(3, np.float32), K=2, T=15)[0].tolist()
    [0, 1, 0]
    """
    norm = np.linalg.norm(projected, axis=1, keepdims=True)
    points = np.ascontiguousarray((projected / np.maximum(norm, 1e-12)).T, np.float32)
    labels = np.empty(points.shape[1], np.int32)
    centers = np.empty((min(K, points.shape[1]), points.shape[0]), np.float32)
    spherical_kmeans(points, weights.astype(np.float32), T, labels, centers)
    return labels, centers


@kernel
def spherical_kmeans(
    points: Floats, weights: Floats, T: int, labels: Labels, centers: Floats
) -> None:
    """`cluster` on unit points f32[m, n] (points along the vector axis), into labels and centers.

    ``centers`` has min(n, K) rows; n may be 0.
    """
    n = points.shape[1]
    if n <= len(centers):
        for i in range(n):
            labels[i] = i
            centers[i] = points[:, i]
        return
    labels[:] = 0  # a point that is not a number is more similar to nothing, and stays here
    best = np.full(n, np.float32(-2.0))
    similarity = np.empty(n, np.float32)
    start = np.argmax(weights)
    for k in range(len(centers)):
        centers[k] = points[:, start]
        _meet(points, centers[k], k, similarity, best, labels)
        start = np.argmin(best)
    previous = np.empty(n, np.int32)
    sums = np.empty(centers.shape, np.float32)
    for _ in range(T - 1):  # the start was the first assignment
        _move(points, weights, labels, sums, centers)
        previous[:] = labels
        best[:] = np.float32(-2.0)
        for k in range(len(centers)):
            _meet(points, centers[k], k, similarity, best, labels)
        if np.array_equal(previous, labels):
            return
    _move(points, weights, labels, sums, centers)


@kernel
def _meet(
    points: Floats, center: Floats, k: int, similarity: Floats, best: Floats, labels: Labels
) -> None:
    """Give to center k the points that are more similar to it than to those before."""
    m, n = points.shape
    similarity[:] = 0
    for j in range(m):
        for i in range(n):
            similarity[i] += points[j, i] * center[j]
    for i in range(n):
        if similarity[i] > best[i]:
            best[i] = similarity[i]
            labels[i] = k


@kernel
def _move(points: Floats, weights: Floats, labels: Labels, sums: Floats, centers: Floats) -> None:
    """Point each center where its points point together; an empty cluster, or one whose points
    cancel each other out, keeps its center.
    """
    m, n = points.shape
    sums[:] = 0
    for i in range(n):
        for j in range(m):
            sums[labels[i], j] += weights[i] * points[j, i]
    for k in range(len(centers)):
        norm = np.sqrt(np.sum(sums[k] * sums[k]))
        if norm > 1e-6:
            centers[k] = sums[k] / norm


@kernel
def cluster_requests(
    known: Rows,
    starts: Ints,
    clustered: Ints,
    sizes: Ints,
    directions: Floats,
    K: int,
    T: int,
) -> tuple[Ints, Floats, Ints, Floats, Ints, Ints]:
    """Cluster the first ``clustered`` of each request's ``sizes`` behaviors, and let each of the
    newer ones stand alone.

    Returns:
        Of the members rows, counts and clusters, of the clusters centers, requests and places.
    """
    most = len(known)
    rows = np.empty(most, np.int64)
    counts = np.empty(most, np.float32)
    cluster = np.empty(most, np.int64)
    centers = np.empty((most, directions.shape[1]), np.float32)
    owner = np.empty(most, np.int64)
    place = np.empty(most, np.int64)
    member_of = np.full(len(directions), -1, np.int64)
    members = clusters = 0
    for r in range(len(starts)):
        first = clusters
        old = known[starts[r] : starts[r] + clustered[r]]
        n = _distinct(old, member_of, rows[members:], counts[members:])
        made = _cluster_members(
            rows[members : members + n],
            counts[members : members + n],
            cluster[members : members + n],
            centers[clusters:],
            directions,
            K,
            T,
        )
        cluster[members : members + n] += clusters
        members += n
        clusters += made
        for i in range(starts[r] + clustered[r], starts[r] + sizes[r]):
            rows[members] = known[i]
            counts[members] = 1
            cluster[members] = clusters
            centers[clusters] = directions[known[i]]
            members += 1
            clusters += 1
        for k in range(first, clusters):
            owner[k] = r
            place[k] = k - first
    return (
        rows[:members],
        counts[:members],
        cluster[:members],
        centers[:clusters],
        owner[:clusters],
        place[:clusters],
    )


@kernel
def _distinct(known: Rows, member_of: Ints, rows: Ints, counts: Floats) -> int:
    """Write the distinct rows, in order of occurrence, and their counts; how many they are.

    ``member_of`` is scratch, -1 throughout before and after.
    """
    n = 0
    for row in known:
        if member_of[row] < 0:
            member_of[row] = n
            rows[n] = row
            counts[n] = 0
            n += 1
        counts[member_of[row]] += 1
    for i in range(n):
        member_of[rows[i]] = -1
    return n


@kernel
def _cluster_members(
    rows: Ints,
    counts: Floats,
    cluster: Ints,
    centers: Floats,
    directions: Floats,
    K: int,
    T: int,
) -> int:
    """Cluster one request's members and sort them by cluster; how many clusters are not empty."""
    n, m = len(rows), directions.shape[1]
    points = np.empty((m, n), np.float32)
    for i in range(n):
        points[:, i] = directions[rows[i]]
    labels = np.empty(n, np.int32)
    own = np.empty((min(n, K), m), np.float32)
    spherical_kmeans(points, counts, T, labels, own)
    order = np.argsort(labels, kind="mergesort")
    rows[:] = rows[order]
    counts[:] = counts[order]
    made = 0
    for i in range(n):
        label = labels[order[i]]
        if i == 0 or label != labels[order[i - 1]]:
            centers[made] = own[label]
            made += 1
        cluster[i] = made - 1
    return made


@kernel
def cluster_each(directions: Floats, mask: Flags, T: int, labels: Ints, centers: Floats) -> None:
    """`spherical_kmeans` of each sequence's behaviors, into labels i64[R, L] and f32[R, K, m]."""
    for r in range(len(mask)):
        n = mask[r].sum()
        points = np.empty((directions.shape[2], n), np.float32)
        place = np.empty(n, np.int64)
        at = 0
        for i in range(mask.shape[1]):
            if mask[r, i]:
                points[:, at] = directions[r, i]
                place[at] = i
                at += 1
        own = np.empty(n, np.int32)
        spherical_kmeans(
            points, np.ones(n, np.float32), T, own, centers[r, : min(n, len(centers[r]))]
        )
        for i in range(n):
            labels[r, place[i]] = own[i]
