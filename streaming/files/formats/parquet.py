"""Parquet files. Columns are typed and may be nested."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from streaming.files.batches import Column, RawBatch, pc
from streaming.files.cells import cell


class ParquetRows:
    """The rows of a Parquet file.

    Args:
        path: the file.
        batch_rows: rows read at a time.
    """

    def __init__(self, path: Path, *, batch_rows: int) -> None:
        self._path = path
        self._batch_rows = batch_rows
        self.rows: int | None = None
        """Rows in the file, once `names` was asked."""

    def names(self) -> list[str] | None:
        """The columns' names; those of nested columns with dots."""
        with pyarrow.parquet.ParquetFile(self._path) as file:
            self.rows = file.metadata.num_rows
            return list(_flat_names(file.schema_arrow))

    def batches(self, columns: Mapping[str, str], start_row: int) -> Iterator[RawBatch]:
        """The rows from ``start_row`` on; ``columns`` is our field -> the file's column."""
        # pre_buffer would hold a whole row group of every column in memory.
        with pyarrow.parquet.ParquetFile(self._path, pre_buffer=False, buffer_size=1 << 20) as file:
            metadata = file.metadata
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            ends = np.cumsum(sizes, dtype=np.int64)
            group = int(np.searchsorted(ends, start_row, side="right"))
            row = int(ends[group - 1]) if group else 0
            total = max(1, metadata.num_rows)
            for batch in file.iter_batches(
                self._batch_rows,
                row_groups=list(range(group, len(sizes))),
                columns=sorted(set(columns.values())),
            ):
                first, row = row, row + batch.num_rows
                if row <= start_row:
                    continue
                begin = max(first, start_row)
                found = {
                    name: _column(batch, path).slice(begin - first)
                    for name, path in columns.items()
                }
                find = functools.partial(cell, found)
                yield RawBatch(np.arange(begin, row), row, row / total, found, find)


def _flat_names(schema: Any, prefix: str = "") -> Iterator[str]:
    for column in schema:
        yield prefix + column.name
        if pa.types.is_struct(column.type):
            yield from _flat_names(column.type, f"{prefix}{column.name}.")


def _column(batch: Any, path: str) -> Column:
    """A column by its name, or by its dotted path into nested columns."""
    if path in batch.schema.names:
        return batch.column(path)
    first, *inner = path.split(".")
    return pc.struct_field(batch.column(first), inner)
