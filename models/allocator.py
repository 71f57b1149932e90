"""The memory allocator in training, which frees and takes the same large tensors at every step."""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""The numbers by which glibc's ``mallopt`` knows its two thresholds."""

_LARGEST: Final = 1 << 30
"""Bytes of the largest block that is kept."""


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks for the next step; for this process, from now on.

    By default it gives large ones back, and the system fills them with zeros, page by page, when
    they are asked for again: a tenth of a training step. A process then holds on to the most that
    it ever needed.

    Returns:
        Whether that was possible: elsewhere than in glibc nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _LARGEST))
