"""A user's history: the distinct items of their behaviors, how often and when last each was met.

All systems count it alike: from a whole sequence when a state is extracted (`count_items`), and on
from there with the behaviors newer than the state when a request is scored (`add_behaviors`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, starmap
from typing import Final, NamedTuple

import numpy as np

from infra.arrays import I32, I64, U16, U32, U64
from infra.compiling import kernel
from infra.store import Behaviors
from models.features import History

COUNT_MAX: Final = np.iinfo(np.uint16).max
SECONDS_MAX: Final = np.iinfo(np.uint32).max

HASH_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio (Fibonacci hashing): spreads item keys that are not hashes, as tests have."""


class ItemCounts(NamedTuple):
    """Behaviors of U users by distinct item, n of them; users lie end to end."""

    items: U64
    """u64[n], a user's in the order in which they first appear."""
    counts: U32
    """u32[n], in the same order: behaviors on each."""
    item_keys: U64
    """u64[n], a user's in ascending order."""
    item_counts: U16
    """u16[n], in the order of ``item_keys``; stops at 65,535."""
    item_last: U32
    """u32[n], likewise: the latest time of each, seconds since epoch."""
    bounds: I64
    """i64[U+1]: where each user's items begin."""
    last_times_ms: I64
    """i64[U]: the latest time of each user; 0: there are no behaviors."""

    def histories(self) -> Iterator[History]:
        """The users' histories."""
        for mine in slices(self.bounds):
            yield History(self.item_keys[mine], self.item_counts[mine], self.item_last[mine])


def slices(bounds: I64) -> Iterator[slice]:
    """Where each of those is who lie end to end, by where each begins and the last one ends."""
    return starmap(slice, pairwise(bounds.tolist()))


def count_items(keys: U64, times: I64, bounds: I64 | None = None) -> ItemCounts:
    """Count behaviors by item.

    Args:
        keys: u64[L], item keys, a user's oldest first.
        times: i64[L], event times, ms since epoch, in any order.
        bounds: i64[U+1], where each user's behaviors begin; None: all are of one.

    >>> import numpy as np
    >>> found = count_items(np.array([9, 4, 9], np.uint64), np.array([5000, 6000, 3000]))
    >>> found.item_keys, found.item_counts, found.item_last
    (array([4, 9], dtype=uint64), array([1, 2], dtype=uint16), array([6, 5], dtype=uint32))
    """
    if bounds is None:
        bounds = np.array([0, len(keys)])
    # One kind of array each: for a read-only one, as a single behavior of a record is, a request
    # would wait for the compiler.
    keys = np.require(keys, np.uint64, ("C", "A", "W"))
    times = np.require(times, np.int64, ("C", "A", "W"))
    return ItemCounts(*_count_kernel(keys, times, bounds))


@kernel
def _count_kernel(keys: U64, times: I64, bounds: I64) -> tuple[U64, U32, U64, U16, U32, I64, I64]:
    """The loops of `count_items`, with a hash table (open addressing, of the items' places)."""
    users, length = len(bounds) - 1, len(keys)
    items = np.empty(length, np.uint64)
    counts = np.empty(length, np.uint32)
    last = np.empty(length, np.int64)
    item_keys = np.empty(length, np.uint64)
    item_counts = np.empty(length, np.uint16)
    item_last = np.empty(length, np.uint32)
    found = np.zeros(users + 1, np.int64)
    last_times_ms = np.zeros(users, np.int64)
    longest = 0
    for user in range(users):
        longest = max(longest, bounds[user + 1] - bounds[user])
    size = 16
    while size < 4 * longest:  # a quarter full, at most: nearly every first look finds
        size *= 2
    table = np.empty(size, np.int32)
    for user in range(users):
        begin, n = found[user], 0
        mine = items[begin:]
        table[:] = -1
        for i in range(bounds[user], bounds[user + 1]):
            slot = _find(keys[i], mine, table)
            at = table[slot]
            if at < 0:
                table[slot] = n
                mine[n], counts[begin + n], last[begin + n] = keys[i], 1, times[i]
                n += 1
            else:
                counts[begin + at] += 1
                last[begin + at] = max(last[begin + at], times[i])
        end = begin + n
        found[user + 1] = end
        order = _ascending(mine[:n], table[: size // 2])
        latest = np.int64(0)
        for position in range(n):
            at = begin + order[position]
            item_keys[begin + position] = items[at]
            item_counts[begin + position] = min(counts[at], COUNT_MAX)
            item_last[begin + position] = min(max(last[at] // 1000, 0), SECONDS_MAX)
            latest = max(latest, last[at])
        last_times_ms[user] = latest
    n = found[users]
    return (
        items[:n],
        counts[:n],
        item_keys[:n],
        item_counts[:n],
        item_last[:n],
        found,
        last_times_ms,
    )


@kernel
def _find(key: np.uint64, items: U64, table: I32) -> np.uint64:
    """The slot of a key, or the free one where it belongs."""
    mask = np.uint64(len(table) - 1)
    slot = (key * HASH_FACTOR >> np.uint64(32)) & mask
    while table[slot] >= 0 and items[table[slot]] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@kernel
def _ascending(items: U64, slots: I32) -> U32:
    """The places of items in the order of their keys. Keys are hashes, and so spread evenly: dealt
    out by their leading bits, to about as many ``slots`` (scratch) as there are items, they are in
    order but for neighbors.
    """
    n, one = np.uint64(len(items)), np.uint64(1)  # unsigned, or each index would be tested for < 0
    order = np.empty(n, np.uint32)
    lowest, highest = ~np.uint64(0), np.uint64(0)
    for i in range(n):
        lowest = min(lowest, items[i])
        highest = max(highest, items[i])
    shift = np.uint64(0)
    while n and (highest - lowest) >> shift >= np.uint64(len(slots)):
        shift += one
    slots[:] = 0
    for i in range(n):
        slots[(items[i] - lowest) >> shift] += 1
    before = np.int32(0)
    for slot in range(np.uint64(len(slots))):
        here = slots[slot]
        slots[slot] = before
        before += here
    for i in range(n):
        slot = (items[i] - lowest) >> shift
        order[slots[slot]] = i
        slots[slot] += 1
    for position in range(one, n):
        place, at = order[position], np.uint64(position)
        while at and items[order[at - one]] > items[place]:
            order[at] = order[at - one]
            at -= one
        order[at] = place
    return order


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
