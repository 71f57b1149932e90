"""Files and folders that are there whole or not at all, whatever interrupts or fills the disk.

What is written is on the disk before it takes its place: a machine that loses its power right
after has the old or the new, never a file of the right length full of zeros.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
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
            _sync(file)
        new.replace(path)
    finally:
        with suppress(OSError):
            new.unlink()


def write_directory(path: Path, files: Mapping[str, bytes | memoryview]) -> None:
    """A new directory with these files, in the place of what stood at ``path``.

    Raises:
        OSError: it cannot be written; what stood there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, data in files.items():
            with (fresh / name).open("wb") as file:
                file.write(data)
                _sync(file)
        fresh.chmod(0o755)
        _replace_directory(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def mark(path: Path) -> tuple[int, int, int] | None:
    """What tells one content of a file from another; None: it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def reason(error: OSError) -> str:
    """Why a file could not be written; numpy tells of a full disk without the system's words."""
    return error.strerror or str(error)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _replace_directory(fresh: Path, path: Path) -> None:
    """Put ``fresh`` in the place of ``path``; a directory cannot be renamed onto a full one."""
    if not path.exists():
        fresh.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    path.rename(old / path.name)
    try:
        fresh.rename(path)
    except OSError:
        (old / path.name).rename(path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
