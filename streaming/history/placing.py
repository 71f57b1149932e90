"""Which partition Kafka's producers put a user into, for whole columns of users."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from infra.arrays import I32, I64, U32
from streaming.files.batches import Column

_SPREAD: Final = np.uint32(0x9E3779B1)


def partition_numbers(hashes: U32, partitions: int) -> I32:
    """i32[n]: the partition into which Kafka's default partitioner puts keys with these hashes."""
    return ((hashes & 0x7FFFFFFF) % partitions).astype(np.int32)


def bucket_numbers(hashes: U32, buckets: int) -> I32:
    """i32[n]: one of ``buckets``, whatever the partition."""
    return (((hashes * _SPREAD) >> np.uint32(8)) % np.uint32(buckets)).astype(np.int32)


def murmur2(keys: Column) -> U32:
    """u32[n]: Kafka's 32-bit murmur2 of each key (string[n], no nulls) in UTF-8.

    Same as ``org.apache.kafka.common.utils.Utils.murmur2``, four bytes of all keys at a time.

    >>> murmur2(pa.array(["21", "foobar"])).view(np.int32).tolist()
    [-973932308, -790332482]
    """
    keys = keys.cast(pa.binary())
    _, offsets_buffer, data_buffer = keys.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[keys.offset : keys.offset + len(keys) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8)
    starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets)
    m = np.uint32(0x5BD1E995)
    hashes = np.uint32(0x9747B28C) ^ lengths.astype(np.uint32)

    def gather(at: I64) -> U32:
        return data[at].astype(np.uint32)

    for word in range(int(lengths.max(initial=0)) // 4):
        some = np.flatnonzero(lengths >= 4 * word + 4)
        at = starts[some] + 4 * word
        k = gather(at) | gather(at + 1) << 8 | gather(at + 2) << 16 | gather(at + 3) << 24
        k *= m
        k ^= k >> 24
        k *= m
        hashes[some] = hashes[some] * m ^ k
    rest = lengths % 4
    ends = starts + lengths - rest
    for byte in (2, 1, 0):
        some = np.flatnonzero(rest > byte)
        hashes[some] ^= gather(ends[some] + byte) << (8 * byte)
    some = np.flatnonzero(rest)
    hashes[some] *= m
    hashes ^= hashes >> 13
    hashes *= m
    hashes ^= hashes >> 15
    return hashes
