"""CSV files. A cell is a text or a number, and only its look tells which.

A cell that looks like a floating-point number (7.0, 1.5e3) is one, as in JSON without quotes; so a
column of ids that a table made floating-point for want of one value is read as whole numbers, and
one with fractions is refused. All other cells are texts: the rules make no difference between a
whole number and its text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv

from infra.arrays import I64, Bools
from streaming.events.fields import NUMERIC
from streaming.events.rejects import Reason
from streaming.files.batches import Column, RawBatch, RowReject, pc
from streaming.files.cells import cell
from streaming.files.formats.text import TextFile

# With a point, or an exponent that has a sign, as programs write them; "12e5" may well be an id.
_FLOAT: Final = r"^-?[0-9]+(\.[0-9]+([eE][-+]?[0-9]+)?|[eE][-+][0-9]+)$"
_MARKS: Final = (b".", b"+", b"-")
"""One of these is in every such cell, and they are found in all cells at once."""


class CsvRows:
    """The rows of a CSV file, below one line with the columns' names.

    Args:
        text: the file.
        block: bytes parsed at a time; a row must fit into one block.
        delimiter: what is between cells.
    """

    rows: int | None = None

    def __init__(self, text: TextFile, *, block: int, delimiter: str = ",") -> None:
        self._text = text
        self._delimiter = delimiter
        self._block = block

    def names(self) -> list[str] | None:
        """The columns' names."""
        with self._text.open() as (stream, _), self._open(stream, ()) as reader:
            return list(reader.schema.names)

    def batches(self, columns: Mapping[str, str], start_row: int) -> Iterator[RawBatch]:
        """The rows from ``start_row`` on; ``columns`` is our field -> the file's column."""
        invalid: list[RowReject] = []

        def handle(row: Any) -> Literal["skip"]:
            wrong = f"{row.actual_columns} columns instead of {row.expected_columns}"
            # Counted from 1, and the header is one.
            invalid.append(RowReject(row.number - 2, Reason.WRONG_SHAPE, wrong))
            return "skip"

        names = list(set(columns.values()))
        next_row = 0
        with self._text.open() as (stream, disk), self._open(stream, names, handle) as reader:
            for batch in reader:
                rows = _number(next_row, batch.num_rows, [reject.row for reject in invalid])
                next_row = int(rows[-1]) + 1 if len(rows) else next_row
                passed = [reject for reject in invalid if reject.row < next_row]
                invalid[:] = invalid[len(passed) :]
                if next_row <= start_row:
                    continue
                at = int(np.searchsorted(rows, start_row))
                found = {f: batch.column(name).slice(at) for f, name in columns.items()}
                yield RawBatch(
                    rows[at:],
                    next_row,
                    self._text.fraction(disk),
                    found,
                    functools.partial(_cell, found),
                    _floats(found, len(rows) - at),
                    [reject for reject in passed if reject.row >= start_row],
                )
        last = [reject for reject in invalid if reject.row >= start_row]
        if last:
            found = {name: pa.array([], pa.string()) for name in columns}
            yield RawBatch(
                np.arange(0),
                last[-1].row + 1,
                1.0,
                found,
                functools.partial(_cell, found),
                None,
                last,
            )

    def _open(
        self,
        stream: BinaryIO,
        names: Sequence[str],
        handle: Callable[[Any], Literal["skip"]] | None = None,
    ) -> Any:
        return pyarrow.csv.open_csv(
            stream,
            # Threads would cost the numbers of invalid rows.
            read_options=pyarrow.csv.ReadOptions(block_size=self._block, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self._delimiter,
                newlines_in_values=True,
                invalid_row_handler=handle or (lambda _: "skip"),
            ),
            # As bytes: a cell that is no number or no UTF-8 is then one bad row, not a bad file.
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names or None, column_types=dict.fromkeys(names, pa.binary())
            ),
        )


def _cell(columns: dict[str, Column], index: int, name: str) -> object:
    value = cell(columns, index, name)
    if isinstance(value, str) and name not in NUMERIC and re.fullmatch(_FLOAT, value):
        return float(value)
    return value


def _floats(columns: dict[str, Column], count: int) -> Bools | None:
    """bool[n]: the rows with an id that looks like a floating-point number; None: there is none."""
    found = np.zeros(count, np.bool_)
    for name, column in columns.items():
        _, _, data = column.buffers()
        if name in NUMERIC or data is None or not any(map(data.to_pybytes().__contains__, _MARKS)):
            continue
        found |= pc.match_substring_regex(column, _FLOAT).to_numpy(zero_copy_only=False)
    return found if found.any() else None


def _number(first: int, count: int, invalid: Sequence[int]) -> I64:
    """Row numbers of ``count`` good rows from row ``first`` on, among ascending invalid ones."""
    good_before = np.array(invalid, np.int64) - first - np.arange(len(invalid))
    at = np.arange(count, dtype=np.int64)
    return first + at + np.searchsorted(good_before, at, side="right")
