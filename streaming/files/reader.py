"""Files of behavior events: Parquet, CSV and JSON lines, read as columns in bounded memory.

A file is read in batches of rows. A row is known by its number, counted from 0 through the whole
file, bad rows included; so a row's number never depends on where reading began or on what was
skipped, and can serve as an offset (backfill) and as part of an event id (replay).

The columns are mapped to ours by `infra.settings.EventSettings`, as the events of a topic are.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import gzip
import io
import operator
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
import xxhash

from infra.behaviors import ACTIONS
from infra.errors import SourceError, hint, one_line
from infra.settings import EVENT_FIELDS, EventSettings
from infra.telemetry import get_logger

BATCH_ROWS: Final = 65_536
"""Rows read at a time: some 10 MB of columns; larger batches gain nothing."""

TEXT_BLOCK: Final = 4 << 20
"""Bytes of text parsed at a time. A CSV row must fit into one block."""

IDENTITY_SAMPLE: Final = 1 << 20
"""Bytes hashed at each end of a file to know it again: a Parquet file's schema and statistics are
at its end, and a text file that was appended to has another size."""

REQUIRED_FIELDS: Final = ("user_id", "item_id", "action", "event_time")

OnBad = Literal["stop", "skip"]
Bools = npt.NDArray[np.bool_]
pc: Final[Any] = pyarrow.compute  # its stubs refuse half of what it accepts
Array = Any  # pa.Array; its stubs make a type of every value type

_MS_PER_UNIT: Final = {"s": 1000.0, "ms": 1.0, "us": 0.001}
_MAX_DWELL_MS: Final = 2**32 - 1
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NUMBERS: Final = ("event_time", "dwell_ms")
_FORMATS: Final = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events of n consecutive rows (less the skipped ones), as columns.

    ``users``, ``items``, ``categories``, ``event_ids`` and ``sources`` are pyarrow string arrays
    of length n; the last three are None where the file has no such column, and null where a row
    has none.
    """

    rows: npt.NDArray[np.int64]
    """i64[n], ascending: each event's row number in the file, from 0."""
    next_row: int
    """The position to go on from after this batch."""
    users: Array
    items: Array
    times: npt.NDArray[np.int64]
    """i64[n]: event times, ms since epoch, UTC."""
    actions: npt.NDArray[np.uint8]
    """u8[n]: codes of `infra.behaviors.ACTIONS`."""
    categories: Array | None
    dwells: npt.NDArray[np.uint32] | None
    """u32[n]: dwell times in ms, 0 where a row has none."""
    event_ids: Array | None
    sources: Array | None
    fraction: float
    """How much of the file has been read, 0 to 1."""

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, good: Bools) -> EventBatch:
        """The events where ``good`` (bool[n]) is true."""
        mask = pa.array(good)

        def cut(column: Array | None) -> Array | None:
            return None if column is None else column.filter(mask)

        return EventBatch(
            rows=self.rows[good],
            next_row=self.next_row,
            users=cut(self.users),
            items=cut(self.items),
            times=self.times[good],
            actions=self.actions[good],
            categories=cut(self.categories),
            dwells=None if self.dwells is None else self.dwells[good],
            event_ids=cut(self.event_ids),
            sources=cut(self.sources),
            fraction=self.fraction,
        )


@dataclass(slots=True)
class _RawBatch:
    """Columns as the file has them: one pyarrow array per mapped field that is there."""

    rows: npt.NDArray[np.int64]
    next_row: int
    columns: dict[str, Array]
    fraction: float
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    """Rows that could not be parsed at all (not in ``rows``), and why."""
    problems: list[_Problem] = field(default_factory=list)
    """What is wrong with rows that could be parsed."""

    def tail(self, start_row: int) -> _RawBatch:
        """The rows from ``start_row`` on. Only for batches whose problems are not known yet."""
        at = int(np.searchsorted(self.rows, start_row))
        if at == 0:
            return self
        columns = {name: column.slice(at) for name, column in self.columns.items()}
        return _RawBatch(self.rows[at:], self.next_row, columns, self.fraction, self.unreadable)


class EventFile:
    """One file of behavior events: what it is, how long it is, and its events from any row on.

    The extension tells the format: ``.parquet``, ``.csv``, ``.jsonl`` or ``.ndjson``, the text
    formats also with ``.gz`` after it.
    """

    def __init__(
        self,
        path: Path | str,
        mapping: EventSettings | None = None,
        *,
        on_bad: OnBad = "stop",
        batch_rows: int = BATCH_ROWS,
        text_block: int = TEXT_BLOCK,
        now_ms: int | None = None,
    ) -> None:
        """Open the file far enough to know that its columns fit the mapping.

        Args:
            path: the file.
            mapping: which column holds which of our fields, and within which limits.
            on_bad: what a row that is not an event does: ``stop`` raises and names it, ``skip``
                counts it in `skipped`.
            batch_rows: rows read at a time (of a CSV file: those in ``text_block`` bytes).
            text_block: bytes of text parsed at a time.
            now_ms: the time against which events from the future are told; default: now.

        Raises:
            SourceError: there is no such file, it cannot be read, or a column is missing.
        """
        self.path = Path(path)
        self.on_bad: OnBad = on_bad
        self.skipped: Counter[str] = Counter()
        """Rows skipped so far, by reason."""
        self._mapping = mapping or EventSettings()
        self._batch_rows = batch_rows
        self.format, self.compressed = _format(self.path)
        try:
            self.size = self.path.stat().st_size
            self.identity = _identity(self.path, self.size)
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}; check the path") from error
        self.rows: int | None = None
        """Rows in the file, where the format tells without reading it all."""
        self._block = text_block
        self._columns: dict[str, str] = {}
        self._columns = self._find_columns()
        self._convert = _Converter(self.path, self._mapping, now_ms)

    def batches(self, start_row: int = 0) -> Iterator[EventBatch]:
        """The events from row ``start_row`` on, in the file's order.

        Raises:
            SourceError: the file cannot be read further, or (on_bad ``stop``) a row is not an
                event; the message names the row (counted from 1) and the column.
        """
        readers = {"parquet": self._read_parquet, "csv": self._read_csv, "jsonl": self._read_jsonl}
        raws = readers[self.format](start_row)
        while True:
            with self._reading():  # not around the yield: the consumer's errors are its own
                raw = next(raws, None)
            if raw is None:
                return
            yield self._events(raw.tail(start_row))

    def _events(self, raw: _RawBatch) -> EventBatch:
        for row, reason in raw.unreadable:
            self._reject(row, reason, "unreadable")
        converted, problems = self._convert(raw)
        if not problems:
            return converted
        good = np.ones(len(converted), np.bool_)
        for problem in problems:
            good &= ~problem.rows
        if self.on_bad == "stop":
            first = int(np.argmin(good))
            problem = next(p for p in problems if p.rows[first])
            self._reject(int(raw.rows[first]), problem.tell(first), problem.reason)
        told = np.zeros(len(converted), np.bool_)
        for problem in problems:  # a row counts once, for the first thing wrong with it
            fresh = problem.rows & ~told
            if fresh.any():
                first = int(np.argmax(fresh))
                self._count(problem.reason, int(fresh.sum()))
                if self.skipped[problem.reason] == int(fresh.sum()):
                    log.warning(
                        "bad rows skipped",
                        file=str(self.path),
                        first_row=int(raw.rows[first]) + 1,
                        reason=problem.tell(first),
                    )
            told |= problem.rows
        return converted.keep(good)

    def _reject(self, row: int, what: str, reason: str) -> None:
        if self.on_bad == "stop":
            raise SourceError(
                f"{self.path}, row {row + 1}: {what}; correct the row, or have bad rows skipped"
            )
        if not self.skipped[reason]:
            log.warning("bad rows skipped", file=str(self.path), first_row=row + 1, reason=what)
        self._count(reason, 1)

    def _count(self, reason: str, rows: int) -> None:
        self.skipped[reason] += rows

    # Columns

    def _find_columns(self) -> dict[str, str]:
        """Field -> column for the fields that this file has."""
        wanted = {name: self._mapping.fields.get(name, name) for name in EVENT_FIELDS}
        if self.format == "jsonl":
            with self._reading(), self._open() as (stream, _):
                stream.read(1)  # an object's fields are known row by row; but the file opens
            return wanted
        there = self._schema()
        found: dict[str, str] = {}
        for name, column in wanted.items():
            if column in there:
                found[name] = column
            elif name in self._mapping.constants:
                continue
            elif name in REQUIRED_FIELDS or column != name:
                raise SourceError(
                    f"{self.path}: there is no column {column!r} for {name};"
                    f" map {name} to a column of the file; {hint(column, there)}"
                )
        return found

    def _schema(self) -> list[str]:
        """The columns' names; those of nested columns with dots."""
        with self._reading():
            if self.format == "parquet":
                with pyarrow.parquet.ParquetFile(self.path) as file:
                    self.rows = file.metadata.num_rows
                    return list(_flat_names(file.schema_arrow))
            with self._open() as (stream, _), self._open_csv(stream) as reader:
                return list(reader.schema.names)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
            raise SourceError(
                f"{self.path}: cannot be read as {self.format}: {one_line(error)};"
                " check that the file is complete and its extension right"
            ) from error

    # Formats

    def _read_parquet(self, start_row: int) -> Iterator[_RawBatch]:
        # pre_buffer would hold a whole row group of every column in memory.
        with pyarrow.parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20) as file:
            metadata = file.metadata
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            ends = np.cumsum(sizes, dtype=np.int64)
            group = int(np.searchsorted(ends, start_row, side="right"))
            row = int(ends[group - 1]) if group else 0
            total = max(1, metadata.num_rows)
            for batch in file.iter_batches(
                self._batch_rows,
                row_groups=list(range(group, len(sizes))),
                columns=sorted(set(self._columns.values())),
            ):
                first, row = row, row + batch.num_rows
                if row <= start_row:
                    continue
                columns = {f: _column(batch, path) for f, path in self._columns.items()}
                yield _RawBatch(np.arange(first, row), row, columns, row / total)

    def _read_csv(self, start_row: int) -> Iterator[_RawBatch]:
        invalid: list[tuple[int, str]] = []

        def handle(row: Any) -> Literal["skip"]:
            what = f"has {row.actual_columns} columns instead of {row.expected_columns}"
            invalid.append((row.number - 2, what))  # counted from 1, and the header is one
            return "skip"

        next_row = 0
        with self._open() as (stream, disk), self._open_csv(stream, handle) as reader:
            for batch in reader:
                rows = _number(next_row, batch.num_rows, [row for row, _ in invalid])
                next_row = int(rows[-1]) + 1 if len(rows) else next_row
                passed = [x for x in invalid if x[0] < next_row]
                invalid = [x for x in invalid if x[0] >= next_row]
                if next_row <= start_row:
                    continue
                columns = {f: batch.column(name) for f, name in self._columns.items()}
                fraction = _fraction(disk, self.size)
                unreadable = [x for x in passed if x[0] >= start_row]
                yield _RawBatch(rows, next_row, columns, fraction, unreadable)
        last = [x for x in invalid if x[0] >= start_row]
        if last:
            nothing = {f: pa.array([], pa.string()) for f in self._columns}
            yield _RawBatch(np.arange(0), last[-1][0] + 1, nothing, 1.0, last)

    def _open_csv(
        self, stream: BinaryIO, handle: Callable[[Any], Literal["skip"]] | None = None
    ) -> Any:
        names = list(set(self._columns.values())) if self._columns else None
        return pyarrow.csv.open_csv(
            stream,
            # Threads would cost the numbers of invalid rows.
            read_options=pyarrow.csv.ReadOptions(block_size=self._block, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(
                newlines_in_values=True, invalid_row_handler=handle or (lambda _: "skip")
            ),
            # As bytes: a cell that is no number or no UTF-8 is then one bad row, not a bad file.
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names, column_types=dict.fromkeys(names or (), pa.binary())
            ),
        )

    def _read_jsonl(self, start_row: int) -> Iterator[_RawBatch]:
        decoder, getters = _json_rows(self._columns)
        longest = self._mapping.max_event_bytes
        row = 0
        with self._open() as (stream, disk):
            for block in _line_blocks(stream, self._block, longest):
                for at in range(0, len(block), self._batch_rows):
                    lines = block[at : at + self._batch_rows]
                    first, row = row, row + len(lines)
                    if row <= start_row:
                        continue
                    skip = max(0, start_row - first)
                    raw = _decode_lines(lines[skip:], first + skip, decoder, getters, longest)
                    raw.fraction = _fraction(disk, self.size)
                    yield raw

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[BinaryIO, BinaryIO]]:
        """The file's bytes, decompressed, and the file below that tells how far it was read."""
        with self.path.open("rb", buffering=0) as disk:
            if self.compressed:
                with gzip.GzipFile(fileobj=io.BufferedReader(disk, 1 << 20)) as plain:
                    yield cast(BinaryIO, plain), cast(BinaryIO, disk)
            else:
                yield cast(BinaryIO, disk), cast(BinaryIO, disk)


def read_events(
    path: Path | str,
    mapping: EventSettings | None = None,
    *,
    start_row: int = 0,
    on_bad: OnBad = "stop",
    batch_rows: int = BATCH_ROWS,
) -> Iterator[EventBatch]:
    """The events of a file in batches; `EventFile` in one call, for those who need no more."""
    return EventFile(path, mapping, on_bad=on_bad, batch_rows=batch_rows).batches(start_row)


@dataclass(slots=True)
class _Problem:
    """Rows of a batch that are no events, all for one reason."""

    rows: Bools
    reason: str
    tell: Callable[[int], str]
    """What is wrong with the row at an index of the batch, for a person."""


class _Converter:
    """Turns raw columns into an `EventBatch` under an `EventSettings`, whole columns at a time."""

    def __init__(self, path: Path, mapping: EventSettings, now_ms: int | None) -> None:
        self._path = path
        self._mapping = mapping
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        self._earliest = mapping.earliest_ms
        self._latest = now_ms + mapping.max_ahead_s * 1000
        self._codes = ACTIONS | {theirs: ACTIONS[ours] for theirs, ours in mapping.actions.items()}

    def __call__(self, raw: _RawBatch) -> tuple[EventBatch, list[_Problem]]:
        """The batch with all rows, good or bad, and what is wrong with which."""
        problems = list(raw.problems)

        def text(name: str) -> Array | None:
            return self._text(name, raw, problems)

        users = text("user_id")
        items = text("item_id")
        times = self._times(raw, problems)
        batch = EventBatch(
            rows=raw.rows,
            next_row=raw.next_row,
            users=users,
            items=items,
            times=times,
            actions=self._actions(text("action"), problems),
            categories=text("category_id"),
            dwells=self._dwells(raw, problems),
            event_ids=text("event_id"),
            sources=text("source"),
            fraction=raw.fraction,
        )
        return batch, problems

    def _text(self, name: str, raw: _RawBatch, problems: list[_Problem]) -> Array | None:
        """A column of ids as strings, null where a row has none."""
        default = self._mapping.constants.get(name)
        column = raw.columns.get(name)
        if column is None and default is None and name not in REQUIRED_FIELDS:
            return None
        if column is None:
            return pa.repeat(pa.scalar(str(default), pa.string()), len(raw.rows))
        column, undecodable = self._to_text(name, column)
        if undecodable is not None:
            problems.append(_Problem(undecodable, f"{name} unreadable", _say(name, "is not UTF-8")))
        lengths = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
        longest = self._mapping.max_id_bytes
        if (lengths > longest).any():
            told = _say(name, f"is longer than {longest} bytes")
            problems.append(_Problem(lengths > longest, f"{name} too long", told))
        if name == "user_id":
            problems.extend(_with_nul(name, column))
        empty = lengths == 0
        if not empty.any():
            return column
        if name in REQUIRED_FIELDS and default is None:
            problems.append(_Problem(empty, f"{name} missing", _say(name, "is missing")))
            return column
        if empty.all() and default is None:
            return None
        return pc.if_else(pa.array(empty), pa.scalar(default and str(default), pa.string()), column)

    def _to_text(self, name: str, column: Array) -> tuple[Array, Bools | None]:
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if pa.types.is_floating(kind):  # what becomes of integers where a row has none
            try:
                column = column.cast(pa.int64())
            except pa.ArrowInvalid:
                raise self._unfit(name, kind, "text or whole numbers") from None
            return column.cast(pa.string()), None
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            try:
                return column.cast(pa.string()), None
            except pa.ArrowInvalid:
                texts = [_utf8(value) for value in column.to_pylist()]
                undecodable = np.array([text is False for text in texts])
                return pa.array([text or None for text in texts], pa.string()), undecodable
        if (
            pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_null(kind)
        ):
            return column.cast(pa.string()), None
        raise self._unfit(name, kind, "text or whole numbers")

    def _actions(self, names: Array, problems: list[_Problem]) -> npt.NDArray[np.uint8]:
        encoded = pc.fill_null(names, "").dictionary_encode()
        distinct = encoded.dictionary.to_pylist()
        codes = np.array([self._codes.get(name, 0) for name in distinct], np.uint8)
        actions: npt.NDArray[np.uint8] = codes[encoded.indices.to_numpy(zero_copy_only=False)]
        unknown = actions == 0  # a missing one was told already
        if unknown.any():

            def tell(index: int) -> str:
                name = names[index].as_py() or ""
                known = hint(name, sorted(self._codes))
                return f"the action {name[:40]!r} is not known; map it to one that is: {known}"

            problems.append(_Problem(unknown, "action unknown", tell))
        return actions

    def _times(self, raw: _RawBatch, problems: list[_Problem]) -> npt.NDArray[np.int64]:
        name = "event_time"
        if name not in raw.columns:
            raise SourceError(
                f"{self._path}: event_time cannot be a constant; map it to a column of the file"
            )
        column = raw.columns[name]
        unit = self._mapping.time_unit
        kind = column.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            stamps = column.cast(pa.timestamp("ms"), safe=False)
            missing = stamps.is_null().to_numpy(zero_copy_only=False)
            times = _int64(stamps.cast(pa.int64()))
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
            if unit == "iso":
                raise self._unfit(name, kind, "ISO 8601 text; set time_unit to s, ms or us")
            missing = column.is_null().to_numpy(zero_copy_only=False)
            times = _scale(column.cast(pa.float64()) if unit != "ms" else column, unit)
        else:
            texts, undecodable = self._to_text(name, column)
            missing = pc.fill_null(pc.equal(texts, ""), True).to_numpy(zero_copy_only=False)
            times, wrong = _parse_iso(texts) if unit == "iso" else _parse_number(texts, unit)
            if undecodable is not None:
                wrong |= undecodable
            wrong &= ~missing
            if wrong.any():
                what = "an ISO 8601 time" if unit == "iso" else f"a time in {unit} since 1970"
                problems.append(_Problem(wrong, f"{name} unreadable", _show(name, texts, what)))
                missing = missing | wrong
        if missing.any():
            problems.append(_Problem(missing, f"{name} missing", _say(name, "is missing")))
        outside = ((times < self._earliest) | (times > self._latest)) & ~missing
        if outside.any():

            def tell(index: int) -> str:
                side = "in the future" if times[index] > self._latest else "too long ago"
                return (
                    f"event_time {_moment(int(times[index]))} is {side}; check time_unit ({unit})"
                )

            problems.append(_Problem(outside, f"{name} out of range", tell))
        return times

    def _dwells(self, raw: _RawBatch, problems: list[_Problem]) -> npt.NDArray[np.uint32] | None:
        name = "dwell_ms"
        column = raw.columns.get(name)
        default = int(self._mapping.constants.get(name, 0))
        if column is None:
            return np.full(len(raw.rows), default, np.uint32) if default else None
        kind = column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
            values = pc.fill_null(column.cast(pa.float64()), float(default))
            dwells = values.to_numpy(zero_copy_only=False)
            wrong = np.zeros(len(dwells), np.bool_)
        else:
            texts, undecodable = self._to_text(name, column)
            none = pc.fill_null(pc.equal(texts, ""), True).to_numpy(zero_copy_only=False)
            parsed, wrong = _parse_number(texts, "ms")
            dwells = np.where(none, default, parsed).astype(np.float64)
            wrong &= ~none
            if undecodable is not None:
                wrong |= undecodable
        with np.errstate(invalid="ignore"):
            wrong |= ~((dwells >= 0) & (dwells <= _MAX_DWELL_MS))
        if wrong.any():
            what = f"a number of ms from 0 to {_MAX_DWELL_MS}"
            problems.append(_Problem(wrong, f"{name} unreadable", _show(name, column, what)))
            dwells = np.where(wrong, 0, dwells)
        whole: npt.NDArray[np.uint32] = dwells.astype(np.uint32)
        return whole

    def _unfit(self, name: str, kind: Any, wanted: str) -> SourceError:
        column = self._mapping.fields.get(name, name)
        return SourceError(f"{self._path}: column {column!r} for {name} is {kind}, not {wanted}")


def _say(name: str, what: str) -> Callable[[int], str]:
    return lambda _: f"{name} {what}"


def _show(name: str, column: Array, what: str) -> Callable[[int], str]:
    def tell(index: int) -> str:
        value = column[index].as_py()
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        return f"{name} is {str(value)[:40]!r}, not {what}"

    return tell


def _with_nul(name: str, column: Array) -> list[_Problem]:
    """Stores end a user's key with NUL."""
    found = pc.fill_null(pc.match_substring(column, "\0"), False)
    if not pc.any(found).as_py():
        return []
    told = _say(name, "holds a NUL character")
    return [_Problem(found.to_numpy(zero_copy_only=False), f"{name} unreadable", told)]


def _utf8(value: bytes | None) -> str | Literal[False] | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return False


def _int64(column: Array) -> npt.NDArray[np.int64]:
    values: npt.NDArray[np.int64] = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    return values


def _scale(column: Array, unit: str) -> npt.NDArray[np.int64]:
    """Numbers of ``unit`` since epoch as i64 ms; 0 where null or beyond all times."""
    if pa.types.is_integer(column.type):
        column = column.cast(pa.int64(), safe=False)  # a u64 beyond i64 turns negative: rejected
        return _int64(column)
    values = pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False)
    ms = values * _MS_PER_UNIT[unit]
    with np.errstate(invalid="ignore"):
        inside = np.abs(ms) < 2.0**62
    return np.where(inside, np.round(np.where(inside, ms, 0)), -(2**62)).astype(np.int64)


def _parse_number(texts: Array, unit: str) -> tuple[npt.NDArray[np.int64], Bools]:
    """Decimal numbers of ``unit`` as i64 ms, and which could not be read."""
    try:
        plain = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
        numbers = plain.cast(pa.int64() if unit == "ms" else pa.float64())
        return _scale(numbers, unit), np.zeros(len(texts), np.bool_)
    except pa.ArrowInvalid:
        values = [_float(text) for text in texts.to_pylist()]
        wrong = np.array([value is None for value in values])
        return _scale(pa.array([value or 0.0 for value in values], pa.float64()), unit), wrong


def _float(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and np.isfinite(value) else None


def _parse_iso(texts: Array) -> tuple[npt.NDArray[np.int64], Bools]:
    """ISO 8601 times as i64 ms (UTC where they name no zone), and which could not be read."""
    plain = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    for kind in (pa.timestamp("ms", "UTC"), pa.timestamp("ms")):
        with contextlib.suppress(pa.ArrowInvalid):
            return _int64(plain.cast(kind).cast(pa.int64())), np.zeros(len(texts), np.bool_)
    values = [_iso_ms(text) for text in texts.to_pylist()]
    wrong = np.array([value is None for value in values])
    return np.array([value or 0 for value in values], np.int64), wrong


def _iso_ms(text: str | None) -> int | None:
    try:
        moment = dt.datetime.fromisoformat(text or "")
        moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
        return int((moment - _EPOCH) / dt.timedelta(milliseconds=1))
    except (ValueError, OverflowError):
        return None


def _moment(ms: int) -> str:
    try:
        return (_EPOCH + dt.timedelta(milliseconds=ms)).isoformat(timespec="seconds")
    except OverflowError:
        return f"{ms} ms"


def _format(path: Path) -> tuple[str, bool]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] == ".gz"
    if compressed:
        suffixes.pop()
    kind = _FORMATS.get(suffixes[-1]) if suffixes else None
    if kind is None or (compressed and kind == "parquet"):
        raise SourceError(
            f"{path}: the extension tells no known format; name the file .parquet, .csv, .jsonl,"
            " .csv.gz or .jsonl.gz"
        )
    return kind, compressed


def _identity(path: Path, size: int) -> int:
    with path.open("rb") as file:
        digest = xxhash.xxh3_64(size.to_bytes(8, "little"))
        digest.update(file.read(IDENTITY_SAMPLE))
        file.seek(max(0, size - IDENTITY_SAMPLE))
        digest.update(file.read(IDENTITY_SAMPLE))
        return digest.intdigest()


def _flat_names(schema: Any, prefix: str = "") -> Iterator[str]:
    for column in schema:
        yield prefix + column.name
        if pa.types.is_struct(column.type):
            yield from _flat_names(column.type, f"{prefix}{column.name}.")


def _column(batch: Any, path: str) -> Array:
    """A column by its name, or by its dotted path into nested columns."""
    if path in batch.schema.names:
        return batch.column(path)
    first, *inner = path.split(".")
    return pc.struct_field(batch.column(first), inner)


def _number(first: int, count: int, invalid: Sequence[int]) -> npt.NDArray[np.int64]:
    """Row numbers of ``count`` good rows from row ``first`` on, among ascending invalid ones."""
    good_before = np.array(invalid, np.int64) - first - np.arange(len(invalid))
    at = np.arange(count, dtype=np.int64)
    return first + at + np.searchsorted(good_before, at, side="right")


def _fraction(disk: BinaryIO, size: int) -> float:
    # The position of the descriptor itself: another thread may be reading through ``disk``.
    return os.lseek(disk.fileno(), 0, os.SEEK_CUR) / size if size else 1.0


def _line_blocks(stream: BinaryIO, block: int, longest: int) -> Iterator[list[bytes | None]]:
    """The stream's lines, a block's worth at a time; None for a line of more than ``longest``."""
    rest = b""
    inside_long = False
    first = True
    while data := stream.read(block):
        if first:
            data, first = data.removeprefix(b"\xef\xbb\xbf"), False
        *lines, rest_of_data = data.split(b"\n")
        if not lines:
            rest, inside_long = (b"", True) if inside_long else (rest + rest_of_data, False)
            if len(rest) > longest:
                rest, inside_long = b"", True
            continue
        found: list[bytes | None] = list(lines)
        found[0] = None if inside_long else rest + lines[0]
        rest, inside_long = rest_of_data, False
        if len(rest) > longest:
            rest, inside_long = b"", True
        yield [None if line is None or len(line) > longest else line for line in found]
    if rest or inside_long:
        yield [None if inside_long else rest]


def _json_rows(
    columns: dict[str, str],
) -> tuple[msgspec.json.Decoder[Any], dict[str, Callable[[Any], Any]]]:
    """A decoder of one row, and how to get each field out of what it decodes to."""
    tops = sorted({path.split(".")[0] for path in columns.values()})
    row = msgspec.defstruct(
        "Row", [(f"c{i}", Any, msgspec.field(name=top, default=None)) for i, top in enumerate(tops)]
    )
    getters: dict[str, Callable[[Any], Any]] = {}
    for name, path in columns.items():
        top, *inner = path.split(".")
        attribute = operator.attrgetter(f"c{tops.index(top)}")
        getters[name] = functools.partial(_step, attribute, inner) if inner else attribute
    return msgspec.json.Decoder(row), getters


def _step(attribute: Callable[[Any], Any], inner: Sequence[str], row: Any) -> Any:
    value = attribute(row)
    for key in inner:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _decode_lines(
    lines: Sequence[bytes | None],
    first_row: int,
    decoder: msgspec.json.Decoder[Any],
    getters: dict[str, Callable[[Any], Any]],
    longest: int,
) -> _RawBatch:
    """The rows of ``lines``; blank lines are rows without an event."""
    unreadable: list[tuple[int, str]] = []
    numbers: list[int] = []
    texts: list[bytes] = []
    for row, line in enumerate(lines, first_row):
        if line is None:
            unreadable.append((row, f"is longer than {longest} bytes"))
        elif line.strip():
            numbers.append(row)
            texts.append(line)
    try:
        decoded = decoder.decode_lines(b"\n".join(texts))
    except (msgspec.DecodeError, UnicodeDecodeError):
        decoded = []
    if len(decoded) != len(texts):
        decoded, readable = [], []
        for row, text in zip(numbers, texts, strict=True):
            try:
                decoded.append(decoder.decode(text))
                readable.append(row)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                unreadable.append((row, f"is not a JSON object: {one_line(error)}"))
        numbers = readable
    unreadable.sort()
    raw = _RawBatch(np.array(numbers, np.int64), first_row + len(lines), {}, 0.0, unreadable)
    for name, get in getters.items():
        values = [get(row) for row in decoded]
        raw.columns[name], wrong = _from_json(values, is_id=name not in _NUMBERS)
        if wrong is not None:
            what = "a number or text" if name in _NUMBERS else "text or a whole number"
            raw.problems.append(_Problem(wrong, f"{name} unreadable", _say(name, f"is not {what}")))
    return raw


def _from_json(values: list[Any], *, is_id: bool) -> tuple[Array, Bools | None]:
    """JSON values as one array, and which were of a type that the field cannot have."""
    try:
        column = pa.array(values)
        kind = column.type
        fits = pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)
        if fits or (pa.types.is_floating(kind) and not is_id):
            return (column.cast(pa.string()) if pa.types.is_null(kind) else column), None
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        pass
    accepted = (str, int) if is_id else (str, int, float)
    wrong = [
        value is not None and (isinstance(value, bool) or not isinstance(value, accepted))
        for value in values
    ]
    texts = [
        None if value is None or bad else str(value)
        for value, bad in zip(values, wrong, strict=True)
    ]
    return pa.array(texts, pa.string()), np.array(wrong) if any(wrong) else None
