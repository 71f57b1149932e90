"""A file of text, as it is or compressed by gzip."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast


class TextFile:
    """The bytes of a text file.

    Args:
        path: the file.
        compressed: whether it is compressed by gzip.
        size: its size on the disk, in bytes.
    """

    def __init__(self, path: Path, *, compressed: bool, size: int) -> None:
        self._path = path
        self._compressed = compressed
        self._size = size

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[BinaryIO, BinaryIO]]:
        """The file's bytes, decompressed, and the file below that tells how far it was read."""
        with self._path.open("rb", buffering=0) as disk:
            if self._compressed:
                with gzip.GzipFile(fileobj=io.BufferedReader(disk, 1 << 20)) as plain:
                    yield cast(BinaryIO, plain), cast(BinaryIO, disk)
            else:
                yield cast(BinaryIO, disk), cast(BinaryIO, disk)

    def fraction(self, disk: BinaryIO) -> float:
        """How much of the file has been read, 0 to 1."""
        # The position of the descriptor itself: another thread may be reading through ``disk``.
        return os.lseek(disk.fileno(), 0, os.SEEK_CUR) / self._size if self._size else 1.0
