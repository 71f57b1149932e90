"""Whole columns of a file to events: fast where the rules are simple, by row where they are not.

This is the fast path of `streaming.events.conversion` for files, as the typed decoder is for
records. It may only say yes. For each column it finds what the rules make of it and of which rows
that is sure; a row that is not sure in every column is read again by the rules themselves. So there
is nothing here that refuses a row, and no reason or message.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from infra.arrays import F64, I64, U8, U32, Array, Bools
from streaming.events.conversion import Conversion, Event
from streaming.events.fields import REQUIRED
from streaming.events.rejects import Rejected
from streaming.events.times import of_stamps
from streaming.events.values import MAX_DWELL_MS, MAX_EXACT
from streaming.files.batches import Column, EventBatch, RawBatch, RowReject, pc

# Texts that are surely numbers; fewer digits than could overflow.
_MAX_DIGITS: Final = 18
_DECIMAL: Final = r"^[0-9]{1,12}\.[0-9]{1,9}$"
_WITH_OFFSET: Final = r"[T ][0-9].*(Z|[+-][0-9]{2}(:?[0-9]{2})?)$"


@dataclass(slots=True)
class _Texts:
    """A column of texts, null where a row has none, and of which rows that is sure."""

    column: Column
    sure: Bools


class ColumnConversion:
    """`Conversion` for batches of rows.

    Args:
        conversion: the rules.
        now_ms: the time against which events from the future are told.
    """

    def __init__(self, conversion: Conversion, now_ms: int) -> None:
        self._conversion = conversion
        self._latest = conversion.times.latest(now_ms)

    def __call__(
        self, raw: RawBatch, *, first_reject_only: bool = False
    ) -> tuple[EventBatch, list[RowReject]]:
        """The events of a batch, and the rows that are none, ascending.

        With ``first_reject_only`` the work ends at the first such row: for those who give up there.
        """
        users, items, actions = (self._ids(name, raw) for name in ("user_id", "item_id", "action"))
        categories, event_ids = (self._ids(name, raw) for name in ("category_id", "event_id"))
        codes, known = self._codes(actions.column)
        times, timed = self._times(raw)
        dwells, spent = self._dwells(raw)
        good = known & timed & spent
        for texts in (users, items, actions, categories, event_ids):
            good &= texts.sure
        if raw.doubtful is not None:
            good &= ~raw.doubtful
        again, rejects = self._again(raw, np.flatnonzero(~good), first_reject_only)
        if again:
            at = np.fromiter(again, np.int64, len(again))
            events = list(again.values())
            good[at] = True
            times[at] = [event.time for event in events]
            codes[at] = [event.action for event in events]
            dwells[at] = [event.dwell for event in events]
            users.column = _put(users.column, at, [event.user for event in events])
            items.column = _put(items.column, at, [event.item for event in events])
            categories.column = _put(categories.column, at, [event.category for event in events])
            event_ids.column = _put(event_ids.column, at, [event.event_id for event in events])
        batch = EventBatch(
            rows=raw.rows,
            next_row=raw.next_row,
            users=users.column,
            items=items.column,
            times=times,
            actions=codes,
            categories=_or_none(categories.column),
            dwells=dwells if dwells.any() else None,
            event_ids=_or_none(event_ids.column),
            sources=self._sources(raw),
            fraction=raw.fraction,
        )
        return batch if good.all() else batch.keep(good), rejects

    def _again(
        self, raw: RawBatch, unsure: Array, first_reject_only: bool
    ) -> tuple[dict[int, Event], list[RowReject]]:
        """The rows at the indices ``unsure`` (i64[u]) by the rules themselves: events and rejects.

        The rejects include those of rows that could not be parsed.
        """
        events: dict[int, Event] = {}
        rejects = list(raw.rejects)
        for index in unsure.tolist():
            if first_reject_only and rejects and rejects[0].row < raw.rows[index]:
                break
            try:
                event = self._conversion.convert(functools.partial(raw.find, index), self._latest)
            except Rejected as rejected:
                rejects.append(RowReject(int(raw.rows[index]), rejected.reason, rejected.detail))
                if first_reject_only:
                    break
            else:
                events[index] = event
        return events, sorted(rejects)

    def _ids(self, name: str, raw: RawBatch) -> _Texts:
        """A field of ids; a row that has none has the constant if there is one."""
        constant = self._conversion.constant_ids.get(name)
        column = raw.columns.get(name)
        if column is None:
            missing = name in REQUIRED and constant is None
            return _Texts(
                pa.repeat(pa.scalar(constant, pa.string()), len(raw.rows)),
                np.full(len(raw.rows), not missing),
            )
        texts = _to_texts(column)
        lengths = pc.fill_null(pc.binary_length(texts.column), 0).to_numpy(zero_copy_only=False)
        texts.sure &= lengths <= self._conversion.max_id_bytes
        if (nul := _with_nul(texts.column)) is not None:
            texts.sure &= ~nul
        empty = lengths == 0
        if empty.any():
            if name in REQUIRED and constant is None:
                texts.sure &= ~empty
            else:
                texts.column = pc.if_else(
                    pa.array(empty), pa.scalar(constant, pa.string()), texts.column
                )
        return texts

    def _codes(self, actions: Column) -> tuple[U8, Bools]:
        known = self._conversion.actions.codes
        encoded = pc.fill_null(actions, "").dictionary_encode()
        distinct = encoded.dictionary.to_pylist()
        codes = np.array([known.get(name, 0) for name in distinct], np.uint8)
        taken: U8 = codes[encoded.indices.to_numpy(zero_copy_only=False)]
        return taken, taken != 0

    def _times(self, raw: RawBatch) -> tuple[I64, Bools]:
        rule = self._conversion.times
        column = _decoded(raw.columns.get("event_time"))
        if column is None:
            return np.zeros(len(raw.rows), np.int64), np.zeros(len(raw.rows), np.bool_)
        kind = column.type
        present = column.is_valid().to_numpy(zero_copy_only=False)
        if pa.types.is_timestamp(kind):
            times, sure = of_stamps(_numbers(column.cast(pa.int64())), kind.unit)
        elif pa.types.is_date(kind):
            times, sure = of_stamps(_numbers(column.cast(pa.date64()).cast(pa.int64())), "ms")
        elif pa.types.is_integer(kind):
            whole, fits = _whole(column)
            times, sure = rule.of_integers(whole)
            sure = sure & fits
        elif pa.types.is_floating(kind):
            times, sure = rule.of_doubles(_numbers(column.cast(pa.float64())))
        elif rule.unit == "iso":
            times, sure = _iso(_to_texts(column))
        else:
            texts = _to_texts(column)
            whole, sure = _digits(texts)
            times, fits = rule.of_integers(whole)
            sure &= fits
            if not sure.all():
                doubles, decimal = _decimals(texts)
                scaled, fits = rule.of_doubles(doubles)
                times = np.where(decimal, scaled, times)
                sure |= decimal & fits
        return times.copy(), sure & present & rule.within(times, self._latest)

    def _dwells(self, raw: RawBatch) -> tuple[U32, Bools]:
        constant = self._conversion.constant_dwell
        column = _decoded(raw.columns.get("dwell_ms"))
        if column is None:
            return (
                np.full(len(raw.rows), constant, np.uint32),
                np.ones(len(raw.rows), np.bool_),
            )
        absent = column.is_null().to_numpy(zero_copy_only=False)
        if pa.types.is_integer(column.type):
            values, sure = _whole(column)
        elif pa.types.is_floating(column.type):
            doubles = _numbers(column.cast(pa.float64()))
            with np.errstate(invalid="ignore"):
                sure = (doubles >= 0) & (doubles < MAX_DWELL_MS)
            values = np.where(sure, doubles, 0).astype(np.int64)
        else:
            texts = _to_texts(column)
            values, sure = _digits(texts)
            absent = texts.sure & pc.fill_null(pc.equal(texts.column, ""), True).to_numpy(
                zero_copy_only=False
            )
        sure = sure & (values >= 0) & (values <= MAX_DWELL_MS)
        if sure.all() and not absent.any():
            return values.astype(np.uint32), sure
        dwells = np.where(absent, constant, np.where(sure, values, 0)).astype(np.uint32)
        return dwells, sure | absent

    def _sources(self, raw: RawBatch) -> Column | None:
        """Where events come from. It is not stored and never judged: what is no id is left out."""
        if "source" not in raw.columns and "source" not in self._conversion.constant_ids:
            return None
        texts = self._ids("source", raw)
        return _or_none(
            pc.if_else(pa.array(texts.sure), texts.column, pa.scalar(None, pa.string()))
        )


def _put(column: Column, at: I64, texts: Sequence[str | None]) -> Column:
    mask = np.zeros(len(column), np.bool_)
    mask[at] = True
    return pc.replace_with_mask(column, pa.array(mask), pa.array(texts, pa.string()))


def _or_none(column: Column) -> Column | None:
    return None if column.null_count == len(column) else column


def _decoded(column: Column) -> Column:
    """A column whose values stand in it, not in a dictionary."""
    if column is not None and pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def _to_texts(column: Column) -> _Texts:
    """What `streaming.events.values.read_id` makes of each value, but for its limits."""
    column = _decoded(column)
    kind = column.type
    sure = np.ones(len(column), np.bool_)
    if pa.types.is_large_string(kind):
        column, kind = column.cast(pa.large_binary()), pa.large_binary()
    if pa.types.is_string(kind):
        if _data(column).isascii():  # told ten times faster than UTF-8
            return _Texts(column, sure)
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:  # not UTF-8, for all that its type says
            column, kind = column.cast(pa.binary()), pa.binary()
        else:
            return _Texts(column, sure)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        try:
            return _Texts(column.cast(pa.string()), sure)
        except pa.ArrowInvalid:
            texts, sure = _decode(column)
            return _Texts(texts, sure)
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return _Texts(column.cast(pa.string()), sure)
    if pa.types.is_floating(kind):
        doubles = _numbers(column.cast(pa.float64()))
        sure = (np.floor(doubles) == doubles) & (np.abs(doubles) <= MAX_EXACT)
        whole = pa.array(np.where(sure, doubles, 0).astype(np.int64), mask=_nulls(column))
        return _Texts(whole.cast(pa.string()), sure)
    return _Texts(pa.nulls(len(column), pa.string()), _nulls(column))


def _decode(column: Column) -> tuple[Column, Bools]:
    """Bytes as texts, null where they are no UTF-8, and where they are."""
    texts: list[str | None] = []
    sure = np.ones(len(column), np.bool_)
    for index, value in enumerate(column.to_pylist()):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            texts.append(None)
            sure[index] = False
    return pa.array(texts, pa.string()), sure


def _with_nul(column: Column) -> Bools | None:
    """bool[n]: which texts hold a NUL character; None: none does, which is told much faster."""
    if b"\0" not in _data(column):
        return None
    found = pc.fill_null(pc.match_substring(column, "\0"), False)
    return found.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _data(column: Column) -> bytes:
    """The bytes of all texts of a column, one after the other."""
    _, offsets, data = column.buffers()
    if data is None or not len(column):
        return b""
    start, end = np.frombuffer(offsets, np.int32)[[column.offset, column.offset + len(column)]]
    return data.slice(start, end - start).to_pybytes()  # type: ignore[no-any-return]


def _nulls(column: Column) -> Bools:
    return column.is_null().to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _numbers(column: Column) -> Any:
    """The column's numbers as numpy's, 0 where there is none."""
    return pc.fill_null(column, 0).to_numpy(zero_copy_only=False)


def _whole(column: Column) -> tuple[I64, Bools]:
    """Whole numbers as i64[n], and which of them fit that."""
    values: I64 = _numbers(column.cast(pa.int64(), safe=False))
    unsigned = pa.types.is_uint64(column.type)
    return values, values >= 0 if unsigned else np.ones(len(values), np.bool_)


def _digits(texts: _Texts) -> tuple[I64, Bools]:
    """Texts of digits alone as i64[n], and which are such."""
    column = texts.column
    digits = pc.and_(
        pc.ascii_is_decimal(column), pc.less_equal(pc.binary_length(column), _MAX_DIGITS)
    )
    digits = pc.fill_null(digits, False)
    numbers = pc.if_else(digits, column, pa.scalar("0")).cast(pa.int64())
    return _numbers(numbers), texts.sure & digits.to_numpy(zero_copy_only=False)


def _decimals(texts: _Texts) -> tuple[F64, Bools]:
    """Texts of plain decimals with a fraction as f64[n], and which are such."""
    plain = pc.fill_null(pc.match_substring_regex(texts.column, _DECIMAL), False)
    numbers = pc.if_else(plain, texts.column, pa.scalar("0")).cast(pa.float64())
    return _numbers(numbers), texts.sure & plain.to_numpy(zero_copy_only=False)


def _iso(texts: _Texts) -> tuple[I64, Bools]:
    """ISO 8601 texts as ms, and of which that is sure."""
    times = np.zeros(len(texts.column), np.int64)
    sure = np.zeros(len(texts.column), np.bool_)
    offset = pc.match_substring_regex(texts.column, _WITH_OFFSET)
    for kind, mask in (
        (pa.timestamp("us", "UTC"), offset),
        (pa.timestamp("us"), pc.and_(pc.invert(offset), pc.not_equal(texts.column, ""))),
    ):
        part = pc.if_else(mask, texts.column, pa.scalar(None, pa.string()))
        try:
            stamps = part.cast(kind).cast(pa.int64())
        except (pa.ArrowInvalid, OverflowError):
            continue  # one of them is none, or finer than us
        here = stamps.is_valid().to_numpy(zero_copy_only=False)
        ms, exact = of_stamps(_numbers(stamps), "us")
        times = np.where(here, ms, times)
        sure |= here & exact
    return times, sure & texts.sure
