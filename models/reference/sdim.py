"""SDIM's part of plain serving: buckets, and the long-term vectors that candidates find in them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infra.arrays import I32, U16, Array
from models.bundle import LONG_TERM, Bundle, SDIMOffline


def extract(bundle: Bundle, rows: I32, features: U16 | None = None) -> dict[str, Array]:
    """What is stored of behaviors on the items of ``rows``: "buckets" [G * 2^tau, d] and "sizes"
    u32[G * 2^tau].

    Args:
        features: rows of what the network sees of the behaviors beside their items, if anything.
    """
    offline = bundle.manifest.offline
    assert isinstance(offline, SDIMOffline)
    buckets = np.zeros((offline.buckets, bundle.manifest.d), np.float64)
    sizes = np.zeros(offline.buckets, np.uint32)
    embeddings = bundle.embeddings[rows]
    if features is not None and bundle.features is not None:
        embeddings = embeddings + bundle.features[features]
    for places in _places(bundle, offline, rows).T:
        np.add.at(buckets, places, embeddings)
        np.add.at(sizes, places, 1)
    return {"buckets": buckets.astype(bundle.manifest.stored["buckets"].dtype), "sizes": sizes}


def feed(
    bundle: Bundle,
    tensors: Mapping[str, Array],
    newer: I32,
    candidates: I32,
    features: U16 | None = None,
) -> dict[str, Array]:
    """The mean over groups of the candidates' buckets (SDIM, Eq. 12), newer behaviors added."""
    offline = bundle.manifest.offline
    assert isinstance(offline, SDIMOffline)
    added = extract(bundle, newer, features)
    buckets, sizes = added["buckets"].astype(np.float64), added["sizes"]
    if tensors:
        buckets, sizes = buckets + tensors["buckets"], sizes + tensors["sizes"]
    divisor = np.maximum(np.linalg.norm(buckets, axis=1), 1e-6)
    if offline.normalization == "mean":
        divisor = np.maximum(sizes, 1)
    found = (buckets / divisor[:, None])[_places(bundle, offline, candidates)]
    return {LONG_TERM: found.mean(axis=1).astype(np.float32)}


def _places(bundle: Bundle, offline: SDIMOffline, rows: I32) -> Array:
    """i64[n, G]: the items' buckets, numbered through all groups."""
    first = np.arange(offline.groups) << offline.tau
    places: Array = bundle.tables["signatures"][rows] + first
    return places
