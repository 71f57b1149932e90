"""JSON lines: one event a line, as the records of a topic hold them. Blank lines are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from infra.arrays import Bools
from streaming.events.fields import NUMERIC, Fields, too_large
from streaming.events.paths import ABSENT
from streaming.events.rejects import Rejected
from streaming.files.batches import Column, RawBatch, RowReject
from streaming.files.formats.text import TextFile


class JsonRows:
    """The rows of a file of JSON lines.

    Args:
        text: the file.
        fields: of an event as it is stored.
        fields_and_source: the same and the source, which is never a reason to refuse a row.
        block: bytes read at a time.
        batch_rows: rows decoded at a time.
        max_event_bytes: the longest line.
    """

    rows: int | None = None

    def __init__(
        self,
        text: TextFile,
        fields: Fields,
        fields_and_source: Fields,
        *,
        block: int,
        batch_rows: int,
        max_event_bytes: int,
    ) -> None:
        self._text = text
        self._fields = fields
        self._fields_and_source = fields_and_source
        self._block = block
        self._batch_rows = batch_rows
        self._max_event_bytes = max_event_bytes

    def names(self) -> list[str] | None:
        """None: each line has its own."""
        with self._text.open() as (stream, _):
            stream.read(1)  # but the file opens
        return None

    def batches(self, columns: Mapping[str, str], start_row: int) -> Iterator[RawBatch]:
        """The rows from ``start_row`` on; ``columns`` is our field -> its name or dotted path."""
        row = 0
        with self._text.open() as (stream, disk):
            for block in _line_blocks(stream, self._block, self._max_event_bytes):
                for at in range(0, len(block), self._batch_rows):
                    lines = block[at : at + self._batch_rows]
                    first, row = row, row + len(lines)
                    if row <= start_row:
                        continue
                    skip = max(0, start_row - first)
                    yield self._decode(
                        lines[skip:], first + skip, list(columns), self._text.fraction(disk)
                    )

    def _decode(
        self, lines: Sequence[bytes | int], first: int, names: Sequence[str], fraction: float
    ) -> RawBatch:
        fields = self._fields_and_source
        rejects: list[RowReject] = []
        rows: list[int] = []
        texts: list[bytes] = []
        for row, line in enumerate(lines, first):
            if isinstance(line, int):
                refused = too_large(line, self._max_event_bytes)
                rejects.append(RowReject(row, refused.reason, refused.detail))
            elif text := line.strip(b" \t\r"):
                rows.append(row)
                texts.append(text)
        events = fields.decode_lines(texts)
        if events is None:
            events, rows = self._decode_singly(texts, rows, rejects)
        found: dict[str, Column] = {}
        doubtful = np.zeros(len(rows), np.bool_)
        for name in names:
            found[name], wrong = _column(fields.column(events, name), name)
            if name != "source":
                doubtful |= wrong
        return RawBatch(
            np.array(rows, np.int64),
            first + len(lines),
            fraction,
            found,
            lambda index, name: fields.find(events[index], name),
            doubtful,
            sorted(rejects),
        )

    def _decode_singly(
        self, texts: Sequence[bytes], rows: Sequence[int], rejects: list[RowReject]
    ) -> tuple[list[Any], list[int]]:
        """The events that can be decoded, and their rows; the others are added to ``rejects``."""
        events: list[Any] = []
        sound: list[int] = []
        for row, text in zip(rows, texts, strict=True):
            try:
                try:
                    event = self._fields_and_source.decode(text)
                except Rejected:  # if for the source alone, which no rule judges
                    event = self._fields_and_source.adopt(self._fields.decode(text))
            except Rejected as refused:
                rejects.append(RowReject(row, refused.reason, refused.detail))
            else:
                events.append(event)
                sound.append(row)
        return events, sound


def _line_blocks(stream: BinaryIO, block: int, longest: int) -> Iterator[list[bytes | int]]:
    """The stream's lines, a block's worth at a time; of a line that is too long its length."""
    rest = b""
    dropped = 0  # bytes of a line that is too long
    first = True
    while data := stream.read(block):
        lines = (data.removeprefix(b"\xef\xbb\xbf") if first else data).split(b"\n")
        first = False
        lines[0] = rest + lines[0]
        rest = lines.pop()
        if lines:
            found = [line if len(line) <= longest else len(line) for line in lines]
            if dropped:
                found[0], dropped = dropped + len(lines[0]), 0
            yield found
        if dropped or len(rest) > longest:
            rest, dropped = b"", dropped + len(rest)
    if dropped or rest:
        yield [dropped or rest]


def _column(values: list[object], name: str) -> tuple[Column, Bools]:
    """JSON values as one array, null where absent, and of which it does not hold what they are."""
    sure = np.zeros(len(values), np.bool_)
    if (column := _typed(values)) is not None:
        return column, sure
    values = [None if value is ABSENT else value for value in values]
    if (column := _typed(values)) is not None:
        return column, sure
    number = name in NUMERIC
    plain = [
        value
        if (type(value) is int and abs(value) < 2**63 if number else type(value) is str)
        else None
        for value in values
    ]
    wrong = [
        value is not None and taken is None for value, taken in zip(values, plain, strict=True)
    ]
    return pa.array(plain, pa.int64() if number else pa.string()), np.array(wrong)


def _typed(values: list[object]) -> Column | None:
    """The values as an array, if they are all of one type that the rules may take."""
    try:
        column = pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None  # of several types, beyond 64 bits, or one is absent
    kind = column.type
    if pa.types.is_floating(kind):  # among which booleans count as 0 and 1
        return None if bool in set(map(type, values)) else column
    fits = pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)
    return column if fits else None
