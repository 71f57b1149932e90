"""Buckets filled and read by the kernels are Eq. 12 of SDIM, as training computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.arrays import F32, I32
from models.bundle import SDIMOffline
from models.kernels.buckets import LEAST_NORM, fill_buckets, read_buckets
from models.modules.layers import EPSILON
from models.modules.sequence import BehaviorSequence, Target
from models.networks.sdim import SDIM, SDIMConfig
from tests.models.networks.building import ITEMS, D, tiny_inputs


def module_of(m: int, tau: int, normalization: str, seed: int) -> SDIM:
    torch.manual_seed(seed)
    config = SDIMConfig(m=m, tau=tau, normalization=normalization)  # type: ignore[arg-type]
    return config.build(D, tiny_inputs())


def read_by_kernels(module: SDIM, table: torch.Tensor, older: I32, newer: I32) -> F32:
    """What every item finds, f32[n + 1, d]: distinct older behaviors first, newer ones added."""
    offline = module.served(half=False, feature_tables={}).offline
    assert isinstance(offline, SDIMOffline)
    embeddings = table.numpy()
    signatures = module.signatures(table).numpy().astype(offline.signature)
    buckets = np.zeros((offline.buckets, D), np.float32)
    sizes = np.zeros(offline.buckets, np.uint32)
    for rows in (older, newer):
        items, counts = np.unique(rows, return_counts=True)
        fill_buckets(items, counts.astype(np.uint32), signatures, embeddings, buckets, sizes)
    filled = np.zeros(offline.buckets, bool)
    places = signatures + (np.arange(offline.groups) << offline.tau)
    filled[places[np.concatenate((older, newer))]] = True
    assert not buckets[~filled].any()  # exactly
    assert np.array_equal(sizes > 0, filled)
    assert sizes.sum() == offline.groups * (len(older) + len(newer))
    every = np.arange(len(table), dtype=np.int32)
    by_length = offline.normalization == "l2"
    return read_buckets(buckets, sizes, by_length, signatures, every)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    # Row 0 is what the bundle does not know.
    older=st.lists(st.integers(0, ITEMS), max_size=60),
    newer=st.lists(st.integers(0, ITEMS), max_size=20),
    signature=st.sampled_from([(1, 1), (6, 1), (12, 3), (5, 5), (20, 10), (4, 0)]),
    normalization=st.sampled_from(["l2", "mean"]),
    taught=st.booleans(),
    alike=st.booleans(),
)
def test_buckets_give_what_collisions_give(
    seed: int,
    older: list[int],
    newer: list[int],
    signature: tuple[int, int],
    normalization: str,
    taught: bool,
    alike: bool,
) -> None:
    module = module_of(*signature, normalization, seed)
    table = torch.randn(ITEMS + 1, D)
    if alike:
        table[1:] = table[1]
    if not taught:
        table[0] = 0
    rows = torch.tensor([older + newer or [0]])
    sequence = BehaviorSequence(rows, torch.full(rows.shape, bool(older + newer)), table)
    every = torch.arange(ITEMS + 1)[None]
    expected = module.collide(sequence, Target(table[None], torch.zeros_like(every), every))[0]
    found = read_by_kernels(module, table, np.array(older, np.int32), np.array(newer, np.int32))
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-20, 1e-7, 1e6])
def test_however_short_or_long_vectors_are_training_reads_them_alike(scale: float) -> None:
    module = module_of(12, 3, "l2", seed=1)
    table = torch.randn(ITEMS + 1, D) * scale
    rows = torch.randint(0, ITEMS + 1, (1, 40))
    sequence = BehaviorSequence(rows, torch.ones(1, 40, dtype=torch.bool), table)
    every = torch.arange(ITEMS + 1)[None]
    expected = module.collide(sequence, Target(table[None], torch.zeros_like(every), every))[0]
    found = read_by_kernels(module, table, rows[0].numpy().astype(np.int32), np.zeros(0, np.int32))
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_a_short_sum_is_divided_as_in_training() -> None:
    assert np.float32(EPSILON) == LEAST_NORM
