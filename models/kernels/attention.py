"""In-cluster target attention: from clusters to interests (ENCODE, Eqs. 8 and 9).

The compiled form, by which the services make interests. Training needs gradients and has the same
weights in torch, in `models.networks.encode.Encode.extract`; that module's tests hold the one
against the other.
"""

from __future__ import annotations

import numpy as np

from infra.arrays import F32, I32, U32
from infra.compiling import fast_kernel, kernel
from models.kernels.clustering import plain_f32, plain_u32


def attend(
    h: F32,
    assign: I32,
    centers: F32,
    rows: I32,
    embeddings: F32,
    scale: float,
    counts: U32 | None = None,
) -> F32:
    """The interests of clusters: u_k = sum over members i of softmax(scale * cos(h_i, c_k)) s_i.

    The softmax runs within each cluster, shifted by the largest score. A cluster without members
    has the zero vector.

    Args:
        h: f32[L,m], projected behaviors.
        assign: i32[L], their clusters in [0, K); -1: in none.
        centers: f32[K,m], unit length.
        rows: i32[L], the row of ``embeddings`` that holds each behavior's s; gathered here, so
            that nobody copies s out of the table.
        embeddings: f32[N,d], the item table.
        scale: what the cosine is multiplied with: 1/beta where beta divides (Eq. 9 as written),
            beta where it multiplies (`models.bundle.EncodeOffline.scale`).
        counts: u32[L], how many behaviors each row stands for; None: one each.

    Returns:
        f32[K,d].

    >>> import numpy as np
    >>> h = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    >>> table = np.array([[1.0], [3.0], [7.0]], np.float32)
    >>> own = np.array([0, 0, 1], np.int32)
    >>> attend(h, own, h[[0, 2]], np.arange(3, dtype=np.int32), table, scale=20.0).ravel()
    array([2., 7.], dtype=float32)
    """
    if counts is None:
        counts = np.ones(len(h), np.uint32)
    return attend_kernel(
        plain_f32(h),
        np.require(assign, np.int32, ("C", "A", "W")),
        plain_f32(centers),
        np.require(rows, np.int32, ("C", "A", "W")),
        plain_f32(embeddings),
        np.float32(scale),
        plain_u32(counts),
    )


@kernel
def attend_kernel(
    h: F32,
    assign: I32,
    centers: F32,
    rows: I32,
    embeddings: F32,
    scale: np.float32,
    counts: U32,
) -> F32:
    """The loops of `attend`; arrays are in the layout that `plain_f32` makes."""
    length, m = h.shape
    clusters = len(centers)
    scores = np.empty(length, np.float32)
    largest = np.full(clusters, -np.inf, np.float32)
    for i in range(length):
        k = assign[i]
        if k < 0:
            continue
        dot, squared = 0.0, 0.0
        for j in range(m):
            value = np.float64(h[i, j])
            dot += value * centers[k, j]
            squared += value * value
        scores[i] = scale * np.float32(dot / np.sqrt(squared))
        largest[k] = max(largest[k], scores[i])

    totals = np.zeros(clusters, np.float32)
    for i in range(length):
        k = assign[i]
        if k >= 0:
            scores[i] = counts[i] * np.exp(scores[i] - largest[k])
            totals[k] += scores[i]

    interests = np.zeros((clusters, embeddings.shape[1]), np.float32)
    for i in range(length):
        k = assign[i]
        if k >= 0:
            _add(interests[k], embeddings[rows[i]], scores[i] / totals[k])
    return interests


@fast_kernel
def _add(total: F32, vector: F32, weight: np.float32) -> None:
    for j in range(len(total)):
        total[j] += weight * vector[j]
