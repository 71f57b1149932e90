"""TWIN's part of plain serving: nothing stored but which items, and the search over all of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infra.arrays import F32, I32, Array
from models.bundle import LONG_TERM, Bundle, TWINOffline


def extract(bundle: Bundle, rows: I32) -> dict[str, Array]:  # noqa: ARG001  # the rows are all
    """What is known of behaviors on the items of ``rows``: "rows" i32[L]."""
    return {"rows": rows}


def feed(
    bundle: Bundle, tensors: Mapping[str, Array], newer: I32, candidates: I32
) -> dict[str, Array]:
    """The heads' attention (TWIN, Eq. 7) to what the search finds, side by side."""
    offline = bundle.manifest.offline
    assert isinstance(offline, TWINOffline)
    rows = np.concatenate((tensors["rows"], newer)) if tensors else newer
    rows = rows[-bundle.manifest.L :]
    found = np.zeros((len(candidates), offline.width), np.float32)
    if len(rows):
        queries, keys, values = (
            _by_head(bundle.tables[name][of], offline.heads)
            for name, of in (("queries", candidates), ("keys", rows), ("values", rows))
        )
        scores = queries @ keys.transpose(0, 2, 1)
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
