"""Files that are there whole or not at all, whatever interrupts or fills the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside ``path``, which takes its place if all goes well and is gone if not.

    Raises:
        OSError: it cannot be written; what stood there stays.
    """
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            yield file
        new.replace(path)
    finally:
        with suppress(OSError):
            new.unlink()


def reason(error: OSError) -> str:
    """Why a file could not be written; numpy tells of a full disk without the system's words."""
    return error.strerror or str(error)
