"""Weighted sums of table rows by bin, without ever writing out an embedding per behavior.

Pooling R x L behaviors of width d by gathering first costs several passes over R * L * d numbers,
forward and back. The kernels here read each row where it stands and add it where it belongs; on a
GPU, where gathering is cheap, torch's own operations do.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from infra.arrays import F32, I64
from infra.compiling import fast_kernel, on_threads

LINE: Final = 16
"""Columns that one thread owns of the table's gradient: a cache line of float32."""


def pool_bins(table: Tensor, rows: Tensor, bins: Tensor, weights: Tensor, size: int) -> Tensor:
    """Sum rows into bins: out[r, b] sums weights[r, i] * table[rows[r, i]] where bins[r, i] = b.

    Args:
        table: f32[n, d].
        rows: i64[R, L].
        bins: i64[R, L] in [0, size).
        weights: f32[R, L]; what has weight 0 is not read.
        size: bins.

    Returns:
        f32[R, size, d]. Gradients reach the table and the weights.
    """
    if table.device.type == "cpu" and table.dtype == torch.float32:
        pooled: Tensor = _PoolBins.apply(table, rows, bins, weights, size)
        return pooled
    weighted = functional.embedding(rows, table) * weights.unsqueeze(-1)
    index = bins.unsqueeze(-1).expand_as(weighted)
    return weighted.new_zeros(len(rows), size, table.shape[1]).scatter_add(1, index, weighted)


class _PoolBins(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, table: Tensor, rows: Tensor, bins: Tensor, weights: Tensor, size: int
    ) -> Tensor:
        out = np.zeros((len(rows), size, table.shape[1]), np.float32)
        arrays: tuple[Any, ...] = (_array(rows), _array(bins), _array(weights), out)
        source = _array(table)
        on_threads(
            lambda begin, end: _pool(source, *(array[begin:end] for array in arrays)),
            len(rows),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(table, rows, bins, weights)
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        table, rows, bins, weights = ctx.saved_tensors
        upstream = _array(gradients[0])
        arrays = _array(rows), _array(bins), _array(weights)
        to_table = to_weights = None
        if ctx.needs_input_grad[0]:
            to_table = torch.zeros_like(table)
            gradient = to_table.numpy()
            on_threads(
                lambda begin, end: _pool_back_to_table(
                    upstream, *arrays, begin * LINE, end * LINE, gradient
                ),
                -(-table.shape[1] // LINE),
                torch.get_num_threads(),
            )
        if ctx.needs_input_grad[3]:
            to_weights = torch.zeros_like(weights)
            source = _array(table)
            parts = (*arrays, to_weights.numpy())
            on_threads(
                lambda begin, end: _pool_back_to_weights(
                    upstream[begin:end], source, *(array[begin:end] for array in parts)
                ),
                len(rows),
                torch.get_num_threads(),
            )
        return to_table, None, None, to_weights, None


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


@fast_kernel
def _pool(table: F32, rows: I64, bins: I64, weights: F32, out: F32) -> None:
    for r in range(len(rows)):
        for i in range(rows.shape[1]):
            weight = weights[r, i]
            if weight != 0:
                row, into = table[rows[r, i]], out[r, bins[r, i]]
                for j in range(len(row)):
                    into[j] += weight * row[j]


@fast_kernel
def _pool_back_to_weights(
    upstream: F32, table: F32, rows: I64, bins: I64, weights: F32, gradient: F32
) -> None:
    for r in range(len(rows)):
        for i in range(rows.shape[1]):
            if weights[r, i] != 0:
                row, out = table[rows[r, i]], upstream[r, bins[r, i]]
                total = np.float32(0)
                for j in range(len(row)):
                    total += row[j] * out[j]
                gradient[r, i] = total


@fast_kernel
def _pool_back_to_table(
    upstream: F32,
    rows: I64,
    bins: I64,
    weights: F32,
    begin: int,
    end: int,
    gradient: F32,
) -> None:
    """Columns [begin, end) of the gradient: each thread owns some, so that none waits."""
    end = min(end, gradient.shape[1])
    for r in range(len(rows)):
        for i in range(rows.shape[1]):
            weight = weights[r, i]
            if weight != 0:
                into, out = gradient[rows[r, i]], upstream[r, bins[r, i]]
                for j in range(begin, end):
                    into[j] += weight * out[j]
