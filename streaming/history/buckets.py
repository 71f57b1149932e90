"""From the events of some users, in any order, to the history of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa

from infra.arrays import I32, I64, U32, U64, Bools
from infra.behaviors import BEHAVIOR
from infra.segments import SEGMENT
from infra.store import Behaviors, History
from streaming.files.batches import pc
from streaming.history.placing import murmur2, partition_numbers
from streaming.history.spill import Table

TOGETHER: Final = 131_072
"""Behaviors merged in one call: while LMDB writes them, the workers' appends wait."""

_SIZE: Final = BEHAVIOR.itemsize


@dataclass(slots=True)
class Told:
    """What of a bucket's events became no part of a history."""

    later: int = 0
    """Events from the cut on, which are the stream's."""
    duplicates: int = 0
    """Events that were met before, of the same id, or the same row of another file."""


def histories(
    table: Table,
    cut: int,
    length: int,
    owners: Sequence[int],
    told: Told,
    *,
    several: bool,
) -> Iterator[list[History]]:
    """The histories of a bucket's users, some at a time; users ascend by their UTF-8 bytes.

    An event that has an id is known by it, and one that has none by all that it says and by the
    how manyth such it is in its file: a row that stands in two files is one event, two alike in
    one file are two.

    Args:
        table: of `streaming.history.spill.SCHEMA`.
        cut: time, ms since epoch, from which on nothing is taken.
        length: behaviors that the store keeps of a user.
        owners: of the topic's partitions, in their order.
        told: counts what is left out.
        several: whether the events are of more than one input.
    """
    behaviors = np.frombuffer(_data(table.column("behavior")), BEHAVIOR)
    names, user_of = _users(table)
    keys = table.column("event_key").to_numpy()
    if several:
        keys = _with_rows(keys, behaviors, user_of, table.column("input").to_numpy())
    kept = behaviors["time"] < cut
    told.later += len(kept) - int(kept.sum())
    again = _repeated(keys, user_of) & kept
    told.duplicates += int(again.sum())
    kept &= ~again
    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(behaviors["time"][rows], kind="stable")]
    rows = rows[np.argsort(user_of[rows].astype(_narrowest(len(names))), kind="stable")]
    packed, whose = behaviors[rows].tobytes(), user_of[rows]
    partitions = partition_numbers(murmur2(names), len(owners)).tolist() if len(names) else []
    users = names.to_pylist()
    starts = [0, *(np.flatnonzero(np.diff(whose)) + 1).tolist()]
    some: list[History] = []
    size = 0
    for start, end in pairwise([*starts, len(rows)]) if len(rows) else ():
        place = int(whose[start])
        older = max(0, end - start - length) // SEGMENT * SEGMENT
        part = packed[(start + older) * _SIZE : end * _SIZE]
        some.append(History(users[place], owners[partitions[place]], part, older))
        size += end - start - older
        if size >= TOGETHER:
            yield some
            some, size = [], 0
    if some:
        yield some


def _narrowest(values: int) -> type[np.unsignedinteger[Any]]:
    """The type for so many values: numpy sorts those of 16 bits by their digits."""
    return np.uint16 if values <= 1 << 16 else np.uint32


def _users(table: Table) -> tuple[pa.Array, I32]:
    """The distinct users, ascending, and whose each event is, by the place among them."""
    column = table.column("user")
    users = column.chunk(0) if column.num_chunks else pa.array([], pa.string())
    encoded = users.dictionary_encode()
    names = encoded.dictionary
    order = pc.sort_indices(names)
    rank = np.empty(len(names), np.int32)
    rank[order.to_numpy()] = np.arange(len(names), dtype=np.int32)
    return names.take(order), rank[encoded.indices.to_numpy()]


def _data(column: pa.ChunkedArray) -> bytes | memoryview:
    if not column.num_chunks:
        return b""
    chunk = column.chunk(0)
    data = memoryview(chunk.buffers()[1])
    return data[chunk.offset * _SIZE : (chunk.offset + len(chunk)) * _SIZE]


def _with_rows(keys: U64, behaviors: Behaviors, user_of: I32, inputs: U32) -> U64:
    """Event keys, and of events without an id what tells their row from others."""
    bare = np.flatnonzero(keys == 0)
    if not len(bare):
        return keys
    rows = behaviors[bare]
    content = rows["item"] ^ _mixed(rows["time"].view(np.uint64))
    beside = rows["category"].astype(np.uint64) << np.uint64(32) | rows["dwell"]
    content = _mixed(content ^ _mixed(beside ^ rows["action"].astype(np.uint64) << np.uint64(56)))
    content = _mixed(content ^ user_of[bare].astype(np.uint64))
    order = np.lexsort((inputs[bare], content))
    same = (np.diff(content[order]) == 0) & (np.diff(inputs[bare][order]) == 0)
    alike = _places_within(same)
    found = np.empty(len(bare), np.uint64)
    found[order] = _mixed(content[order] + alike.astype(np.uint64))
    whole = keys.copy()
    whole[bare] = np.maximum(found, 1)
    return whole


def _repeated(keys: U64, user_of: I32) -> Bools:
    """bool[n]: events whose key their user had before."""
    keyed = np.flatnonzero(keys != 0)
    mine = _mixed(keys[keyed] ^ _mixed(user_of[keyed].astype(np.uint64)))
    order = np.argsort(mine, kind="stable")
    repeated = np.zeros(len(keys), np.bool_)
    repeated[keyed[order[1:][np.diff(mine[order]) == 0]]] = True
    return repeated


def _places_within(same: Bools) -> I64:
    """i64[n + 1]: the how manyth of its run each is, from 0, where ``same`` (bool[n]) says that
    one is of a run with the one before.
    """
    at = np.arange(len(same) + 1)
    begins = np.concatenate([[True], ~same])
    return at - np.maximum.accumulate(np.where(begins, at, 0))


def _mixed(values: U64) -> U64:
    """Each number as another one, far from those of its neighbours (splitmix64's finalizer)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
