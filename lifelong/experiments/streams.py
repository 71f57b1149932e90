"""Sequences that are clustered again and again as they grow: warm, as a worker does it, and cold.

`Stream` feeds users' behaviors to the extractor that serves, with the items of a trained network,
and says of each reclustering how the two ways compare.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from extractor.state import DIGEST_BYTES, InterestState
from extractor.systems.encode import PROJECTED, Extractor, interests_of
from infra.arrays import F32, I32, I64, U64, Array, Bools
from infra.behaviors import BEHAVIOR
from infra.settings import StoreSettings
from infra.store import Behaviors, StoredSequence, Version
from models.bundle import EncodeOffline
from models.data.splits import Split
from models.network import Network
from models.networks.encode import Encode

FIGURES: Final = np.dtype(
    [
        ("user", "i8"),
        ("warm_starts", "i8"),
        ("objective", "f8", 2),
        ("stays", "f8", 2),
        ("cpu_s", "f8", 2),
        ("agreement", "f8"),
    ]
)
"""One reclustering: where the user's sequence starts, warm starts in a row (this one included), and
what `warm_starts.measure_warm_starts` says of it; of pairs warm is first."""

Figures = npt.NDArray[np.void]
"""Array of FIGURES, a user's one after another."""


class States(NamedTuple):
    """One user's state, clustered in both ways."""

    warm: InterestState
    cold: InterestState


class _Dimensions(NamedTuple):
    L: int
    M: int


@dataclass(frozen=True)
class Items:
    """A trained network's item table, as the extractor reads it; an item's key is its row."""

    digest: bytes
    manifest: _Dimensions
    offline: EncodeOffline
    embeddings: F32
    tables: Mapping[str, Array]
    known: Bools
    """bool[n + 1]: items with a behavior in the training part; others have row 0."""

    @classmethod
    def of(cls, network: Network, L: int, known: Bools) -> Items:
        long = network.long
        assert isinstance(long, Encode)
        with torch.no_grad():
            table = network.item_table().detach()
            projected = long.per_item(table)[PROJECTED]
            scale = float(long.scale)
        config = long.config
        return cls(
            digest=bytes(DIGEST_BYTES),
            manifest=_Dimensions(L, network.config.M),
            offline=EncodeOffline(m=config.m, K=config.K, T=config.T, scale=scale),
            embeddings=table.numpy(),
            tables={PROJECTED: projected.numpy()},
            known=known,
        )

    def rows(self, item_keys: U64) -> I32:
        rows = item_keys.astype(np.int32)
        return np.where(self.known[rows], rows, np.int32(0))


def behaviors_of(samples: Split, begin: int, end: int) -> Behaviors:
    """The behaviors [begin, end) of the sequences as a store keeps them."""
    behaviors = np.zeros(end - begin, BEHAVIOR)
    behaviors["item"] = samples.sequences.items[begin:end]
    behaviors["time"] = samples.sequences.times[begin:end] * 1000
    return behaviors


class Stream:
    """Clusters users' sequences again and again as they grow."""

    def __init__(self, items: Items) -> None:
        self._items, self._extractor = items, Extractor(items, items.offline)
        projected = items.tables[PROJECTED]
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        self._directions = projected / np.maximum(norms, 1e-30)
        self._directed = norms[:, 0] > 0
        self._length = max(items.manifest.L, StoreSettings().length)
        self._turn = 0
        # Its time is told, and compiling is none of it.
        self._extractor.extract(StoredSequence(Version(1, 1), np.zeros(1, BEHAVIOR), {}))

    def run(self, behaviors: Behaviors, step: int) -> Iterator[tuple[int, States, tuple[Any, ...]]]:
        """Both clusterings after each ``step`` behaviors: how many behaviors had come, the states,
        and FIGURES but for the user.
        """
        K, L = self._items.offline.K, self._items.manifest.L
        before: States | None = None
        self._turn += 1
        for warm_starts, seen in enumerate(range(step, len(behaviors) + 1, step)):
            window = behaviors[max(seen - L, 0) : seen]
            stored = behaviors[max(seen - self._length, 0) : seen]
            sequence = StoredSequence(Version(1, seen), stored, {})
            previous = before.warm if before else None
            # Taking turns, also from user to user: who comes second finds the cache filled.
            if (warm_starts + self._turn) % 2:
                warm, warm_s = self._extract(sequence, previous)
                cold, cold_s = self._extract(sequence, None)
            else:
                cold, cold_s = self._extract(sequence, None)
                warm, warm_s = self._extract(sequence, previous)
            both = States(warm, cold)
            h, known = self._points(window), self._points(window[:-step])
            (labels, objective), (cold_labels, cold_objective) = (nearest(h, one) for one in both)
            stays = (math.nan, math.nan)
            if before is not None:
                stays = (
                    agreement(nearest(known, before.warm)[0], labels[: len(known)], K),
                    agreement(nearest(known, before.cold)[0], cold_labels[: len(known)], K),
                )
            alike = agreement(labels, cold_labels, K)
            figures = (warm_starts, (objective, cold_objective), stays, (warm_s, cold_s), alike)
            yield seen, both, figures
            before = both

    def _extract(
        self, sequence: StoredSequence, previous: InterestState | None
    ) -> tuple[InterestState, float]:
        began = time.thread_time()
        state = self._extractor.extract(sequence, previous)
        return state, time.thread_time() - began

    def _points(self, behaviors: Behaviors) -> F32:
        """f32[n, m]: the directions of those behaviors that have one."""
        rows = self._items.rows(np.ascontiguousarray(behaviors["item"]))
        points: F32 = self._directions[rows[self._directed[rows]]]
        return points


def nearest(h: F32, state: InterestState) -> tuple[I64, float]:
    """The nearest center of each direction f32[n, m], i64[n], and the mean cosine to it."""
    if not len(h):
        return np.empty(0, np.int64), math.nan
    cosines = h @ interests_of(state).centers.T
    return cosines.argmax(1), float(cosines.max(1).mean())


def agreement(first: I64, second: I64, clusters: int) -> float:
    """Share of behaviors that two clusterings put alike, f64 in [0, 1].

    Clusters have no names in common, so each of the one is matched with one of the other, those
    that overlap most first.

    Args:
        first: i64[L], clusters in [0, K).
        second: i64[L], the other clustering's, in [0, K) too.
        clusters: K.

    >>> agreement(np.array([0, 0, 1, 1]), np.array([2, 2, 0, 2]), clusters=3)
    0.75
    """
    if not len(first):
        return math.nan
    overlap = np.bincount(first * clusters + second, minlength=clusters * clusters)
    table = overlap.reshape(clusters, clusters)
    alike = 0
    while found := int(table.max()):
        one, other = divmod(int(table.argmax()), clusters)
        table[one] = 0
        table[:, other] = 0
        alike += found
    return alike / len(first)
