"""ENCODE's part of plain serving: clusters as interests, and what its graph is fed of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infra.arrays import F32, I32, Array
from models.bundle import Bundle, EncodeOffline
from models.reference.kmeans import cluster


def extract(bundle: Bundle, rows: I32) -> dict[str, Array]:
    """What is stored of behaviors on the items of ``rows``, by a cold clustering: "interests"
    [K, d] and "sizes" u32[K].
    """
    manifest, offline = bundle.manifest, bundle.manifest.offline
    assert isinstance(offline, EncodeOffline)
    interests = np.zeros((offline.K, manifest.d), np.float32)
    sizes = np.zeros(offline.K, np.uint32)
    items, first, counts = np.unique(rows, return_index=True, return_counts=True)
    order = np.argsort(first)
    items, weights = items[order], counts[order].astype(np.float32)
    projected = bundle.tables["projected"][items]
    labels, centers = cluster(projected, weights, offline.K, offline.T)
    for k in range(len(centers)):
        inside = labels == k
        if inside.any():
            interests[k] = pool(
                bundle.embeddings[items[inside]],
                projected[inside],
                centers[k],
                weights[inside],
                offline.scale,
            )
            sizes[k] = int(weights[inside].sum())
    stored = np.dtype(manifest.stored["interests"].dtype)
    return {"interests": interests.astype(stored), "sizes": sizes}


def pool(embeddings: F32, projected: F32, center: F32, counts: F32, scale: float) -> F32:
    """One cluster's interest f32[d] (ENCODE, Eq. 8), of embeddings [n, d] and projected [n, m]."""
    norms = np.linalg.norm(projected, axis=1) * np.linalg.norm(center)
    scores = projected @ center / np.maximum(norms, 1e-12) * scale
    weights = counts * np.exp(scores - scores.max())
    pooled: F32 = ((weights / weights.sum()) @ embeddings).astype(np.float32)
    return pooled


def feed(
    bundle: Bundle,
    tensors: Mapping[str, Array],
    newer: I32,
    candidates: I32,  # noqa: ARG001  # the graph itself attends
) -> dict[str, Array]:
    """The interests, and one more for each newer behavior; at least one, of nobody."""
    interests = bundle.embeddings[newer]
    sizes = np.ones(len(newer), np.float32)
    if tensors:
        interests = np.concatenate([tensors["interests"], interests])
        sizes = np.concatenate([tensors["sizes"], sizes])
    if not len(sizes):
        interests, sizes = np.zeros((1, bundle.manifest.d), np.float32), np.zeros(1, np.float32)
    return {
        "interests": interests.astype(np.float32, copy=False),
        "sizes": sizes.astype(np.float32, copy=False),
    }
