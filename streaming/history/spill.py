"""Events parted by user into files, so that the users of one file fit into memory together.

Each file is one stream of Arrow's IPC format after the other, with a new one after each `commit`;
what follows the last commit of a process that was killed is cut off when it goes on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from infra.behaviors import BEHAVIOR
from infra.errors import SourceError, one_line
from streaming.history.packing import Packed
from streaming.history.placing import bucket_numbers, murmur2

BUCKETS: Final = 256
"""Files at most: as many are open at once."""

BUCKET_ROWS: Final = 500_000
"""Events that a file is to have: some 40 MB of them, and as much again while they are sorted."""

SPILLED_TOGETHER: Final = 524_288
"""Events that are parted at once."""

ROW_BYTES: Final = 50
"""Of an event in the files, about."""

SUFFIX: Final = ".arrows"
"""Of the files' names."""

Table = Any
"""A pyarrow table of `SCHEMA`; its stubs make a type of every column type."""

SCHEMA: Final = pa.schema(
    [
        ("user", pa.string()),
        ("behavior", pa.binary(BEHAVIOR.itemsize)),
        ("event_key", pa.uint64()),
        ("input", pa.uint32()),
    ]
)
_OPTIONS: Final = pyarrow.ipc.IpcWriteOptions(compression="lz4")


def buckets_for(rows: int, bucket_rows: int = BUCKET_ROWS) -> int:
    """How many files for about so many events: a power of two.

    >>> buckets_for(10), buckets_for(3_000_000), buckets_for(10**10)
    (1, 8, 256)
    """
    wanted = -(-rows // bucket_rows)
    return int(min(BUCKETS, 1 << max(0, wanted - 1).bit_length()))


class Spill:
    """The files of one job in a folder, of which other processes keep out.

    Args:
        folder: where they are; made where need be.
        buckets: how many.
        part, parts: keep the users of one part of so many only, from 0.
    """

    def __init__(self, folder: Path, buckets: int, part: int = 0, parts: int = 1) -> None:
        self._folder = folder
        self.buckets = buckets
        self._part, self._parts = part, parts
        self._waiting: list[tuple[Packed, int]] = []
        self._rows = 0
        self._files: list[BinaryIO] = []
        self._streams: dict[int, Any] = {}
        self.taken = 0
        """Events taken, of whichever users."""
        self.kept = 0
        """Events written, of the part's users."""

    def begin(self, sizes: Sequence[int] | None = None) -> None:
        """Open the files for writing, as they were at the commit that gave ``sizes``; None: anew.

        Raises:
            SourceError: they cannot be written, or are not what they were.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for number in range(self.buckets):
                file = self._path(number).open("ab")
                self._files.append(file)
                size = sizes[number] if sizes else 0
                if file.tell() < size:
                    raise SourceError(f"{self._path(number)} was cut short: remove {self._folder}")
                file.truncate(size)
        except OSError as error:
            raise self._failed(error) from error

    def add(self, events: Packed, source: int) -> None:
        """Take events of an input, by its number."""
        self._waiting.append((events, source))
        self._rows += len(events)
        self.taken += len(events)
        if self._rows >= SPILLED_TOGETHER:
            self._write()

    def commit(self) -> list[int]:
        """Have all that was taken on the disk; the sizes of the files then."""
        self._write()
        try:
            for stream in self._streams.values():
                stream.close()
            self._streams.clear()
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
            return [file.tell() for file in self._files]
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Leave the files as they are."""
        for file in self._files:
            file.close()
        self._files.clear()

    def read(self, number: int) -> Table:
        """All events of a file, in the order in which they were taken."""
        batches: list[Any] = []
        try:
            with pa.OSFile(str(self._path(number))) as file:
                while file.tell() < file.size():
                    batches += pyarrow.ipc.open_stream(file)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(
                f"{self._path(number)} cannot be read: {one_line(error)}; remove {self._folder},"
                " and begin again"
            ) from error
        table = pa.Table.from_batches(batches, SCHEMA).combine_chunks()
        if table.column("user").num_chunks > 1:
            raise SourceError(
                f"{self._path(number)} has {len(table)} events, more than are sorted at once: have"
                " several processes share the job (--part)"
            )
        return table

    def _write(self) -> None:
        if not self._waiting:
            return
        users = pa.concat_arrays([events.users for events, _ in self._waiting])
        behaviors = np.concatenate([events.behaviors for events, _ in self._waiting])
        keys = np.concatenate([events.event_keys for events, _ in self._waiting])
        numbers = [source for _, source in self._waiting]
        sources = np.repeat(np.array(numbers, np.uint32), [len(e) for e, _ in self._waiting])
        self._waiting.clear()
        self._rows = 0
        hashes = murmur2(users)
        places = bucket_numbers(hashes, self.buckets * self._parts)
        buckets = places // self._parts
        # Few distinct small numbers: a radix sort.
        order = np.argsort(buckets.astype(np.uint8), kind="stable")
        if self._parts > 1:
            order = order[places[order] % self._parts == self._part]
        self.kept += len(order)
        size = BEHAVIOR.itemsize
        packed = pa.py_buffer(behaviors[order].tobytes())
        batch = pa.RecordBatch.from_arrays(
            [
                users.take(pa.array(order)),
                pa.Array.from_buffers(pa.binary(size), len(order), [None, packed]),
                pa.array(keys[order]),
                pa.array(sources[order]),
            ],
            schema=SCHEMA,
        )
        bounds = np.searchsorted(buckets[order], np.arange(self.buckets + 1)).tolist()
        try:
            for number in range(self.buckets):
                start, end = bounds[number], bounds[number + 1]
                if end > start:
                    self._stream(number).write_batch(batch.slice(start, end - start))
        except OSError as error:
            raise self._failed(error) from error

    def _stream(self, number: int) -> Any:
        if number not in self._streams:
            stream = pyarrow.ipc.new_stream(self._files[number], SCHEMA, options=_OPTIONS)
            self._streams[number] = stream
        return self._streams[number]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:03}{SUFFIX}"

    def _failed(self, error: OSError) -> SourceError:
        return SourceError(
            f"{self._folder} cannot be written: {error.strerror or one_line(error)}; make room, or"
            " choose another folder with --work"
        )
