"""How inner loops are compiled, and how they are spread over threads.

Kernels release the GIL, so that threads work on different users at once, and are cached on disk, so
that only the first process on a machine waits for the compiler. Nothing is compiled at import: a
service calls each of its kernels once before it reports itself ready.

A kernel calls kernels of its own file alone. The cache compares a file with what was compiled from
it, and would go on serving an old version of a kernel that it took from another file.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
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


@cache
def _threads(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, "kernel")


def on_threads(run: Callable[[int, int], None], size: int, threads: int) -> None:
    """Call ``run(begin, end)`` for parts of [0, size), one a thread.

    Threads of numba's own would go on spinning for a while after each call, and take the
    processors from torch's.
    """
    parts = min(threads, size)
    bounds = [size * part // max(parts, 1) for part in range(parts + 1)]
    if parts <= 1:
        run(0, size)
        return
    calls = [_threads(parts).submit(run, *span) for span in pairwise(bounds)]
    for call in calls:
        call.result()
