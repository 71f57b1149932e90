"""How the extractor's inner loops are compiled.

Kernels release the GIL, so that a worker's threads cluster different users at once, and are cached
on disk, so that only the first process on a machine waits for the compiler. Nothing is compiled at
import: `extractor.extract.Extractor.warm` calls each kernel once.

A kernel calls kernels of its own file alone. The cache compares a file with what was compiled from
it, and would go on serving an old version of a kernel that it took from another file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

if TYPE_CHECKING:  # numba ships no types; a kernel keeps those of the function it was made from

    def kernel(function: Function) -> Function:
        """Compiled with IEEE arithmetic."""

    def fast_kernel(function: Function) -> Function:
        """Compiled with reordered arithmetic."""

else:
    from numba import njit

    kernel = njit(nogil=True, cache=True, error_model="numpy")
    """Compiles with IEEE arithmetic: for whatever meets input that may hold NaN."""

    fast_kernel = njit(nogil=True, cache=True, error_model="numpy", fastmath=True)
    """Compiles with reordered arithmetic, which vectorized sums need: for finite input alone."""
