"""Hashes within kernels are those of the library, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from infra.hashing import xxh3_64, xxh32

LONGEST = 2500
TEXT = np.random.default_rng(7).integers(0, 256, LONGEST + 5).astype(np.uint8)
SIZES = range(LONGEST + 1)


@pytest.mark.parametrize("start", [0, 3])
def test_xxh3_of_every_length(start: int) -> None:
    ours = [int(xxh3_64(TEXT, start, size)) for size in SIZES]

    theirs = [xxhash.xxh3_64_intdigest(TEXT[start : start + size].tobytes()) for size in SIZES]
    assert ours == theirs


@pytest.mark.parametrize("start", [0, 3])
def test_xxh32_of_every_length(start: int) -> None:
    ours = [int(xxh32(TEXT, start, size)) for size in SIZES]

    theirs = [xxhash.xxh32_intdigest(TEXT[start : start + size].tobytes()) for size in SIZES]
    assert ours == theirs
