"""How kernels are compiled, and how they are spread over threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

if TYPE_CHECKING:  # numba ships no types; a kernel keeps those of the function it was made from

    def kernel(function: Function) -> Function:
        """Compile a function on first use, and keep it on disk for the next process."""
        return function

else:
    from numba import njit

    kernel = njit(nogil=True, cache=True, fastmath=True)


@cache
def _threads(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, "kernel")


def on_threads(run: Callable[[int, int], None], size: int, threads: int) -> None:
    """Call ``run(begin, end)`` for parts of [0, size), one a thread.

    Kernels release the interpreter lock. Threads of numba's own would go on spinning for a while
    after each call, and take the processors from torch's.
    """
    parts = min(threads, size)
    bounds = [size * part // max(parts, 1) for part in range(parts + 1)]
    if parts <= 1:
        run(0, size)
        return
    calls = [_threads(parts).submit(run, *span) for span in pairwise(bounds)]
    for call in calls:
        call.result()
