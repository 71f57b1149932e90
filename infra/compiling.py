"""How inner loops are compiled, and how they are spread over threads.

Kernels release the GIL, so that threads work on different users at once, and are cached on disk, so
that only the first process on a machine waits for the compiler. Nothing is compiled at import: a
service calls each of its kernels once before it reports itself ready.

A kernel may call kernels of other files and use their constants, imported by their names: its cache
is stamped with those, too (`_stamped`).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from infra.telemetry import get_logger

Function = TypeVar("Function", bound=Callable[..., Any])

log: Final = get_logger(__name__)

UNKEPT: Final[list[str]] = []
"""Kernels that this process compiled and could not keep on disk."""

if TYPE_CHECKING:  # numba ships no types; a kernel keeps those of the function it was made from

    def kernel(function: Function) -> Function:
        """Compiled with IEEE arithmetic."""

    def fast_kernel(function: Function) -> Function:
        """Compiled with reordered arithmetic."""

else:
    from numba import njit
    from numba.core.caching import (
        CompileResultCacheImpl,
        FunctionCache,
        InTreeCacheLocator,
        UserProvidedCacheLocator,
    )
    from numba.core.dispatcher import Dispatcher

    CONSTANT = (bool, int, float, str, bytes, tuple, np.generic, np.ndarray, np.dtype)
    """What numba compiles into a kernel as it is at that moment."""

    class _Anyhow(InTreeCacheLocator):
        """Beside the source, though nothing can be written there: what is compiled is not kept."""

        def ensure_cache_path(self):
            """Nothing: it cannot be made."""

    class _Made(_Anyhow):
        """Beside the source, where kernels were put before it became read-only, as in an image."""

        @classmethod
        def from_function(cls, py_func, py_file):
            source = Path(py_file)
            made = source.parent.glob(f"__pycache__/{source.stem}.*.nbi")
            return super().from_function(py_func, py_file) if any(made) else None

    class _Places(CompileResultCacheImpl):
        """Where kernels are kept: where NUMBA_CACHE_DIR says, beside their source, or at home.
        numba alone raises where none of them can be written.
        """

        _locator_classes = (
            UserProvidedCacheLocator,
            InTreeCacheLocator,
            _Made,
            *CompileResultCacheImpl._locator_classes,
            _Anyhow,
        )

    class _Kept(FunctionCache):
        """Kernels on disk; one that cannot be kept is of use all the same."""

        _impl_class = _Places

        def load_overload(self, sig, target_context):
            with contextlib.suppress(OSError):
                return super().load_overload(sig, target_context)

        def save_overload(self, sig, data):
            try:
                super().save_overload(sig, data)
            except OSError:
                UNKEPT.append(self._name)

    def kernel(function, **how):
        """Compiled with IEEE arithmetic: for whatever meets input that may hold NaN."""
        return _stamped(njit(nogil=True, error_model="numpy", **how)(function))

    def fast_kernel(function):
        """Compiled with reordered arithmetic, as vectorized sums need it: for finite input."""
        return kernel(function, fastmath=True)

    def _stamped(compiled):
        """A kernel whose cache on disk is of all that its code comes from: the files of what it
        calls, and the constants that are compiled into it. numba looks at the file in which it
        stands, and would go on serving an old version of what comes from elsewhere.
        """
        if not isinstance(compiled, Dispatcher):  # numba was told to compile nothing
            return compiled
        function = compiled.py_func
        compiled._cache = _Kept(function)
        known = function.__globals__
        called = [one for one in known.values() if isinstance(one, Dispatcher)]
        used = [(name, known.get(name)) for name in function.__code__.co_names]
        constants = {(name, pickle.dumps(one)) for name, one in used if isinstance(one, CONSTANT)}
        compiled.files = {inspect.getfile(function)}.union(*(one.files for one in called))
        compiled.constants = constants.union(*(one.constants for one in called))
        sources = [Path(file).read_bytes() for file in sorted(compiled.files)]
        sources += [name.encode() + value for name, value in sorted(compiled.constants)]
        compiled._cache._cache_file._source_stamp = hashlib.sha256(b"".join(sources)).digest()
        return compiled


@cache
def _threads(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, "kernel")


def tell_unkept() -> None:
    """Say so if this process compiled what every other will have to compile again."""
    if UNKEPT:
        log.warning(
            "kernels were compiled and cannot be kept, each start compiles them again: run"
            " `lifelong compile` where the package's folder can be written, or set NUMBA_CACHE_DIR"
            " to a folder that can",
            kernels=len(UNKEPT),
        )


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
