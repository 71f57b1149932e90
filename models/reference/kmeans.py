"""Spherical k-means stated a second time: what `models.kernels.clustering` is held against.

Training and serving both cluster by that kernel. This statement of the algorithm is for the
reference evaluation (`models.reference.serving`) and for tests: it sums every center anew and
compares every point with every center, at every iteration.
"""

from __future__ import annotations

import numpy as np

from infra.arrays import F32, I32
from infra.compiling import fast_kernel


def cluster(projected: F32, weights: F32, K: int, T: int) -> tuple[I32, F32]:
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


@fast_kernel
def spherical_kmeans(points: F32, weights: F32, T: int, labels: I32, centers: F32) -> None:
    """The loops of `cluster`, on unit points f32[m, n], into labels and centers.

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


@fast_kernel
def _meet(points: F32, center: F32, k: int, similarity: F32, best: F32, labels: I32) -> None:
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


@fast_kernel
def _move(points: F32, weights: F32, labels: I32, sums: F32, centers: F32) -> None:
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
