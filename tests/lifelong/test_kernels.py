"""`lifelong compile`."""

from __future__ import annotations

from lifelong.kernels import compile_kernels
from lifelong.shipped import BUNDLES


def test_the_kernels_of_all_systems_are_compiled() -> None:
    result = compile_kernels()
    assert result["systems"] == sorted(BUNDLES)
