from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.modules.pooling import pool_bins


def plainly(table: Tensor, rows: Tensor, bins: Tensor, weights: Tensor, size: int) -> Tensor:
    """What `pool_bins` says it does, one behavior after another."""
    out = [[table.new_zeros(table.shape[1]) for _ in range(size)] for _ in rows]
    for r in range(len(rows)):
        for i in range(rows.shape[1]):
            b = int(bins[r, i])
            out[r][b] = out[r][b] + weights[r, i] * table[rows[r, i]]
    return torch.stack([torch.stack(each) for each in out])


def problem(
    d: int = 5, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(d)
    table = torch.randn(9, d, generator=random).to(dtype).requires_grad_()
    rows = torch.randint(0, 9, (3, 7), generator=random)
    bins = torch.randint(0, 4, (3, 7), generator=random)
    weights = torch.rand(3, 7, generator=random).to(dtype)
    weights[1, :4] = 0
    weights[2] = 0
    return table, rows, bins, weights.requires_grad_()


@pytest.mark.parametrize("d", [1, 5, 16, 37])  # within a line of the cache, one, and more
def test_rows_are_summed_into_their_bins(d: int) -> None:
    table, rows, bins, weights = problem(d)
    torch.testing.assert_close(
        pool_bins(table, rows, bins, weights, 4), plainly(table, rows, bins, weights, 4)
    )


@pytest.mark.parametrize("d", [5, 37])
def test_gradients_are_those_of_plain_torch(d: int) -> None:
    table, rows, bins, weights = problem(d)
    upstream = torch.randn(3, 4, d, generator=torch.Generator().manual_seed(1))
    mine = torch.autograd.grad(
        (pool_bins(table, rows, bins, weights, 4) * upstream).sum(), [table, weights]
    )
    theirs = torch.autograd.grad(
        (plainly(table, rows, bins, weights, 4) * upstream).sum(), [table, weights]
    )
    torch.testing.assert_close(mine[0], theirs[0])
    # A weight of 0 says that the behavior is not read, so nothing flows back to it.
    torch.testing.assert_close(mine[1], theirs[1] * (weights != 0))


def test_the_kernel_and_torchs_own_operations_agree() -> None:
    """In double precision, as on a GPU, torch's own operations do it."""
    table, rows, bins, weights = problem()
    doubles = table.detach().double().requires_grad_(), weights.detach().double().requires_grad_()
    mine = pool_bins(table, rows, bins, weights, 4)
    theirs = pool_bins(doubles[0], rows, bins, doubles[1], 4)
    assert theirs.dtype == torch.float64
    torch.testing.assert_close(mine.double(), theirs, atol=1e-6, rtol=1e-5)
    to_table, to_weights = torch.autograd.grad(mine.square().sum(), [table, weights])
    expected = torch.autograd.grad(theirs.square().sum(), doubles)
    torch.testing.assert_close(to_table.double(), expected[0], atol=1e-5, rtol=1e-5)
    real = weights != 0
    torch.testing.assert_close(to_weights[real].double(), expected[1][real], atol=1e-5, rtol=1e-5)


def test_the_threads_change_nothing() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            table, rows, bins, weights = problem(37)
            pooled = pool_bins(table, rows, bins, weights, 4)
            (gradient,) = torch.autograd.grad(pooled.square().sum(), [table])
            results.append((pooled, gradient))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_bins_that_nothing_falls_into_are_zero() -> None:
    table, rows, bins, weights = problem()
    assert not pool_bins(table, rows, bins * 0 + 3, weights, 6)[:, [0, 1, 2, 4, 5]].any()


def test_no_request_and_no_behavior_pool_to_nothing() -> None:
    table, rows, bins, weights = problem()
    assert pool_bins(table, rows[:0], bins[:0], weights[:0], 4).shape == (0, 4, 5)
    assert not pool_bins(table, rows[:, :0], bins[:, :0], weights[:, :0], 4).any()
