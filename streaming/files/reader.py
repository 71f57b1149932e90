"""Files of behavior events: Parquet, CSV and JSON lines, read as columns in bounded memory.

A file is read in batches of rows. A row is known by its number, counted from 0 through the whole
file, bad rows included; so a row's number never depends on where reading began or on what was
skipped, and can serve as part of an event id (replay).

The columns are mapped to ours by `infra.settings.EventSettings`, as the events of a topic are, and
a row becomes what the same event of a topic would become, or is refused for the same reason: see
`streaming.events.conversion`.
"""

from __future__ import annotations

import contextlib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, Protocol

import pyarrow as pa
import xxhash

from infra.errors import SettingsError, SourceError, hint, one_line
from infra.settings import EVENT_FIELDS, EventSettings
from infra.store import wall_clock_ms
from infra.telemetry import get_logger
from streaming.events.conversion import Conversion
from streaming.events.fields import REQUIRED, Fields
from streaming.files.batches import EventBatch, RawBatch, RowReject
from streaming.files.columns import ColumnConversion
from streaming.files.formats.csv import CsvRows
from streaming.files.formats.jsonl import JsonRows
from streaming.files.formats.parquet import ParquetRows
from streaming.files.formats.text import Compression, Text, TextFile

BATCH_ROWS: Final = 65_536
"""Rows read at a time: some 10 MB of columns; larger batches gain nothing."""

TEXT_BLOCK: Final = 4 << 20
"""Bytes of text parsed at a time. A CSV row must fit into one block."""

IDENTITY_SAMPLE: Final = 1 << 20
"""Bytes hashed at each end of a file to know it again: a Parquet file's schema and statistics are
at its end, and a text file that was appended to has another size."""

OnBad = Literal["stop", "skip"]

_COMPRESSIONS: Final[dict[str, Compression]] = {".gz": "gzip", ".zst": "zstd"}
_FORMATS: Final = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}

log = get_logger(__name__)


class Format(Protocol):
    """How the rows of a file are read; one class for each format, in `streaming.files.formats`."""

    rows: int | None
    """Rows in the file, where the format tells without reading it all; None before `names`."""

    def names(self) -> list[str] | None:
        """The columns' names; None where each row has its own. Fails if the file cannot be read."""
        ...

    def batches(self, columns: Mapping[str, str], start_row: int) -> Iterator[RawBatch]:
        """The rows from ``start_row`` on; ``columns`` is our field -> the file's column."""
        ...


class EventFile:
    """One file of behavior events: what it is, how long it is, and its events from any row on.

    The extension tells the format: ``.parquet``, ``.csv``, ``.jsonl`` or ``.ndjson``, the text
    formats also with ``.gz`` or ``.zst`` after it.
    """

    def __init__(
        self,
        path: Path | str,
        mapping: EventSettings | None = None,
        *,
        on_bad: OnBad = "stop",
        text: Text | None = None,
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
            text: how text files are written; default: in UTF-8, with commas.
            batch_rows: rows read at a time (of a CSV file: those in ``text_block`` bytes).
            text_block: bytes of text parsed at a time.
            now_ms: the time against which events from the future are told; default: now.

        Raises:
            SourceError: there is no such file, it cannot be read, or a column is missing.
            SettingsError: a constant of the mapping is none that an event could carry, or the
                mapping is of something else than rows.
        """
        self.path = Path(path)
        self.on_bad: OnBad = on_bad
        self.skipped: Counter[str] = Counter()
        """Rows skipped so far, by `streaming.events.rejects.Reason`."""
        self._mapping = mapping or EventSettings()
        _check_flat(self._mapping)
        self.actions: Final = self._mapping.declared_actions
        """The actions whose codes its events have."""
        conversion = Conversion(self._mapping)
        self._convert = ColumnConversion(conversion, wall_clock_ms() if now_ms is None else now_ms)
        self.format, self.compression = _format(self.path)
        try:
            self.size = self.path.stat().st_size
            self.identity = _identity(self.path, self.size)
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}; check the path") from error
        told = text or Text()
        lines = TextFile(self.path, compression=self.compression, size=self.size, text=told)
        self._rows: Format
        if self.format == "parquet":
            self._rows = ParquetRows(self.path, batch_rows=batch_rows)
        elif self.format == "csv":
            self._rows = CsvRows(lines, block=text_block, delimiter=told.delimiter)
        else:
            self._rows = JsonRows(
                lines,
                conversion.fields,
                Fields(self._mapping, extra=("source",)),
                block=text_block,
                batch_rows=batch_rows,
                max_event_bytes=self._mapping.max_event_bytes,
            )
        if self.format != "parquet":
            with self._reading():
                lines.check(header=self.format == "csv")
        self._columns = self._find_columns()
        self.rows: int | None = self._rows.rows
        """Rows in the file, where the format tells without reading it all."""

    def batches(self, start_row: int = 0) -> Iterator[EventBatch]:
        """The events from row ``start_row`` on, in the file's order.

        Raises:
            SourceError: the file cannot be read further, or (on_bad ``stop``) a row is not an
                event; the message names the row (counted from 1) and the column.
        """
        raws = self._rows.batches(self._columns, start_row)
        while True:
            with self._reading():  # not around the yield: the consumer's errors are its own
                raw = next(raws, None)
            if raw is None:
                return
            batch, rejects = self._convert(raw, first_reject_only=self.on_bad == "stop")
            for reject in rejects:
                self._refuse(reject)
            yield batch

    def _refuse(self, reject: RowReject) -> None:
        if self.on_bad == "stop":
            raise SourceError(
                f"{self.path}, row {reject.row + 1}: {reject.detail};"
                " correct the row, or have bad rows skipped"
            )
        reason = reject.reason.value
        if not self.skipped[reason]:
            log.warning(
                "bad rows skipped",
                file=str(self.path),
                first_row=reject.row + 1,
                reason=reason,
                detail=reject.detail,
            )
        self.skipped[reason] += 1

    def _find_columns(self) -> dict[str, str]:
        """Field -> column for the fields that this file has."""
        with self._reading():
            there = self._rows.names()
        if there is None:
            return {name: name for name in EVENT_FIELDS}
        wanted = self._mapping.single_names()
        found: dict[str, str] = {}
        for name, column in wanted.items():
            if column in there:
                found[name] = column
            elif name in self._mapping.constants:
                continue
            elif name in REQUIRED or column != name:
                raise SourceError(
                    f"{self.path}: there is no column {column!r} for {name};"
                    f" map {name} to a column of the file; {hint(column, there)}"
                )
        return found

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except UnicodeError as error:
            raise SourceError(
                f"{self.path}: cannot be read: {one_line(error)}; check its --encoding"
            ) from error
        except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
            raise SourceError(
                f"{self.path}: cannot be read as {self.format}: {one_line(error)};"
                " check that the file is complete and its extension right"
            ) from error


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


def _check_flat(mapping: EventSettings) -> None:
    """Raise where the mapping is of records that hold something else than rows do."""
    of_records = {
        "format": mapping.format != "json",
        "split": bool(mapping.split),
        "only": bool(mapping.only),
        "ignore": bool(mapping.ignore),
    }
    for name, said in of_records.items():
        if said:
            raise SettingsError(
                f"{mapping.section}.{name} = {getattr(mapping, name)!r} is of a topic's records; a"
                " file is read row by row: give it settings of its own (--config) without that"
            )


def is_event_file(path: Path) -> bool:
    """Whether its extension tells a format that is known."""
    return _known_format(path) is not None


def _format(path: Path) -> tuple[str, Compression | None]:
    known = _known_format(path)
    if known is None:
        raise SourceError(
            f"{path}: the extension tells no known format; name the file .parquet, .csv, .jsonl,"
            " .csv.gz, .jsonl.gz, .csv.zst or .jsonl.zst"
        )
    return known


def _known_format(path: Path) -> tuple[str, Compression | None] | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = _COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression is not None:
        suffixes.pop()
    kind = _FORMATS.get(suffixes[-1]) if suffixes else None
    if kind is None or (compression is not None and kind == "parquet"):
        return None
    return kind, compression


def _identity(path: Path, size: int) -> int:
    with path.open("rb") as file:
        digest = xxhash.xxh3_64(size.to_bytes(8, "little"))
        digest.update(file.read(IDENTITY_SAMPLE))
        file.seek(max(0, size - IDENTITY_SAMPLE))
        digest.update(file.read(IDENTITY_SAMPLE))
        return digest.intdigest()
