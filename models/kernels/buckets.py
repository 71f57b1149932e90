"""SDIM's buckets of a user: filled with behaviors, and read for candidates (SDIM, Eqs. 8-12).

The compiled form, by which the services make and read states. Training needs gradients and has the
same sums in torch, in `models.networks.sdim`; the tests hold the one against the other.

A table holds G groups of buckets, one after the other; a signature is a bucket's number within its
group.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from infra.arrays import F32, I32, U16, U32
from infra.compiling import fast_kernel

Signatures = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

LEAST_NORM: Final = np.float32(1e-6)
"""A shorter sum is divided by this, as in training: an empty bucket gives zeros."""


@fast_kernel
def fill_buckets(
    rows: I32, counts: U32, signatures: Signatures, embeddings: F32, buckets: F32, sizes: U32
) -> None:
    """Add behaviors to buckets, each to one a group.

    Args:
        rows: i32[n], rows of items in the tables.
        counts: u32[n], behaviors on each.
        signatures: [N, G], every item's.
        embeddings: f32[N, d].
        buckets: f32[G * 2^tau, d], sums of embeddings; written to.
        sizes: u32[G * 2^tau], behaviors in each; written to.
    """
    groups = signatures.shape[1]
    size = len(buckets) // groups
    for i in range(len(rows)):
        own, vector, count = signatures[rows[i]], embeddings[rows[i]], np.float32(counts[i])
        for group in range(groups):
            place = group * size + own[group]
            sizes[place] += counts[i]
            total = buckets[place]
            for j in range(len(vector)):
                total[j] += count * vector[j]


@fast_kernel
def count_features(rows: I32, places: U16, signatures: Signatures, counts: F32) -> None:
    """Count behaviors by bucket and what is known of them.

    Args:
        rows: i32[n], rows of the behaviors' items.
        places: u16[n], of what is known of each, in columns of ``counts``.
        signatures: [N, G], every item's.
        counts: f32[G * 2^tau, F], behaviors of each kind in each bucket; written to.
    """
    groups = signatures.shape[1]
    size = len(counts) // groups
    for i in range(len(rows)):
        own = signatures[rows[i]]
        for group in range(groups):
            counts[group * size + own[group], places[i]] += 1


@fast_kernel
def read_buckets(
    buckets: F32, sizes: U32, by_length: bool, signatures: Signatures, candidates: I32
) -> F32:
    """The mean of what each candidate finds, its bucket in every group (Eq. 12).

    Args:
        buckets, sizes: as of `fill_buckets`.
        by_length: divide a bucket's sum by its length (Eq. 9); otherwise by its size (footnote 2).
        signatures: [N, G], every item's.
        candidates: i32[B], their rows.

    Returns:
        f32[B, d].
    """
    groups = signatures.shape[1]
    size = len(buckets) // groups
    scaled = np.empty_like(buckets)
    for place in range(len(buckets)):
        total, into = buckets[place], scaled[place]
        divisor = np.float32(max(sizes[place], 1))
        if by_length:
            squared = np.float32(0)
            for j in range(len(total)):
                squared += total[j] * total[j]
            divisor = max(np.sqrt(squared), LEAST_NORM)
        factor = np.float32(1) / (divisor * np.float32(groups))
        for j in range(len(total)):
            into[j] = total[j] * factor
    found = np.zeros((len(candidates), buckets.shape[1]), np.float32)
    for i in range(len(candidates)):
        own, interest = signatures[candidates[i]], found[i]
        for group in range(groups):
            bucket = scaled[group * size + own[group]]
            for j in range(len(interest)):
                interest[j] += bucket[j]
    return found
