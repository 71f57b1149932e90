"""How inner loops are compiled, and how they are spread over threads.

Kernels release the GIL, so that threads work on different users at once, and are cached on disk, so
that only the first process on a machine waits for the compiler. Nothing is compiled at import: a
service calls each of its kernels once before it reports itself ready.

A kernel may call kernels of other files, imported by their names: its cache is stamped with those
files too (`_stamped`).
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

if TYPE_CHECKING:  # numba ships no types; a kernel keeps those of the function it was made from

    def kernel(function: Function) -> Function:
        """Compiled with IEEE arithmetic."""

    def fast_kernel(function: Function) -> Function:
        """Compiled with reordered arithmetic."""

else:
    from numba import njit
    from numba.core.dispatcher import Dispatcher

    def kernel(function, **how):
        """Compiled with IEEE arithmetic: for whatever meets input that may hold NaN."""
        return _stamped(njit(nogil=True, cache=True, error_model="numpy", **how)(function))

    def fast_kernel(function):
        """Compiled with reordered arithmetic, as vectorized sums need it: for finite input."""
        return kernel(function, fastmath=True)

    def _stamped(compiled):
        """A kernel whose cache on disk is of all files that its code comes from. numba looks at the
        one in which it stands, and would go on serving an old version of what it calls elsewhere.
        """
        if not isinstance(compiled, Dispatcher):  # numba was told to compile nothing
            return compiled
        function = compiled.py_func
        called = [one for one in function.__globals__.values() if isinstance(one, Dispatcher)]
        files = {inspect.getfile(function)}.union(*(one.files for one in called))
        compiled.files = files
        sources = b"".join(Path(file).read_bytes() for file in sorted(files))
        compiled._cache._cache_file._source_stamp = hashlib.sha256(sources).digest()
        return compiled


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
