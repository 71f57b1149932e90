from __future__ import annotations

import random

import pyarrow as pa
from aiokafka.partitioner import murmur2 as aiokafka_murmur2

from streaming.history.placing import bucket_numbers, murmur2, partition_numbers


def test_murmur2_is_kafkas() -> None:
    letters = random.Random(7)
    keys = ["".join(letters.choices("abü漢😀", k=n % 41)) for n in range(500)]
    expected = [aiokafka_murmur2(key.encode()) & 0xFFFFFFFF for key in keys]
    assert murmur2(pa.array(keys)).tolist() == expected
    assert murmur2(pa.array(keys)[100:200]).tolist() == expected[100:200]
    assert murmur2(pa.array([], pa.string())).tolist() == []


def test_users_spread_over_partitions_and_over_buckets_of_each() -> None:
    hashes = murmur2(pa.array([f"u{n}" for n in range(2000)]))
    partitions, buckets = partition_numbers(hashes, 4), bucket_numbers(hashes, 8)
    for partition in range(4):
        mine = buckets[partitions == partition].tolist()
        assert {number: mine.count(number) > 30 for number in range(8)} == dict.fromkeys(
            range(8), True
        )
