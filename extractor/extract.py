"""From a stored sequence to an interest state (ENCODE, Algorithm 1)."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import numpy as np

from extractor.state import COUNT_MAX, SECONDS_MAX, InterestState
from infra.arrays import F32, I32, I64, U16, U32, U64
from infra.behaviors import BEHAVIOR
from infra.store import StoredSequence, Version
from models.kernels.attention import attend_kernel
from models.kernels.clustering import cluster_kernel, plain_f32
from models.kernels.compiling import kernel

HASH_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio (Fibonacci hashing): spreads item keys that are not hashes, as tests have."""


class Dimensions(Protocol):
    """What the extractor reads of a bundle's manifest, in the papers' letters."""

    @property
    def m(self) -> int:
        """Width of a projected behavior."""

    @property
    def K(self) -> int:  # noqa: N802  # the papers' letter
        """Clusters of a user."""

    @property
    def L(self) -> int:  # noqa: N802  # the papers' letter
        """Behaviors that are clustered, at most."""

    @property
    def M(self) -> int:  # noqa: N802  # the papers' letter
        """Recent behaviors that are attended to one by one, at most."""

    @property
    def T(self) -> int:  # noqa: N802  # the papers' letter
        """Iterations of k-means, at most."""

    @property
    def scale(self) -> float:
        """What the cosine is multiplied with (Eq. 9)."""


class ItemTable(Protocol):
    """What the extractor needs of a bundle; `models.bundle.Bundle` is one."""

    @property
    def digest(self) -> bytes:
        """16 bytes that name the bundle's content."""

    @property
    def manifest(self) -> Dimensions:
        """The bundle's dimensions."""

    @property
    def embeddings(self) -> F32:
        """f32[n + 1, d], row 0 for unknown items."""

    @property
    def projected(self) -> F32:
        """f32[n + 1, m], h = W_h^T e of every row (Eq. 4)."""

    def rows(self, item_keys: U64) -> I32:
        """i32[n]: the items' rows, 0 where the bundle does not know one."""


class Extractor:
    """Makes interest states with one bundle's item table. Safe to use from several threads.

    Behaviors on one item are one point that weighs as many as they are: k-means and the softmax of
    Eq. 8 give what they would give over the repeated points. Items that the bundle does not know
    have row 0 in common and so are one point together, clustered like any other, because training
    does the same; in the history each of them counts by itself.
    """

    def __init__(self, bundle: ItemTable) -> None:
        self._bundle = bundle
        self._projected = _table(bundle.projected)
        self._embeddings = _table(bundle.embeddings)
        self.warm()

    def warm(self) -> None:
        """Have every kernel compiled (or read from the cache) before the first user waits."""
        behaviors = np.zeros(1, BEHAVIOR)
        self.extract(StoredSequence(Version(0, 1), behaviors, {}))

    def extract(
        self, sequence: StoredSequence, previous: InterestState | None = None
    ) -> InterestState:
        """The interest state of a sequence's last L behaviors.

        Args:
            sequence: the user's behaviors, oldest first; none is fine and gives empty clusters.
            previous: the user's last state. Its centers start the clustering (which then takes
                `WARM_ITERATIONS` at most) where it is of the same bundle and the same life of the
                user's record, and has seen at least half of these behaviors.
        """
        bundle, dimensions = self._bundle, self._bundle.manifest
        behaviors = sequence.behaviors[-dimensions.L :]
        keys = np.ascontiguousarray(behaviors["item"])
        summary = summarize(keys, np.ascontiguousarray(behaviors["time"]))
        rows, counts, h = _points_kernel(
            bundle.rows(summary.item_keys), summary.place, summary.counts, self._projected
        )
        assign, centers, sizes, _ = cluster_kernel(
            h, counts, self._start(sequence, previous), dimensions.K, dimensions.T
        )
        interests = attend_kernel(
            h, assign, centers, rows, self._embeddings, np.float32(dimensions.scale), counts
        )
        return InterestState(
            bundle=bundle.digest,
            epoch=sequence.version.epoch,
            count=sequence.version.count,
            centers=centers,
            sizes=sizes,
            interests=interests,
            recent=keys[-dimensions.M :],
            item_keys=summary.item_keys,
            item_counts=summary.item_counts,
            item_last=summary.item_last,
            last_time_ms=summary.last_time_ms,
            recent_length=dimensions.M,
        )

    def _start(self, sequence: StoredSequence, previous: InterestState | None) -> F32:
        """The centers to begin with, f32[<=K,m]; none for a cold start."""
        manifest = self._bundle.manifest
        if (
            previous is None
            or previous.bundle != self._bundle.digest
            or previous.epoch != sequence.version.epoch
            or previous.centers.shape != (manifest.K, manifest.m)
            or 2 * (sequence.version.count - previous.count) > len(sequence.behaviors)
        ):
            return np.empty((0, manifest.m), np.float32)
        return plain_f32(previous.centers)


def _table(array: F32) -> F32:
    """A read-only view, without a copy of the table: the one layout the kernels see."""
    view = np.require(array, np.float32, ("C", "A")).view()
    view.flags.writeable = False
    return view


class Summary(NamedTuple):
    """Behaviors by distinct item: n of them, in two orders."""

    counts: U32
    """u32[n], in the order in which the items first appear: behaviors on each."""
    place: I32
    """i32[n], in the same order: where each item stands among ``item_keys``."""
    item_keys: U64
    """u64[n], ascending."""
    item_counts: U16
    """u16[n], in the order of ``item_keys``; stops at 65,535."""
    item_last: U32
    """u32[n], likewise: the latest time of each, seconds since epoch."""
    last_time_ms: int
    """The latest time of all; 0: there are none."""


def summarize(keys: U64, times: I64) -> Summary:
    """Count behaviors by item.

    Args:
        keys: u64[L], item keys, oldest first.
        times: i64[L], event times, ms since epoch, in any order.

    >>> import numpy as np
    >>> summary = summarize(np.array([9, 4, 9], np.uint64), np.array([5000, 6000, 3000]))
    >>> summary.item_keys, summary.item_counts, summary.item_last
    (array([4, 9], dtype=uint64), array([1, 2], dtype=uint16), array([6, 5], dtype=uint32))
    """
    distinct, counts, last, table = _count_kernel(keys, times)
    item_keys = np.sort(distinct)  # vectorized, and an order of magnitude faster than argsort
    place, item_counts, item_last = _order_kernel(item_keys, distinct, counts, last, table)
    return Summary(
        counts, place, item_keys, item_counts, item_last, last_time_ms=int(last.max(initial=0))
    )


@kernel
def _count_kernel(keys: U64, times: I64) -> tuple[U64, U32, I64, I32]:
    """Distinct keys as they first appear, their counts and last times, and the hash table (open
    addressing, of their places) that found them.
    """
    size = 16
    while size < 2 * len(keys):
        size *= 2
    table = np.full(size, -1, np.int32)
    distinct = np.empty(len(keys), np.uint64)
    counts = np.empty(len(keys), np.uint32)
    last = np.empty(len(keys), np.int64)
    n = 0
    for i in range(len(keys)):
        slot = _find(keys[i], distinct, table)
        at = table[slot]
        if at < 0:
            table[slot] = n
            distinct[n], counts[n], last[n] = keys[i], 1, times[i]
            n += 1
        else:
            counts[at] += 1
            last[at] = max(last[at], times[i])
    return distinct[:n], counts[:n], last[:n], table


@kernel
def _find(key: np.uint64, distinct: U64, table: I32) -> np.uint64:
    """The slot of a key, or the free one where it belongs."""
    mask = np.uint64(len(table) - 1)
    slot = (key * HASH_FACTOR >> np.uint64(32)) & mask
    while table[slot] >= 0 and distinct[table[slot]] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@kernel
def _order_kernel(
    item_keys: U64, distinct: U64, counts: U32, last: I64, table: I32
) -> tuple[I32, U16, U32]:
    """Where each distinct key stands in sorted order, and counts and last times in that order."""
    n = len(item_keys)
    place = np.empty(n, np.int32)
    item_counts = np.empty(n, np.uint16)
    item_last = np.empty(n, np.uint32)
    for position in range(n):
        at = table[_find(item_keys[position], distinct, table)]
        place[at] = position
        item_counts[position] = min(counts[at], COUNT_MAX)
        item_last[position] = min(max(last[at] // 1000, 0), SECONDS_MAX)
    return place, item_counts, item_last


@kernel
def _points_kernel(
    sorted_rows: I32, place: I32, counts: U32, projected: F32
) -> tuple[I32, U32, F32]:
    """The points to cluster, in the order in which their items first appear: rows i32[n], counts
    u32[n] and h f32[n,m]. Unknown items (row 0) become one point, where the first of them stands.
    """
    m = projected.shape[1]
    rows = np.empty(len(place), np.int32)
    weights = np.empty(len(place), np.uint32)
    h = np.empty((len(place), m), np.float32)
    unknown = -1
    n = 0
    for i in range(len(place)):
        row = sorted_rows[place[i]]
        if row == 0 and unknown >= 0:
            weights[unknown] += counts[i]
            continue
        if row == 0:
            unknown = n
        rows[n], weights[n] = row, counts[i]
        for j in range(m):
            h[n, j] = projected[row, j]
        n += 1
    return rows[:n], weights[:n], h[:n]
