"""A file of text: plain or compressed, in UTF-8 or as it is told."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, cast

import pyarrow as pa

from infra.errors import SourceError

Compression = Literal["gzip", "zstd"]

UTF_8: Final = "utf-8"

SAMPLE: Final = 4096
"""Bytes at the beginning of a file by which it is told what is no text."""

_SIGNS: Final = (
    (b"\x1f\x8b", "compressed by gzip, name it .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard, name it .zst"),
    (b"PK\x03\x04", "a ZIP archive, unpack it"),
    (b"PAR1", "Parquet, name it .parquet"),
    (codecs.BOM_UTF32_LE, "in UTF-32, give --encoding utf-32"),
    (codecs.BOM_UTF16_LE, "in UTF-16, give --encoding utf-16"),
    (codecs.BOM_UTF16_BE, "in UTF-16, give --encoding utf-16"),
)


@dataclass(frozen=True, slots=True)
class Text:
    """How text files are written."""

    encoding: str = UTF_8
    """Name of a character encoding."""
    delimiter: str = ","
    """What is between the cells of a CSV file."""

    def __post_init__(self) -> None:
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise SourceError(
                f"there is no encoding {self.encoding!r}; utf-8, utf-16 and latin-1 are some"
            ) from None
        if len(self.delimiter) != 1 or not self.delimiter.isascii():
            raise SourceError(
                f"delimiter {self.delimiter!r}: give one character, as in --delimiter ';'"
            )

    @property
    def is_utf_8(self) -> bool:
        """Whether nothing needs to be done about the encoding."""
        return codecs.lookup(self.encoding).name == UTF_8


class TextFile:
    """The bytes of a text file, in UTF-8.

    Args:
        path: the file.
        compression: by what it is compressed.
        size: its size on the disk, in bytes.
        text: how it is written.
    """

    def __init__(
        self, path: Path, *, compression: Compression | None, size: int, text: Text
    ) -> None:
        self._path = path
        self._compression = compression
        self._size = size
        self._text = text

    def check(self, *, header: bool) -> None:
        """Look at the file's beginning. Below a header what cannot be read is a bad row, not a bad
        file.

        Args:
            header: whether the first line is one.

        Raises:
            SourceError: it is no text in that encoding; the message says what it is.
        """
        with self.open() as (stream, _):
            beginning = stream.read(SAMPLE)
        for sign, what in _SIGNS:
            if beginning.startswith(sign):
                raise SourceError(f"{self._path}: it is {what}")
        if beginning.count(b"\0") > len(beginning) // 4:
            raise SourceError(
                f"{self._path}: it is no text, or in an encoding of several bytes a character; give"
                " its --encoding, as in --encoding utf-16-le"
            )
        if not header:
            return
        try:
            beginning.partition(b"\n")[0][: SAMPLE - 4].decode()
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{self._path}: byte {error.start} of its first line is not UTF-8; give its"
                " --encoding, as in --encoding latin-1"
            ) from None

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[BinaryIO, BinaryIO]]:
        """The file's bytes, decompressed and in UTF-8, and the file below that tells how far it was
        read.
        """
        with contextlib.ExitStack() as stack:
            disk = cast(BinaryIO, stack.enter_context(self._path.open("rb", buffering=0)))
            plain = disk
            if self._compression == "gzip":
                packed = io.BufferedReader(cast(io.RawIOBase, disk), 1 << 20)
                plain = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=packed)))
            elif self._compression == "zstd":
                unpacked = pa.CompressedInputStream(pa.PythonFile(disk, "r"), "zstd")
                plain = cast(BinaryIO, stack.enter_context(unpacked))
            if not self._text.is_utf_8:
                recoded = pa.transcoding_input_stream(
                    pa.PythonFile(plain, "r"), self._text.encoding, UTF_8
                )
                plain = cast(BinaryIO, stack.enter_context(recoded))
            yield plain, disk

    def fraction(self, disk: BinaryIO) -> float:
        """How much of the file has been read, 0 to 1."""
        # The position of the descriptor itself: another thread may be reading through ``disk``.
        return os.lseek(disk.fileno(), 0, os.SEEK_CUR) / self._size if self._size else 1.0
