"""A user's history: the distinct items of their behaviors, how often and when last each was met.

All systems count it alike: from a whole sequence when a state is extracted (`count_items`), and on
from there with the behaviors newer than the state when a request is scored (`add_behaviors`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from infra.arrays import I32, I64, U16, U32, U64
from infra.store import Behaviors
from models.features import History
from models.kernels.compiling import kernel

COUNT_MAX: Final = np.iinfo(np.uint16).max
SECONDS_MAX: Final = np.iinfo(np.uint32).max

HASH_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio (Fibonacci hashing): spreads item keys that are not hashes, as tests have."""


class ItemCounts(NamedTuple):
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


def count_items(keys: U64, times: I64) -> ItemCounts:
    """Count behaviors by item.

    Args:
        keys: u64[L], item keys, oldest first.
        times: i64[L], event times, ms since epoch, in any order.

    >>> import numpy as np
    >>> found = count_items(np.array([9, 4, 9], np.uint64), np.array([5000, 6000, 3000]))
    >>> found.item_keys, found.item_counts, found.item_last
    (array([4, 9], dtype=uint64), array([1, 2], dtype=uint16), array([6, 5], dtype=uint32))
    """
    distinct, counts, last, table = _count_kernel(keys, times)
    item_keys = np.sort(distinct)  # vectorized, and an order of magnitude faster than argsort
    place, item_counts, item_last = _order_kernel(item_keys, distinct, counts, last, table)
    return ItemCounts(
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


def add_behaviors(history: History, behaviors: Behaviors) -> History:
    """A history with further behaviors counted in; ``behaviors`` is BEHAVIOR[n] in any order.

    Counts stop at 65,535. The result covers more than the last L behaviors where the history
    covered L, since the oldest cannot be told any more.
    """
    if not len(behaviors):
        return history
    keys = np.ascontiguousarray(behaviors["item"])
    order = np.argsort(keys, kind="stable")
    merged_keys, counts, last = _merge_kernel(
        # Copies, since arrays that are read-only would be compiled for anew.
        history.item_keys.astype(np.uint64),
        history.counts.astype(np.int64),
        history.last.astype(np.int64),
        keys[order],
        np.ascontiguousarray(behaviors["time"])[order],
    )
    return History(merged_keys, counts, last)


@kernel
def _merge_kernel(
    item_keys: U64, item_counts: I64, item_last: I64, keys: U64, times: I64
) -> tuple[U64, U16, U32]:
    """A history, and behaviors in the order of their keys, merged into one."""
    n, m = len(item_keys), len(keys)
    merged = np.empty(n + m, np.uint64)
    counts = np.empty(n + m, np.uint16)
    last = np.empty(n + m, np.uint32)
    i = j = at = 0
    while i < n or j < m:
        count, latest = 0, 0
        key = item_keys[i] if j == m or (i < n and item_keys[i] <= keys[j]) else keys[j]
        if i < n and item_keys[i] == key:
            count, latest = int(item_counts[i]), int(item_last[i])
            i += 1
        while j < m and keys[j] == key:
            count += 1
            latest = max(latest, int(times[j]) // 1000)
            j += 1
        merged[at] = key
        counts[at] = min(count, COUNT_MAX)
        last[at] = min(max(latest, 0), SECONDS_MAX)
        at += 1
    return merged[:at], counts[:at], last[:at]
