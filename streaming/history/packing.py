"""Events as they are spilled: a user, a packed behavior, and the key of the event's id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infra.arrays import I32, U8, U64
from infra.behaviors import BEHAVIOR
from infra.compiling import kernel
from infra.hashing import xxh3_64, xxh32
from infra.store import Behaviors
from streaming.files.batches import Column, EventBatch, pc


@dataclass(frozen=True, slots=True)
class Packed:
    """n events of an input."""

    users: Column
    """string[n], no nulls."""
    behaviors: Behaviors
    """BEHAVIOR[n]."""
    event_keys: U64
    """u64[n]: `infra.behaviors.event_key`."""

    def __len__(self) -> int:
        return len(self.behaviors)


def pack(batch: EventBatch) -> Packed:
    """The events of a batch."""
    packed = np.zeros(len(batch), BEHAVIOR)
    packed["item"] = _each_64(*_texts(batch.items))
    packed["time"] = batch.times
    packed["action"] = batch.actions
    if batch.categories is not None:
        packed["category"] = _keys(_each_32(*_texts(batch.categories)), batch.categories)
    if batch.dwells is not None:
        packed["dwell"] = batch.dwells
    event_keys = np.zeros(len(batch), np.uint64)
    if batch.event_ids is not None:
        event_keys = _keys(_each_64(*_texts(batch.event_ids)), batch.event_ids)
    return Packed(batch.users, packed, event_keys)


def _keys(hashes: U64, texts: Column) -> U64:
    """Hashes as keys: 0 where there is no text, and only there."""
    there = pc.fill_null(pc.greater(pc.binary_length(texts), 0), False)
    keys: U64 = np.where(there.to_numpy(zero_copy_only=False), np.maximum(hashes, 1), 0)
    return keys


def _texts(column: Column) -> tuple[U8, I32]:
    """The bytes of texts, and where each begins; as arrays that may be written, since kernels are
    compiled anew for those that may not.
    """
    _, offsets, data = column.buffers()
    places = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(data or b"", np.uint8).copy(), places.copy()


@kernel
def _each_64(text: U8, places: I32) -> U64:
    hashes = np.empty(len(places) - 1, np.uint64)
    for i in range(len(hashes)):
        hashes[i] = xxh3_64(text, places[i], places[i + 1] - places[i])
    return hashes


@kernel
def _each_32(text: U8, places: I32) -> U64:
    hashes = np.empty(len(places) - 1, np.uint64)
    for i in range(len(hashes)):
        hashes[i] = xxh32(text, places[i], places[i + 1] - places[i])
    return hashes
