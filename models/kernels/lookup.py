"""A hash table from item keys to rows, laid out to be read where it lies in a mapped file.

Open addressing with linear probing: key and row stand side by side, so that nearly every item costs
one miss of the processor's caches, where a binary search among ten million keys costs a dozen.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infra.arrays import I32, U64, Array
from infra.compiling import kernel

SLOT: Final = np.dtype([("key", "<u8"), ("row", "<i4")])
"""A slot of the table, 12 bytes; row 0: it is free."""

FULLEST: Final = 0.6
"""Largest share of slots that are taken: 1.75 are looked at for an item that is there, at most, and
3.6 for one that is not."""

HASH_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio (Fibonacci hashing): spreads keys that are not hashes, as tests have."""


def fill(keys: U64) -> tuple[Array, tuple[int, int]]:
    """The table of u64[n] keys, of which the first stands for row 1.

    Returns:
        SLOT[s], s a power of two; and the two rows that have one key, (0, 0) where there are none.
    """
    size = 1
    while size * FULLEST < len(keys) + 1:  # a free slot, at least, ends every search
        size *= 2
    slots = np.zeros(size, SLOT)
    twice = fill_kernel(np.ascontiguousarray(keys, np.uint64), slots["key"], slots["row"])
    return slots, twice


def find(slots: Array, keys: U64) -> I32:
    """The rows of u64[n] keys, 0 where the table has none.

    >>> import numpy as np
    >>> slots, _ = fill(np.array([77, 5], np.uint64))
    >>> find(slots, np.array([5, 6, 77], np.uint64))
    array([2, 0, 1], dtype=int32)
    """
    # One kind of array each, since every other would be compiled for anew.
    slots = slots.view()
    slots.flags.writeable = False
    rows = np.empty(len(keys), np.int32)
    find_kernel(np.array(keys, np.uint64), slots["key"], slots["row"], rows)
    return rows


@kernel
def fill_kernel(keys: U64, slot_keys: U64, slot_rows: I32) -> tuple[int, int]:
    """The loop of `fill`, into free slots, a power of two of them."""
    mask = np.uint64(len(slot_keys) - 1)
    for i in range(len(keys)):
        slot = (keys[i] * HASH_FACTOR >> np.uint64(32)) & mask
        while slot_rows[slot] != 0:
            if slot_keys[slot] == keys[i]:
                return int(slot_rows[slot]), i + 1
            slot = (slot + np.uint64(1)) & mask
        slot_keys[slot], slot_rows[slot] = keys[i], i + 1
    return 0, 0


@kernel
def find_kernel(keys: U64, slot_keys: U64, slot_rows: I32, rows: I32) -> None:
    """The loop of `find`, into ``rows``: to hand an array back takes numba longer than to find a
    few items.
    """
    mask = np.uint64(len(slot_keys) - 1)
    for i in range(len(keys)):
        slot = (keys[i] * HASH_FACTOR >> np.uint64(32)) & mask
        while slot_rows[slot] != 0 and slot_keys[slot] != keys[i]:
            slot = (slot + np.uint64(1)) & mask
        rows[i] = slot_rows[slot]
