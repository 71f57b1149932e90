"""TWIN's part of plain serving: nothing stored but which items, and the search over all of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infra.arrays import F32, I32, U16, Array
from models.bundle import LONG_TERM, PROJECTION, Bundle, TWINOffline, make_session


def extract(
    bundle: Bundle,  # noqa: ARG001  # behaviors are all
    rows: I32,
    features: U16 | None = None,
) -> dict[str, Array]:
    """What is known of behaviors on the items of ``rows``: "rows" i32[L], "features" u16[L]."""
    if features is None:
        features = np.zeros(len(rows), np.uint16)
    return {"rows": rows, "features": features}


def feed(
    bundle: Bundle,
    tensors: Mapping[str, Array],
    newer: I32,
    candidates: I32,
    features: U16 | None = None,
) -> dict[str, Array]:
    """The heads' attention (TWIN, Eq. 7) to what the search finds, side by side."""
    offline = bundle.manifest.offline
    assert isinstance(offline, TWINOffline)
    added = extract(bundle, newer, features)
    known = [tensors, added] if tensors else [added]
    rows, acted = (
        np.concatenate([of[name] for of in known])[-bundle.manifest.L :]
        for name in ("rows", "features")
    )
    found = np.zeros((len(candidates), offline.width), np.float32)
    if len(rows):
        queries, keys, values = (
            _by_head(bundle.tables[name][of], offline.heads)
            for name, of in (("queries", candidates), ("keys", rows), ("values", rows))
        )
        scores = queries @ keys.transpose(0, 2, 1)
        if offline.cross:
            # Eq. 5, and the features' part of K in Eq. 7.
            biases = {name: np.array(one, np.float32) for name, one in offline.cross.items()}
            scores += bundle.combinations.summed(biases).T[:, None, acted]
            session = make_session((bundle.path / PROJECTION).read_bytes())
            (of_features,) = session.run(["values"], {"embeddings": bundle.features})
            values = values + _by_head(of_features[acted], offline.heads)
        scores[:, ~_searched(scores, offline.k)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads = weights / weights.sum(-1, keepdims=True) @ values
        found = heads.transpose(1, 0, 2).reshape(found.shape)
    return {LONG_TERM: found.astype(np.float32)}


def _by_head(rows: Array, heads: int) -> F32:
    """[n, heads * w] -> f32[heads, n, w]"""
    by_head: F32 = rows.astype(np.float32).reshape(len(rows), heads, -1).transpose(1, 0, 2)
    return by_head


def _searched(scores: F32, k: int) -> Array:
    """bool[B, L]: the first k by scores f32[heads, B, L], the heads' rankings taken in turns."""
    heads, _, L = scores.shape
    newest_first = np.argsort(-scores[..., ::-1], axis=-1, kind="stable")
    turns = np.empty(scores.shape, np.int64)
    ranks = np.broadcast_to(np.arange(L), scores.shape)
    np.put_along_axis(turns, L - 1 - newest_first, ranks, axis=-1)
    earliest = (turns * heads + np.arange(heads)[:, None, None]).min(axis=0)
    last = np.partition(earliest, min(k, L) - 1, axis=-1)[:, [min(k, L) - 1]]
    found: Array = earliest <= last
    return found
