"""Spherical k-means for training: the same algorithm that serving uses, on distinct items.

Training clusters anew at every step, since the projection moves; assignments and centers are
constants as far as gradients go (ENCODE, section 3.2.2).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float32]


def cluster(
    projected: Floats, weights: Floats, K: int, T: int
) -> tuple[npt.NDArray[np.int32], Floats]:
    """Cluster points by cosine, from a farthest-first start.

    The start is deterministic: the first point, then again and again the point that is least
    similar to every center so far. An iteration assigns each point to the most similar center and
    moves each center to the direction of its points' weighted mean; it stops at T or when nothing
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


@njit(cache=True, nogil=True, fastmath=True)
def spherical_kmeans(points, weights, T, labels, centers):  # type: ignore[no-untyped-def]
    """`cluster` on unit points f32[m, n] (points along the vector axis), into labels and centers.

    ``centers`` has min(n, K) rows; n may be 0.
    """
    m, n = points.shape
    K = centers.shape[0]
    if n <= K:
        for i in range(n):
            labels[i] = i
            for j in range(m):
                centers[i, j] = points[j, i]
        return
    similarity = np.empty(n, np.float32)
    best = np.full(n, np.float32(-2.0))
    newest = 0
    for k in range(K):
        for j in range(m):
            centers[k, j] = points[j, newest]
        _similarity(points, centers[k], similarity)
        for i in range(n):
            if similarity[i] > best[i]:
                best[i] = similarity[i]
                labels[i] = k
        newest = np.argmin(best)
    previous = np.empty(n, np.int32)
    sums = np.empty((K, m), np.float32)
    for _ in range(T):
        sums[:] = 0
        for i in range(n):
            for j in range(m):
                sums[labels[i], j] += weights[i] * points[j, i]
        for k in range(K):
            norm = np.float32(0.0)
            for j in range(m):
                norm += sums[k, j] * sums[k, j]
            if norm > 1e-12:  # an empty cluster, or one that cancels out, keeps its center
                for j in range(m):
                    centers[k, j] = sums[k, j] / np.sqrt(norm)
        previous[:] = labels
        best[:] = np.float32(-2.0)
        for k in range(K):
            _similarity(points, centers[k], similarity)
            for i in range(n):
                if similarity[i] > best[i]:
                    best[i] = similarity[i]
                    labels[i] = k
        if np.array_equal(previous, labels):
            return


@njit(cache=True, nogil=True, fastmath=True)
def _similarity(points, center, out):  # type: ignore[no-untyped-def]
    """Cosines of all points with one unit center."""
    m, n = points.shape
    for i in range(n):
        out[i] = points[0, i] * center[0]
    for j in range(1, m):
        for i in range(n):
            out[i] += points[j, i] * center[j]
