"""Numbers rounded so that sums of their products are exact, whatever computes them, in any order.

A search keeps k of the behaviors, and at the k-th place a rounding error decides who is in. The
order of additions differs between torch, onnxruntime and the services' kernels, even between shapes
of one product; so vectors that are searched by have few digits. A row is an integer times a power
of two, and a sum of products stays below 2^24 of them, which float32 holds exactly.
"""

from __future__ import annotations

from math import ceil, log2
from typing import Any, Final

import torch
from torch import Tensor

EXACT_BITS: Final = 24
"""Digits of a float32."""

LEAST_STEP: Final = 2.0**-100
"""What zeros are rounded to integers of; float16 has no number as small."""

MOST_BITS: Final = 11
"""Digits of a float16, as which rounded vectors are stored."""


def digits(terms: int) -> int:
    """Digits of both factors with which a sum of so many products is exact in float32.

    >>> digits(8), digits(32)
    (10, 9)
    """
    return min((EXACT_BITS - ceil(log2(terms))) // 2, MOST_BITS)


def rounded(rows: Tensor, bits: int) -> Tensor:
    """Rows f32[..., n], each rounded to integers up to 2^bits times a power of two of its own."""
    step = _power_of_two(rows.abs().amax(-1, keepdim=True)) * 2.0 ** (1 - bits)
    return (rows / step).round() * step


def _power_of_two(numbers: Tensor) -> Tensor:
    """The power of two that is nearest to each (positive) number, exactly.

    Veltkamp's way of leaving a number with few digits, here with one (Dekker, *A floating-point
    technique for extending the available precision*, 1971): three operations that every runtime
    does alike, as no logarithm is.
    """
    spread = numbers * (2.0 ** (EXACT_BITS - 1) + 1.0)
    return (spread - (spread - numbers)).clamp(min=LEAST_STEP)


def project(vectors: Tensor, weight: Tensor, heads: int) -> Tensor:
    """``vectors @ weight``, as a search needs it: each head's part has few digits, and is the same
    to the last of them wherever it is computed.

    Gradients are those of the plain product.

    Args:
        vectors: f32[..., d].
        weight: f32[d, heads * w].

    Returns:
        f32[..., heads * w], numbers that a float16 holds; digits enough for sums of w products.
    """
    bits = digits(len(weight))
    with torch.no_grad():
        exact = rounded(vectors, bits) @ rounded(weight.mT, bits).mT
        by_head = exact.reshape(*exact.shape[:-1], heads, -1)
        few = rounded(by_head, digits(by_head.shape[-1])).flatten(-2).half().float()
    if not torch.is_grad_enabled() or not (vectors.requires_grad or weight.requires_grad):
        return few
    projected: Tensor = _Instead.apply(vectors @ weight, few)
    return projected


class _Instead(torch.autograd.Function):
    """The second tensor, with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, plain: Tensor, instead: Tensor) -> Tensor:  # noqa: ARG004
        return instead

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG004
        return gradients[0], None
