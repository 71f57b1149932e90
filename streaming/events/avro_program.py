"""Avro for the kernel: a schema as a program that finds an event's fields in a record's bytes.

A record of Avro has nothing in it but values, one after the other as its schema says. So a schema
becomes steps, each of which goes past a value or notes where it lies, and a kernel takes them for
each record. It only knows how to say yes, as the kernel for JSON: fields that the steps cannot
judge, bytes that are not what the schema says, are left to `streaming.events.conversion`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from infra.arrays import I64, U8
from infra.compiling import kernel
from infra.utf8 import size_of_character
from streaming.events.parsing import (
    FIELDS,
    IDS,
    Found,
    How,
    Rows,
    Texts,
    as_array,
    joined,
    judged,
    of_keys,
)
from streaming.events.time_kernel import NO_TIME, read_iso
from streaming.events.values import MAX_DWELL_MS, MAX_EXACT

UNSURE: Final = -1
"""Where a program begins that is sure of nothing."""

DEEPEST: Final = 16
"""Arrays and maps within each other of which a kernel is sure."""

WHOLE_BYTES: Final = 20
"""Of a number of 64 bits, in decimal."""

_LONGEST: Final = 64
"""Bits of a number."""

# Steps; what they take stands beside them in the program.
(
    _END,
    _NUMBER,  # go past
    _BYTES,  # size: go past so many
    _OPAQUE,  # go past bytes
    _TEXT,  # go past a text
    _ENUM,  # field or -1, first symbol, how many
    _UNION,  # how many: as many jumps follow
    _JUMP,  # to
    _LOOP,  # end: of an array's or a map's blocks
    _AGAIN,  # to
    _ID,  # field: a text
    _WHOLE_ID,  # field: a number
    _TIME,  # multiplied, divided by
    _ISO_TIME,
    _DWELL,  # divided by
    _GIVE_UP,
) = range(16)

_TIME_FIELD, _DWELL_FIELD = FIELDS.index("event_time"), FIELDS.index("dwell_ms")

OURS: Final = "lifelong-"
"""Stands before the names of logical types that are not read as fastavro would."""

MOMENTS: Final = {
    "timestamp-millis": (1, 1),
    "timestamp-micros": (1, 1000),
    "timestamp-nanos": (1, 1_000_000),
    "local-timestamp-millis": (1, 1),
    "local-timestamp-micros": (1, 1000),
    "local-timestamp-nanos": (1, 1_000_000),
    "date": (86_400_000, 1),
}
"""Moments: by what they are multiplied and divided to be ms since epoch."""

_OF_UNIT: Final = {"ms": (1, 1), "us": (1, 1000), "s": (1000, 1)}
_SIZES: Final = {"boolean": 1, "float": 4, "double": 8}


class Program(NamedTuple):
    """The steps of one schema or several, for the kernel."""

    steps: I64
    """i64[p, 4]: what to do, and with what."""
    symbols: U8
    """u8[.]: the names of enums' symbols, one behind the other."""
    marks: I64
    """i64[s + 1]: where each begins, and the last ends."""
    writes: bool
    """Whether an id may be a number, of which its text has to be written."""


class Programs:
    """The programs of all schemas so far.

    Args:
        names: our fields' names to their paths, step by step; no two are the same.
        unit: of times that are plain numbers.
    """

    def __init__(self, names: Mapping[str, Sequence[str]], unit: str) -> None:
        self._fields = {tuple(names[name]): place for place, name in enumerate(FIELDS)}
        self._unit = unit
        self._steps: list[tuple[int, int, int, int]] = []
        self._symbols: list[bytes] = []
        self._open: list[str] = []
        self._named: dict[str, Any] = {}
        self.program = self._joined()

    def add(self, schema: Any, named: Mapping[str, Any]) -> int:
        """Add a schema.

        Args:
            schema: as fastavro has parsed it.
            named: the types that it may name.

        Returns:
            Where its program begins; `UNSURE`: it is none for the kernel, having itself in itself,
            or what the kernel does not know.
        """
        begin, self._named = len(self._steps), dict(named)
        try:
            self._value(schema, ())
        except (RecursionError, LookupError):
            del self._steps[begin:]
            return UNSURE
        self._step(_END)
        self.program = self._joined()
        return begin

    def _joined(self) -> Program:
        text = b"".join(self._symbols)
        marks = np.cumsum([0, *map(len, self._symbols)], dtype=np.int64)
        steps = np.array(self._steps, np.int64).reshape(-1, 4)
        writes = bool((steps[:, 0] == _WHOLE_ID).any())
        return Program(steps, as_array(bytearray(text)), marks, writes)

    def _step(self, what: int, a: int = 0, b: int = 0, c: int = 0) -> int:
        self._steps.append((what, a, b, c))
        return len(self._steps) - 1

    def _value(self, schema: Any, path: tuple[str, ...]) -> None:
        """The steps for a value of a type, at a path of the event."""
        if isinstance(schema, list):
            self._union(schema, path)
            return
        if isinstance(schema, str) and schema in self._named:
            schema = self._named[schema]
        kind = schema["type"] if isinstance(schema, dict) else schema
        if isinstance(kind, list | dict):  # {"type": {"type": ...}}
            self._value(kind, path)
            return
        field = self._fields.get(path, -1)
        within = any(known[: len(path)] == path for known in self._fields if len(known) > len(path))
        if kind in {"record", "error"}:
            self._record(schema, path, field)
        elif kind == "null":
            return
        elif within or (kind in {"array", "map"} and field >= 0):
            self._step(_GIVE_UP)  # a path leads into what is no record
        elif kind in {"array", "map"}:
            loop = self._step(_LOOP)
            if kind == "map":
                self._step(_TEXT)
            self._value(schema["items" if kind == "array" else "values"], (*path, ""))
            self._step(_AGAIN, loop)
            self._steps[loop] = (_LOOP, len(self._steps), 0, 0)
        elif field < 0:
            self._past(kind, schema)
        else:
            self._field(kind, schema, field)

    def _record(self, schema: Any, path: tuple[str, ...], field: int) -> None:
        if schema["name"] in self._open:
            raise RecursionError
        if field >= 0:
            self._step(_GIVE_UP)
            return
        self._open.append(schema["name"])
        try:
            for one in schema["fields"]:
                self._value(one["type"], (*path, one["name"]))
        finally:
            self._open.pop()

    def _union(self, schema: list[Any], path: tuple[str, ...]) -> None:
        first = self._step(_UNION, len(schema)) + 1
        for _ in schema:
            self._step(_JUMP)
        jumps = []
        for place, one in enumerate(schema):
            self._steps[first + place] = (_JUMP, len(self._steps), 0, 0)
            self._value(one, path)
            jumps.append(self._step(_JUMP))
        for jump in jumps:
            self._steps[jump] = (_JUMP, len(self._steps), 0, 0)

    def _past(self, kind: str, schema: Any) -> None:
        """Go past a value that nobody needs."""
        if kind in {"int", "long"}:
            self._step(_NUMBER)
        elif kind == "string":
            self._step(_TEXT)
        elif kind == "bytes":
            self._step(_OPAQUE)
        elif kind == "enum":
            self._enum(schema, -1)
        else:
            self._step(_BYTES, schema["size"] if kind == "fixed" else _SIZES[kind])

    def _enum(self, schema: Any, field: int) -> None:
        self._step(_ENUM, field, len(self._symbols), len(schema["symbols"]))
        self._symbols += [symbol.encode() for symbol in schema["symbols"]]

    def _field(self, kind: str, schema: Any, field: int) -> None:
        """Note a value that is one of our fields."""
        logical = schema.get("logicalType") if isinstance(schema, dict) else None
        if logical is not None:
            logical = logical.removeprefix(OURS)
        if field == _TIME_FIELD:
            self._time(kind, logical)
        elif field == _DWELL_FIELD:
            if kind == "long" and logical == "time-micros":  # of which the reader makes ms
                self._step(_DWELL, 1000)
            elif kind in {"int", "long"} and logical in {None, "time-millis"}:
                self._step(_DWELL, 1)
            else:
                self._step(_GIVE_UP)
        elif kind == "enum":
            self._enum(schema, field)
        elif kind == "string" or (kind == "bytes" and logical is None):
            self._step(_ID, field)
        elif kind in {"int", "long"} and logical is None:
            self._step(_WHOLE_ID, field)
        else:
            self._step(_GIVE_UP)

    def _time(self, kind: str, logical: str | None) -> None:
        scale = None
        if logical is None and kind in {"int", "long"}:
            scale = _OF_UNIT.get(self._unit)
        elif kind == ("int" if logical == "date" else "long"):
            scale = MOMENTS.get(str(logical))
        if scale is not None:
            self._step(_TIME, *scale)
        elif kind == "string" and self._unit == "iso":
            self._step(_ISO_TIME)
        else:
            self._step(_GIVE_UP)


def parse_avro(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    begins: I64,
    skipped: I64,
    program: Program,
    how: How,
) -> Rows:
    """Read the records of a batch.

    Args:
        values, keys, how: as in `streaming.events.parsing.parse`.
        begins: i64[n]: where the program of each begins, or `UNSURE`.
        skipped: i64[n]: bytes before what each holds.
        program: of all schemas.
    """
    words = how.names.words
    room = bytes(len(values) * IDS * WHOLE_BYTES if program.writes else 0)
    text, bounds = joined(
        [words.tobytes(), program.symbols.tobytes(), *(value or b"" for value in values), room]
    )
    bounds = bounds[2:-1]
    spans = np.stack([bounds[:-1] + skipped, bounds[1:]], axis=1)
    begins = np.where(np.diff(bounds) > how.rules.max_event, UNSURE, begins)
    texts = Texts(as_array(text), bounds, *of_keys(keys, keyless=how.keyless))
    found = Found.empty(len(values))
    _find_avro(
        texts.values, spans, begins, program.steps, program.marks, len(words), bounds[-1], found
    )
    return judged(text, texts, how, found)


def warm() -> None:
    """Have the kernel compiled."""
    program = Programs({name: (name,) for name in FIELDS}, "ms").program
    text, none = as_array(bytearray()), np.zeros(0, np.int64)
    spans, found = np.zeros((0, 2), np.int64), Found.empty(0)
    _find_avro(text, spans, none, program.steps, program.marks, 0, 0, found)


@kernel
def _find_avro(  # noqa: C901, PLR0912, PLR0915 - one machine, with its state in variables
    text: U8,
    bounds: I64,
    begins: I64,
    steps: I64,
    marks: I64,
    symbols_at: int,
    scratch: int,
    found: Found,
) -> None:
    """Find the fields of an event a record, one row each.

    Args:
        text: the records, and room for what has to be written.
        bounds: i64[n, 2]: where what each record holds begins and ends.
        begins: i64[n]: where its program begins, or `UNSURE`.
        steps, marks: as in `Program`.
        symbols_at: where in the text the symbols lie.
        scratch: where in it there is room, `WHOLE_BYTES` for each id of each record.
        found: is filled.
    """
    record_of, times, dwells, starts, sizes = found
    left = np.zeros(DEEPEST, np.int64)
    for record in range(len(begins)):
        record_of[record], times[record], dwells[record] = record, NO_TIME, -1
        sizes[record] = 0
        pc, at, end, depth = begins[record], bounds[record, 0], bounds[record, 1], 0
        time, dwell = NO_TIME, -1
        while pc >= 0:
            what, a, b, c = steps[pc, 0], steps[pc, 1], steps[pc, 2], steps[pc, 3]
            pc += 1
            if what == _END:
                # What a record has behind it is told by whoever can say more.
                times[record] = time if at == end else NO_TIME
                dwells[record] = dwell
                break
            if what == _JUMP:
                pc = a
                continue
            if what == _BYTES:
                at += a
                if at > end:
                    break
                continue
            if what == _GIVE_UP:
                break
            if what == _AGAIN:
                left[depth - 1] -= 1
                if left[depth - 1] > 0:
                    pc = a + 1
                    continue
                depth -= 1
                pc = a
                continue
            # All others begin with a number.
            number, at = _number(text, at, end)
            if at < 0:
                break
            if what == _NUMBER:
                continue
            if what == _UNION:
                if not 0 <= number < a:
                    break
                pc += number
            elif what == _ENUM:
                if not 0 <= number < c:
                    break
                if a >= 0:
                    starts[record, a] = symbols_at + marks[b + number]
                    sizes[record, a] = marks[b + number + 1] - marks[b + number]
            elif what == _LOOP:
                if number == 0:
                    pc = a
                    continue
                if number < 0:
                    number = -number
                    _, at = _number(text, at, end)
                    if at < 0:
                        break
                if depth == DEEPEST or number > end - at:  # or they are nothing, over and over
                    break
                left[depth] = number
                depth += 1
            elif what == _TIME:
                if a > 1 and not -MAX_EXACT < number * 1.0 * a < MAX_EXACT:
                    break
                time = number * a // b
            elif what == _DWELL:
                dwell = number // a
                if not 0 <= dwell <= MAX_DWELL_MS:
                    break
            elif what == _WHOLE_ID:
                place = scratch + (record * IDS + a) * WHOLE_BYTES
                starts[record, a] = place
                sizes[record, a] = _write(text, place, number)
            else:
                if not 0 <= number <= end - at:
                    break
                if what != _OPAQUE and not _is_text(text, at, at + number):
                    break
                if what == _ID:
                    starts[record, a], sizes[record, a] = at, number
                elif what == _ISO_TIME:
                    time = read_iso(text, at, at + number)
                    if time == NO_TIME:
                        break
                at += number


@kernel
def _number(text: U8, at: int, end: int) -> tuple[int, int]:
    """A number and where it has ended; -1: it is none."""
    value, shift = np.uint64(0), 0
    while at < end and shift < _LONGEST:
        byte = text[at]
        at += 1
        value |= np.uint64(byte & 0x7F) << np.uint64(shift)
        if byte < 0x80:
            if shift == 63 and byte > 1:
                break
            sign = np.int64(value & np.uint64(1))
            return int(np.int64(value >> np.uint64(1)) ^ -sign), at
        shift += 7
    return 0, -1


@kernel
def _is_text(text: U8, at: int, end: int) -> bool:
    """Whether it is UTF-8 without a NUL character."""
    while at < end:
        byte = text[at]
        if byte == 0:
            return False
        size = 1 if byte < 0x80 else size_of_character(text, at, end)
        if size == 0:
            return False
        at += size
    return True


@kernel
def _write(text: U8, at: int, number: int) -> int:
    """Write a whole number in decimal; how many bytes it took."""
    size = 0
    rest = np.uint64(number) if number >= 0 else np.uint64(0) - np.uint64(number)
    if number < 0:
        text[at] = ord("-")
        size = 1
    digits, more = 1, rest
    while more >= np.uint64(10):
        more //= np.uint64(10)
        digits += 1
    for place in range(at + size + digits - 1, at + size - 1, -1):
        text[place] = ord("0") + np.uint8(rest % np.uint64(10))
        rest //= np.uint64(10)
    return size + digits
