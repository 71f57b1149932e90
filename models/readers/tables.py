"""What all readers share: finding a file, reading it as arrow columns, and telling what is wrong.

Every function here raises `DataError` with one line that names the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from infra.arrays import I64
from infra.errors import DataError, hint
from models.data.interactions import Column

TimeUnit = Literal["s", "ms", "us"]

TEXT_BLOCK: Final = 16 << 20
"""Bytes of text parsed at a time; a line must fit into one block."""

_PER_MS: Final = {"s": 1000.0, "ms": 1.0, "us": 0.001}


@dataclass(frozen=True)
class Origin:
    """Where a data set comes from."""

    name: str
    """Full name of the data set."""
    url: str
    """Where to get it."""
    licence: str
    """What the publishers allow."""

    def missing(self, what: str) -> DataError:
        """The error that says that ``what`` is not there, and where to get it."""
        return DataError(f"{what}; get {self.name} from {self.url} (licence: {self.licence})")


def find(path: Path, names: Sequence[str], origin: Origin) -> Path:
    """``path`` itself if it is a file, else the first of ``names`` that lies in it.

    Raises:
        DataError: there is none; tells where to get it, and its licence.
    """
    if path.is_file():
        return path
    found = lying_in(path, names)
    if found is not None:
        return found
    if not path.exists():
        raise origin.missing(f"{path} is not there")
    raise origin.missing(f"{path} holds no {' or '.join(names)}")


def lying_in(directory: Path, names: Iterable[str]) -> Path | None:
    """The first of ``names`` that lies in a directory."""
    return next((directory / name for name in names if (directory / name).is_file()), None)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Some columns of a parquet file, or of a directory of them."""
    with reading(path, "parquet"):
        names = pyarrow.parquet.ParquetDataset(path).schema.names
    if columns is not None:
        require(path, names, columns)
    with reading(path, "parquet"):
        return pyarrow.parquet.read_table(path, columns=None if columns is None else [*columns])


def read_csv(
    path: Path,
    columns: Sequence[str] | None = None,
    *,
    types: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
    delimiter: str = ",",
    quoted: bool = True,
    encoding: str = "utf-8",
    dates: Sequence[Any] = (),
) -> pa.Table:
    """Some columns of a CSV file, compressed if its name says so (.gz, .bz2, .zst).

    Args:
        columns: the columns to keep; others are not held in memory.
        types: arrow types of columns, where they are not to be guessed.
        names: the columns' names, for a file without a header.
        quoted: whether fields may stand in quotes (and then hold line breaks).
        dates: formats of times, as of `datetime.strptime`; ISO 8601 is always read.
    """
    read = pyarrow.csv.ReadOptions(
        column_names=None if names is None else [*names], encoding=encoding, block_size=TEXT_BLOCK
    )
    parse = pyarrow.csv.ParseOptions(
        delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
    )
    if columns is not None:
        require(path, csv_header(path, delimiter, encoding) if names is None else names, columns)
    convert = pyarrow.csv.ConvertOptions(
        column_types={**(types or {})},
        include_columns=None if columns is None else [*columns],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
        timestamp_parsers=[pyarrow.csv.ISO8601, *dates],
    )
    with reading(path, "CSV"):
        return pyarrow.csv.read_csv(
            str(path), read_options=read, parse_options=parse, convert_options=convert
        )


def csv_header(path: Path, delimiter: str = ",", encoding: str = "utf-8") -> list[str]:
    """The cells of a CSV file's first line."""
    line = first_bytes(path, 1 << 16).splitlines()[:1]
    if not line:
        raise DataError(f"{path} is empty")
    text = line[0].decode(encoding, "replace").removeprefix("\ufeff")
    return [cell.strip().strip('"') for cell in text.split(delimiter)]


def read_json(path: Path, fields: Mapping[str, Any]) -> pa.Table:
    """Some fields of a file with one JSON object a line, compressed if its name says so.

    Args:
        fields: the fields' arrow types; a field that no object has is an error.
    """
    with reading(path, "JSON lines"):
        return pyarrow.json.read_json(
            str(path),
            read_options=pyarrow.json.ReadOptions(block_size=TEXT_BLOCK),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=pa.schema(list(fields.items())),
                unexpected_field_behavior="ignore",
            ),
        )


def first_bytes(path: Path, size: int) -> bytes:
    """How a file begins, uncompressed."""
    with reading(path, "a file"), pa.input_stream(str(path), compression="detect") as stream:
        return bytes(stream.read(size))


def require(path: Path, there: Iterable[str], wanted: Iterable[str]) -> None:
    """Check that a file has all the columns that are wanted of it."""
    there = list(there)
    for name in wanted:
        if name not in there:
            raise DataError(f"{path} lacks the column {name!r}; {hint(name, there)}")


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """A context whose errors of arrow and of the disk become one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there; check the path") from error
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read as {kind}: {reason}") from error


def seconds(column: Column, where: str, unit: TimeUnit | None = None) -> I64:
    """i64[N]: times in whole seconds since epoch; see `milliseconds`."""
    return milliseconds(column, where, unit) // 1000


def milliseconds(column: Column, where: str, unit: TimeUnit | None = None) -> I64:
    """i64[N]: times in ms since epoch.

    Args:
        column: timestamps (without a zone: UTC), ISO 8601 texts, or numbers.
        where: what errors name, a file and a column.
        unit: what numbers count.

    Raises:
        DataError: a time is null or no time, or there are numbers and no unit.
    """
    if column.null_count:
        at = np.concatenate([c.is_null().to_numpy(zero_copy_only=False) for c in _chunks(column)])
        raise DataError(f"{where} is null in row {int(np.argmax(at)) + 1}; drop such rows")
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        if unit is None:
            raise DataError(f"{where} is {kind}, not a timestamp; say its time_unit: s, ms or us")
        return _to_ms(column.to_numpy(), where, unit)
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        column = _as_timestamps(column, where)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    ms = column.cast(pa.timestamp("ms", getattr(column.type, "tz", None)), safe=False)
    whole: I64 = ms.cast(pa.int64()).to_numpy()
    return whole


def _to_ms(numbers: Any, where: str, unit: TimeUnit) -> I64:
    if np.issubdtype(numbers.dtype, np.integer):
        numbers = numbers.astype(np.int64)
        whole: I64 = numbers // 1000 if unit == "us" else numbers * int(_PER_MS[unit])
        return whole
    if not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        raise DataError(f"{where} is no number in row {row + 1}; drop such rows")
    floored: I64 = np.floor(numbers * _PER_MS[unit]).astype(np.int64)
    return floored


def _as_timestamps(column: Column, where: str) -> Column:
    try:
        return column.cast(pa.timestamp("us", "UTC"))
    except pa.ArrowException:
        pass
    try:
        return column.cast(pa.timestamp("us"))
    except pa.ArrowException as error:
        shown = next((str(value)[:40] for value in column[:1].to_pylist()), "")
        raise DataError(
            f"{where} must be a timestamp, a number or ISO 8601 text, not {column.type}"
            f" ({shown!r} in row 1)"
        ) from error


def renamed(column: Column, name: Callable[[str], str]) -> Column:
    """A column of texts with every distinct value replaced."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks()
    values = pa.array([name(value) for value in column.dictionary.to_pylist()], pa.string())
    return pa.DictionaryArray.from_arrays(column.indices, values)


def _chunks(column: Column) -> list[Column]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]
