from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.modules.rounding import digits, project, rounded


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-9, 1e-3, 1.0, 4096.0]),
    n=st.integers(1, 70),
)
def test_sums_of_products_are_exact(seed: int, scale: float, n: int) -> None:
    torch.manual_seed(seed)
    bits = digits(n)
    first, second = (rounded(torch.randn(n) * scale, bits) for _ in range(2))
    exact = sum(
        Fraction(a) * Fraction(b) for a, b in zip(first.tolist(), second.tolist(), strict=True)
    )
    forwards = backwards = torch.zeros(())
    for i in range(n):
        forwards = forwards + first[i] * second[i]
        backwards = backwards + first[n - 1 - i] * second[n - 1 - i]
    assert Fraction(forwards.item()) == Fraction(backwards.item()) == exact


@pytest.mark.parametrize("greatest", [1.0, 2.0, 1.9999999, 2.0000002, 1e-30, 3e30])
def test_a_row_is_rounded_to_steps_of_its_greatest(greatest: float) -> None:
    row = torch.linspace(-1, 1, 1001) * greatest
    found = rounded(row, 9)
    step = (found / found[found > 0].min()).abs()
    assert torch.equal(step, step.round())
    assert step.max() <= 2**9
    assert step.max() >= 2**7
    assert (found - row).abs().max() <= greatest * 2.0**-8


def test_zeros_stay_zero() -> None:
    assert not rounded(torch.zeros(3, 4), 9).any()


def test_a_projection_is_near_the_product() -> None:
    torch.manual_seed(0)
    vectors, weight = torch.randn(100, 32), torch.randn(32, 32) / 32**0.5
    found = project(vectors, weight, 4)
    assert torch.equal(found, found.half().float())
    torch.testing.assert_close(found, vectors @ weight, rtol=0, atol=2e-2)
    assert (found - vectors @ weight).std() < 5e-3


def test_a_projection_does_not_depend_on_what_else_is_projected() -> None:
    torch.manual_seed(0)
    vectors, weight = torch.randn(100, 32), torch.randn(32, 32)
    one_by_one = torch.stack([project(vector[None], weight, 4)[0] for vector in vectors])
    assert torch.equal(project(vectors, weight, 4), one_by_one)
    order = torch.randperm(32)
    assert torch.equal(project(vectors[:, order], weight[order], 4), one_by_one)


def test_gradients_are_those_of_the_product() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(7, 6, requires_grad=True)
    weight = torch.randn(6, 4, requires_grad=True)
    upstream = torch.randn(7, 4)
    found = torch.autograd.grad((project(vectors, weight, 2) * upstream).sum(), (vectors, weight))
    plain = torch.autograd.grad((vectors @ weight * upstream).sum(), (vectors, weight))
    for mine, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(mine, expected)
