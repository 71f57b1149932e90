"""The kernel that reads JSON events into columns, of a whole batch at once.

It runs outside the interpreter's lock and takes half a microsecond for an event, where a loop in
Python held that for two. It only knows how to say yes: a record of which it is sure becomes rows
with exactly what `streaming.events.conversion` would make of it, and every other is left to that:
ids with escapes, fields that stand twice, numbers as few producers write them, and whatever is
wrong, be it in one of a record's events.

What it is sure of is an object, an array of them or one a line, whose fields stand at the top and
hold texts without escapes, or whole numbers as ids; times as numbers of the settings' unit or in
the usual form of ISO 8601; and among them other fields, of any JSON. Texts are checked to be UTF-8,
what is skipped to be JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from infra.arrays import I32, I64, U8, U32, U64, Bools
from infra.behaviors import BEHAVIOR
from infra.compiling import kernel
from infra.hashing import xxh3_64, xxh32
from infra.store import Behaviors
from streaming.events.json_kernel import (
    CARRIAGE_RETURN,
    CLOSE,
    CLOSE_LIST,
    COLON,
    COMMA,
    EXACT_DIGITS,
    LINE_END,
    MINUS,
    MOST_DIGITS,
    OPEN,
    OPEN_LIST,
    QUOTE,
    ZERO,
    after_number,
    after_space,
    after_value,
    after_word,
    end_of_text,
    same,
    whole_number,
)
from streaming.events.time_kernel import NO_TIME, UNITS, read_time
from streaming.events.values import MAX_DWELL_MS

FIELDS: Final = (
    "user_id",
    "item_id",
    "event_id",
    "category_id",
    "action",
    "event_time",
    "dwell_ms",
)
"""The fields in the order of the kernel, which knows them by their numbers."""
IDS: Final = 5
"""How many of them are ids."""

MOST_EVENTS: Final = 10_000
"""Events of a record of which it is sure."""

_USER, _ITEM, _EVENT, _CATEGORY, _ACTION, _TIME, _DWELL = range(7)
_FIELDS = len(FIELDS)
_ALL = (1 << _FIELDS) - 1
_SPLIT = _FIELDS + IDS
_ACTIONS = _SPLIT + 1


class Names(NamedTuple):
    """What events call fields and actions, and what stands for what they lack, for the kernel."""

    words: U8
    """u8[.], one behind the other: the names of the fields, the constants of ids (an empty one is
    none), the name of the array that is split (empty: none), the names of a actions."""
    marks: I64
    """i64[7 + 5 + 1 + a + 1]: where each of the words begins, and the last ends."""
    codes: U8
    """u8[a]: the codes of the actions."""
    dwell: int
    """ms where an event has none."""
    beside: int
    """A bit for each field: whether it stands beside the array that is split, not in its
    elements."""


class Rules(NamedTuple):
    """What is taken, for the kernel."""

    max_event: int
    """Most bytes of a record."""
    max_id: int
    """Most bytes of an id."""
    unit: int
    """Of `UNITS`."""
    earliest: int
    """The first time that is taken, ms."""


class How(NamedTuple):
    """How a batch is read."""

    names: Names
    rules: Rules
    latest: int
    """The last time that is taken, ms."""
    keyless: bool
    """Whether a record may have no key."""


class Texts(NamedTuple):
    """What n records hold, for the kernel."""

    values: U8
    """u8[.]: the words of `Names`, then the values, one behind the other."""
    bounds: I64
    """i64[n + 1]: where each value begins, and the last ends."""
    keys: U8
    """u8[.]: the keys."""
    key_bounds: I64
    """i64[n + 1]: where each begins, and the last ends."""
    unchecked: Bools
    """bool[n]: whether there is no key, and need be none."""


class _Columns(NamedTuple):
    """Where the kernel puts what it finds: the fields of BEHAVIOR[r], and more."""

    item: U64
    time: I64
    category: U32
    dwell: U32
    action: U8
    event_key: U64
    user: I32
    """i32[r]: the number of the user; -1: not sure of the row."""
    record: I32
    """i32[r]: the number of the record."""


class Found(NamedTuple):
    """What a kernel found of events: rows, as many as could be, one for each or, where it is not
    sure of one, for the record.
    """

    record: I32
    """i32[r]: of which record."""
    time: I64
    """i64[r]: ms; `NO_TIME`: not sure."""
    dwell: I64
    """i64[r]: ms; -1: none."""
    starts: I64
    """i64[r, 5]: where in the text the ids begin."""
    sizes: I64
    """i64[r, 5]: their bytes; 0: there is none."""

    @classmethod
    def empty(cls, rows: int) -> Found:
        """Room for so many."""
        return cls(
            np.empty(rows, np.int32),
            np.empty(rows, np.int64),
            np.empty(rows, np.int64),
            np.empty((rows, IDS), np.int64),
            np.empty((rows, IDS), np.int64),
        )

    def first(self, rows: int) -> Found:
        """The first so many."""
        return Found(
            self.record[:rows],
            self.time[:rows],
            self.dwell[:rows],
            self.starts[:rows],
            self.sizes[:rows],
        )


class Rows(NamedTuple):
    """What records became: r rows, in their order. A record has one for each of its events; or
    one alone, which holds nothing, where the kernel is not sure of it.
    """

    users: list[str]
    """The distinct users, in the order in which they come."""
    user_of: I32
    """i32[r]: whose each is, by the place in ``users``; -1: not sure of the record."""
    record_of: I32
    """i32[r]: of which record each is, ascending."""
    behaviors: Behaviors
    """BEHAVIOR[r]."""
    event_keys: U64
    """u64[r]."""

    @classmethod
    def empty(cls, rows: int) -> Rows:
        """So many rows, one a record, none of which is sure."""
        return cls(
            [],
            np.full(rows, -1, np.int32),
            np.arange(rows, dtype=np.int32),
            np.zeros(rows, BEHAVIOR),
            np.zeros(rows, np.uint64),
        )

    @property
    def columns(self) -> _Columns:
        """The same memory, for a kernel to fill."""
        stored = self.behaviors
        return _Columns(
            stored["item"],
            stored["time"],
            stored["category"],
            stored["dwell"],
            stored["action"],
            self.event_keys,
            self.user_of,
            self.record_of,
        )

    def first(self, rows: int) -> Rows:
        """The first so many."""
        return Rows(
            self.users,
            self.user_of[:rows],
            self.record_of[:rows],
            self.behaviors[:rows],
            self.event_keys[:rows],
        )


def names_of(
    fields: Mapping[str, str],
    constants: Mapping[str, str],
    dwell: int,
    codes: Mapping[str, int],
    split: str = "",
    beside: Collection[str] = (),
) -> Names:
    """The names for the kernel.

    Args:
        fields: our name of a field to that in events.
        constants: of ids.
        dwell: ms where an event has none.
        codes: of the actions, by their names.
        split: the name of the array of which each element is an event; empty: there is none.
        beside: our names of the fields that stand beside it.
    """
    words = [fields[name] for name in FIELDS]
    words += [constants.get(name, "") for name in FIELDS[:IDS]]
    words += [split, *codes]
    text, marks = joined([word.encode() for word in words])
    bits = sum(1 << place for place, name in enumerate(FIELDS) if name in beside)
    return Names(as_array(text), marks, np.array(list(codes.values()), np.uint8), dwell, bits)


def rules_of(max_event: int, max_id: int, unit: str, earliest: int) -> Rules:
    """The rules for the kernel, see `Rules`; the unit by its name in the settings."""
    return Rules(max_event, max_id, UNITS[unit], earliest)


def parse(values: Sequence[bytes | None], keys: Sequence[bytes | None], how: How) -> Rows:
    """Read the records of a batch.

    Args:
        values, keys: of n records; a key must be the user's id, in UTF-8.
        how: they are read.
    """
    names = how.names
    # The words come first, so that a constant is found in the same text as everything else.
    text, bounds = joined([names.words.tobytes(), *(value or b"" for value in values)])
    texts = Texts(as_array(text), bounds[1:], *of_keys(keys, keyless=how.keyless))
    # An event is an object; a record that holds none has a row, too.
    found = Found.empty(len(values) + text.count(b"{"))
    return judged(text, texts, how, found.first(_find(texts, names, how.rules, found)))


def judged(text: bytearray, texts: Texts, how: How, found: Found) -> Rows:
    """What becomes of what was found in a text, which is in ``texts``."""
    rows = Rows.empty(len(found.record))
    spans, kept = _judge(texts, how.names, how.rules, how.latest, found, rows.columns)
    rows.users.extend(text[start:end].decode() for start, end in spans.tolist())
    return rows.first(kept)


def of_keys(keys: Sequence[bytes | None], *, keyless: bool) -> tuple[U8, I64, Bools]:
    """Keys for the kernel."""
    text, bounds = joined([key or b"" for key in keys])
    unchecked = np.zeros(len(keys), np.bool_)
    if keyless:
        unchecked[:] = [key is None for key in keys]
    return as_array(text), bounds, unchecked


def as_array(text: bytearray) -> U8:
    """A text as a kernel reads it, without a copy."""
    return np.frombuffer(text, np.uint8)


def joined(parts: Sequence[bytes]) -> tuple[bytearray, I64]:
    """Texts one behind the other, and where each begins and the last ends.

    As bytes that may be written: kernels are compiled anew for those that may not.
    """
    bounds = np.zeros(len(parts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)), out=bounds[1:])
    return bytearray().join(parts), bounds


@kernel
def _find(texts: Texts, names: Names, rules: Rules, found: Found) -> int:
    """Find the fields of all events, one row each; how many rows there are."""
    # As variables: a tuple of arrays that goes through the calls below would count references.
    text, bounds, _, _, _ = texts
    words, marks, _, _, beside = names
    record_of, times, dwells, starts, sizes = found
    splits = marks[_SPLIT + 1] > marks[_SPLIT]
    row = 0
    for record in range(len(bounds) - 1):
        start, end = bounds[record], bounds[record + 1]
        first, sure, objects = row, end - start <= rules.max_event, 0
        at = after_space(text, start, end)
        is_list = at < end and text[at] == OPEN_LIST
        at += is_list
        while sure:
            begin, objects = after_space(text, at, end), objects + 1
            if splits:
                before = row
                row, at = _read_envelope(
                    text,
                    begin,
                    end,
                    words,
                    marks,
                    rules.unit,
                    beside,
                    times,
                    dwells,
                    starts,
                    sizes,
                    row,
                )
                sure = at >= 0
                record_of[before:row] = record
            else:
                time, dwell, at, _ = _read_event(
                    text, begin, end, words, marks, rules.unit, _ALL, starts[row], sizes[row]
                )
                sure = time != NO_TIME
                times[row], dwells[row], record_of[row] = time, dwell, record
                row += 1
            sure = sure and row - first <= MOST_EVENTS
            if not sure:
                break
            after = after_space(text, at, end)
            if is_list:
                if after < end and text[after] == COMMA:
                    at = after + 1
                    continue
                sure = after < end and text[after] == CLOSE_LIST
                sure = sure and after_space(text, after + 1, end) == end
                break
            if after == end and objects == 1:
                break
            # One a line: each lies within its own.
            sure = not _has(text, begin, at, LINE_END) and not _has(
                text, begin, at, CARRIAGE_RETURN
            )
            sure = sure and (after == end or _has(text, at, after, LINE_END))
            if after == end:
                break
            at = after
        if not sure:
            row = first
            times[row], record_of[row] = NO_TIME, record
            row += 1
    return row


@kernel
def _read_envelope(  # noqa: PLR0917 - arrays one by one, since tuples of them count references
    text: U8,
    at: int,
    end: int,
    words: U8,
    marks: I64,
    unit: int,
    beside: int,
    times: I64,
    dwells: I64,
    starts: I64,
    sizes: I64,
    row: int,
) -> tuple[int, int]:
    """Find the fields of events that are an array's elements, and of what stands beside it.

    Returns:
        How many rows there are then, and where it has ended; -1: not sure of it.
    """
    outer_starts, outer_sizes = np.zeros(IDS, np.int64), np.zeros(IDS, np.int64)
    outer_time, outer_dwell, stop, at = _read_event(
        text, at, end, words, marks, unit, beside, outer_starts, outer_sizes
    )
    # An id of the whole is made another for each element, by whoever reads carefully.
    if stop < 0 or at < 0 or text[at] != OPEN_LIST or outer_sizes[_EVENT]:
        return row, -1
    while True:
        at = after_space(text, at + 1, stop)
        time, dwell, at, _ = _read_event(
            text, at, stop, words, marks, unit, _ALL ^ beside, starts[row], sizes[row]
        )
        if at < 0:
            return row, -1
        for field in range(IDS):
            if beside & (1 << field):
                starts[row, field], sizes[row, field] = outer_starts[field], outer_sizes[field]
        times[row] = outer_time if beside & (1 << _TIME) else time
        dwells[row] = outer_dwell if beside & (1 << _DWELL) else dwell
        if times[row] == NO_TIME:
            return row, -1
        row += 1
        at = after_space(text, at, stop)
        if text[at] == CLOSE_LIST:  # which stands there, since the whole is JSON
            return row, stop
        if text[at] != COMMA:
            return row, -1


@kernel
def _has(text: U8, at: int, end: int, byte: int) -> bool:
    """Whether a byte stands there."""
    for place in range(at, end):  # noqa: SIM110 - kernels know no generators
        if text[place] == byte:
            return True
    return False


@kernel
def _judge(
    texts: Texts,
    names: Names,
    rules: Rules,
    latest: int,
    found: Found,
    columns: _Columns,
) -> tuple[I64, int]:
    """Judge the events that were found, and fill the columns.

    Returns:
        i64[u, 2], where in the values the ids of the distinct users lie, and how many rows were
        filled.
    """
    text, _, keys, key_bounds, unchecked = texts
    words, marks, codes, no_dwell, _ = names
    found_of, found_times, found_dwells, all_starts, all_sizes = found
    items, times, categories, dwells, actions, event_keys, user_of, record_of = columns
    rows = len(found_of)
    spans, hashes = np.empty((rows, 2), np.int64), np.empty(rows, np.uint64)
    row, first = -1, 0
    for place in range(rows):
        record = found_of[place]
        if place == 0 or record != found_of[place - 1]:
            row += 1
            first = row
        elif user_of[first] < 0:  # another event of the record was not sure
            continue
        else:
            row += 1
        record_of[row] = record
        user_of[row] = -1
        time, starts, sizes = found_times[place], all_starts[place], all_sizes[place]
        sure = rules.earliest <= time <= latest and _are_ids(starts, sizes, marks, rules.max_id)
        user, size = starts[_USER], sizes[_USER]
        key, key_end = key_bounds[record], key_bounds[record + 1]
        if not sure or not (unchecked[record] or same(text, user, size, keys, key, key_end - key)):
            row, user_of[first] = first, -1
            continue
        start, size = starts[_ACTION], sizes[_ACTION]
        action = _place_of(text, start, size, words, marks, _ACTIONS, len(marks) - 1)
        if action < 0:
            row, user_of[first] = first, -1
            continue
        items[row] = xxh3_64(text, starts[_ITEM], sizes[_ITEM])
        times[row] = time
        dwells[row] = found_dwells[place] if found_dwells[place] >= 0 else no_dwell
        actions[row] = codes[action - _ACTIONS]
        categories[row] = event_keys[row] = 0
        if sizes[_CATEGORY]:
            hashed = xxh32(text, starts[_CATEGORY], sizes[_CATEGORY])
            categories[row] = hashed or np.uint64(1)
        if sizes[_EVENT]:
            hashed = xxh3_64(text, starts[_EVENT], sizes[_EVENT])
            event_keys[row] = hashed or np.uint64(1)
        spans[row, 0], spans[row, 1] = user, user + sizes[_USER]
        hashes[row] = xxh3_64(text, user, sizes[_USER])
        user_of[row] = 0
    return spans[: _number_users(text, spans, hashes, user_of[: row + 1])], row + 1


@kernel
def _number_users(text: U8, spans: I64, hashes: U64, user_of: I32) -> int:
    """Number the users of the rows that are sure, in the order in which they come; how many there
    are. The first so many spans (and hashes) are theirs afterwards.
    """
    slots = 1
    while slots < 2 * len(user_of) + 1:
        slots *= 2
    mask = np.uint64(slots - 1)
    taken = np.full(slots, -1, np.int32)
    users = 0
    for row in range(len(user_of)):
        if user_of[row] < 0:
            continue
        start, end, hashed = spans[row, 0], spans[row, 1], hashes[row]
        slot = hashed & mask
        while taken[slot] >= 0:
            other = taken[slot]
            begin, size = spans[other, 0], spans[other, 1] - spans[other, 0]
            if hashes[other] == hashed and same(text, start, end - start, text, begin, size):
                break
            slot = (slot + np.uint64(1)) & mask
        if taken[slot] < 0:
            taken[slot] = users
            spans[users, 0], spans[users, 1], hashes[users] = start, end, hashed
            users += 1
        user_of[row] = taken[slot]
    return users


@kernel
def _are_ids(starts: I64, sizes: I64, marks: I64, most: int) -> bool:
    """Whether all ids are taken, after constants have come in the place of those that are not."""
    for field in range(IDS):
        if sizes[field] == 0:
            starts[field] = marks[_FIELDS + field]
            sizes[field] = marks[_FIELDS + field + 1] - starts[field]
        elif sizes[field] > most:
            return False
    return bool(sizes[_USER] > 0 and sizes[_ITEM] > 0 and sizes[_ACTION] > 0)


@kernel
def _place_of(text: U8, start: int, size: int, words: U8, marks: I64, first: int, end: int) -> int:
    """Which of the words from ``first`` to ``end`` a text is; -1: none."""
    for place in range(first, end):
        begin = marks[place]
        if same(text, start, size, words, begin, marks[place + 1] - begin):
            return place
    return -1


@kernel
def _field_of(text: U8, start: int, size: int, words: U8, marks: I64, wanted: int) -> int:
    """Which of the fields that are ``wanted`` a name is, or `_SPLIT`; -1: none."""
    for field in range(_FIELDS):
        begin = marks[field]
        if wanted >> field & 1 and same(text, start, size, words, begin, marks[field + 1] - begin):
            return field
    begin, end = marks[_SPLIT], marks[_SPLIT + 1]
    if end > begin and same(text, start, size, words, begin, end - begin):
        return _SPLIT
    return -1


@kernel
def _read_event(  # noqa: C901, PLR0912, PLR0917 - one loop over an event, with its state in variables
    text: U8,
    at: int,
    end: int,
    words: U8,
    marks: I64,
    unit: int,
    wanted: int,
    starts: I64,
    sizes: I64,
) -> tuple[int, int, int, int]:
    """Find the fields of an event that are ``wanted``, a bit each.

    Returns:
        Its time (`NO_TIME`: it has none) and dwell time (-1: it has none), ms; where it has ended
        (-1: not sure of the event), and where the array begins that is split (-1: there is none).
        Where its ids lie stands in ``starts`` and ``sizes``, 0 for those that it has not.
    """
    unsure = NO_TIME, -1, -1, -1
    split = -1
    time, dwell = NO_TIME, -1
    seen = 0
    sizes[:] = 0
    if at >= end or text[at] != OPEN:
        return unsure
    while True:
        at = after_space(text, at + 1, end)
        if at >= end or text[at] != QUOTE:  # an object without fields has none that is needed
            return unsure
        name, at = at + 1, end_of_text(text, at + 1, end)
        if at < 0:
            return unsure
        field = _field_of(text, name, at - name, words, marks, wanted)
        at = after_space(text, at + 1, end)
        if at >= end or text[at] != COLON:
            return unsure
        at = after_space(text, at + 1, end)
        if at >= end:
            return unsure
        if field < 0:
            at = after_value(text, at, end)
        elif field == _SPLIT:
            if split >= 0:
                return unsure
            split, at = at, after_value(text, at, end)
        else:
            if seen & (1 << field):
                return unsure
            seen |= 1 << field
            if text[at] == ord("n"):
                at = after_word(text, at, end)
            elif field < IDS:
                starts[field], at = at, _after_id(text, at, end)
                sizes[field] = at - starts[field]
                if at > 0 and text[at - 1] == QUOTE:
                    starts[field] += 1
                    sizes[field] -= 2
            elif field == _TIME:
                time, at = read_time(text, at, end, unit)
            else:
                dwell, at = _read_dwell(text, at, end)
        if at < 0:
            return unsure
        at = after_space(text, at, end)
        if at >= end:
            return unsure
        if text[at] == CLOSE:
            break
        if text[at] != COMMA:
            return unsure
    return time, dwell, at + 1, split


@kernel
def _after_id(text: U8, at: int, end: int) -> int:
    """Where an id has ended that begins there, its quotes included; -1: not sure of it."""
    if text[at] == QUOTE:
        at = end_of_text(text, at + 1, end)
        return at + 1 if at >= 0 else -1
    if text[at] == MINUS and at + 1 < end and text[at + 1] == ZERO:  # -0 is 0
        return -1
    whole_end, stop = after_number(text, at, end)
    if whole_end < 0 or whole_end != stop or stop - at > MOST_DIGITS:
        return -1
    return stop


@kernel
def _read_dwell(text: U8, at: int, end: int) -> tuple[int, int]:
    """A dwell time in ms and where it has ended; -1: not sure of it."""
    whole, stop = after_number(text, at, end)
    # A longer fraction might be rounded up to the next whole number.
    if whole < 0 or text[at] == MINUS or stop - at > EXACT_DIGITS:
        return 0, -1
    dwell = whole_number(text, at, whole)
    return (dwell, stop) if dwell <= MAX_DWELL_MS else (0, -1)
