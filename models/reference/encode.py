"""ENCODE's part of plain serving: clusters as interests, and what its graph is fed of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infra.arrays import F32, I32, I64, U16, Array
from models.bundle import PROJECTION, Bundle, EncodeOffline, make_session
from models.reference.kmeans import cluster


def extract(bundle: Bundle, rows: I32, features: U16 | None = None) -> dict[str, Array]:
    """What is stored of behaviors on the items of ``rows``, by a cold clustering: "interests"
    [K, d] and "sizes" u32[K].

    Args:
        features: rows of what the network sees of the behaviors beside their items, if anything.
    """
    manifest, offline = bundle.manifest, bundle.manifest.offline
    assert isinstance(offline, EncodeOffline)
    interests = np.zeros((offline.K, manifest.d), np.float32)
    sizes = np.zeros(offline.K, np.uint32)
    places, weights = _points(rows, features, offline.K)
    embeddings, projected = _embedded(bundle, rows[places], features, places)
    labels, centers = cluster(projected, weights, offline.K, offline.T)
    for k in range(len(centers)):
        inside = labels == k
        if inside.any():
            interests[k] = pool(
                embeddings[inside],
                projected[inside],
                centers[k],
                weights[inside],
                offline.scale,
            )
            sizes[k] = int(weights[inside].sum())
    stored = np.dtype(manifest.stored["interests"].dtype)
    return {"interests": interests.astype(stored), "sizes": sizes}


def _points(rows: I32, features: U16 | None, K: int) -> tuple[I64, F32]:
    """The behaviors that are points of the clustering, and how many each stands for: one an item;
    where more is seen all, but where each is a cluster anyway.
    """
    if features is not None and len(rows) > K:
        return np.arange(len(rows)), np.ones(len(rows), np.float32)
    kinds = rows.astype(np.int64) << 16 | (0 if features is None else features)
    _, first, counts = np.unique(kinds, return_index=True, return_counts=True)
    order = np.argsort(first)
    return first[order], counts[order].astype(np.float32)


def _embedded(
    bundle: Bundle, rows: I32, features: U16 | None, places: I64 | slice
) -> tuple[F32, F32]:
    """Embeddings f32[n, d] and projections f32[n, m] of behaviors."""
    embeddings, projected = bundle.embeddings[rows], bundle.tables["projected"][rows]
    if features is None or bundle.features is None:
        return embeddings, projected
    session = make_session((bundle.path / PROJECTION).read_bytes())
    (of_features,) = session.run(["projected"], {"embeddings": bundle.features})
    acted = features[places]
    return embeddings + bundle.features[acted], projected + of_features[acted]


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
    features: U16 | None = None,
) -> dict[str, Array]:
    """The interests, and one more for each newer behavior; at least one, of nobody."""
    interests, _ = _embedded(bundle, newer, features, slice(None))
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
