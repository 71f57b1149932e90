"""Times for kernels: where `streaming.events.times` is simple, the same rule on bytes."""

from __future__ import annotations

from typing import Final

import numpy as np

from infra.arrays import U8
from infra.compiling import kernel
from streaming.events.json_kernel import (
    COLON,
    EXACT_DIGITS,
    MINUS,
    MOST_DIGITS,
    NINE,
    PLUS,
    POINT,
    QUOTE,
    SPACE,
    ZERO,
    after_number,
    digits_at,
    end_of_text,
    whole_number,
)

UNITS: Final = {"ms": 0, "us": 1, "s": 2, "iso": 3}
"""Units of time, by the number that the kernel knows them by."""

NO_TIME: Final = -(1 << 63)
"""Stands for a time where there is none."""

_US, _S, _ISO = UNITS["us"], UNITS["s"], UNITS["iso"]
_T, _Z = ord("T"), ord("Z")

_DOUBT: Final = 1e-3
"""Of a ms: by so much, at most, a double of s lies beside its decimal, before `_LAST_S`."""

_LAST_S: Final = 1 << 32
"""In 2106; `streaming.events.times` says why."""

_DAYS_BEFORE: Final = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365])
"""Days of a year that is none of 366 before each month."""

_DAYS_TO_1970: Final = 719_162
"""From the first of January of the year 1."""


@kernel
def read_time(text: U8, at: int, end: int, unit: int) -> tuple[int, int]:
    """A time in ms and where it has ended; -1: not sure of it."""
    unsure = NO_TIME, -1
    if unit == _ISO:
        stop = end_of_text(text, at + 1, end) if text[at] == QUOTE else -1
        if stop < 0:
            return unsure
        time = read_iso(text, at + 1, stop)
        return (time, stop + 1) if time != NO_TIME else unsure
    whole, stop = after_number(text, at, end)
    if whole < 0 or text[at] == MINUS or whole - at > MOST_DIGITS:
        return unsure
    value = whole_number(text, at, whole)
    if unit != _S:
        if stop > whole:
            return unsure
        return (value // 1000 if unit == _US else value), stop
    if value >= _LAST_S:
        return unsure
    rest, scale = 0.0, 0.1
    for place in range(whole + 1, stop):
        digit = int(text[place]) - ZERO
        if place <= whole + 3:
            value = value * 10 + digit
        else:
            rest += digit * scale
            scale *= 0.1
    for _ in range(3 - max(0, stop - whole - 1)):
        value *= 10
    if stop - at > EXACT_DIGITS + 1 and not _DOUBT < rest < 1 - _DOUBT:
        return unsure
    return value, stop


@kernel
def read_iso(  # noqa: C901, PLR0912 - a row of plain tests
    text: U8, at: int, stop: int
) -> int:
    """The time that ``2023-11-14T22:13:20.123+01:00`` says, ms, rounded down; the fraction and the
    offset (or Z) may be missing. `NO_TIME`: not sure of it.
    """
    if stop - at < 19 or not (text[at + 10] == _T or text[at + 10] == SPACE):
        return NO_TIME
    if text[at + 4] != MINUS or text[at + 7] != MINUS:
        return NO_TIME
    if text[at + 13] != COLON or text[at + 16] != COLON:
        return NO_TIME
    year = digits_at(text, at, 2) * 100 + digits_at(text, at + 2, 2)
    month, day = digits_at(text, at + 5, 2), digits_at(text, at + 8, 2)
    hour, minute, second = (
        digits_at(text, at + 11, 2),
        digits_at(text, at + 14, 2),
        digits_at(text, at + 17, 2),
    )
    if (
        digits_at(text, at, 2) < 0
        or digits_at(text, at + 2, 2) < 0
        or year < 1
        or not 1 <= month <= 12
    ):
        return NO_TIME
    if not (0 <= hour < 24 and 0 <= minute < 60 and 0 <= second < 60):
        return NO_TIME
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    length = _DAYS_BEFORE[month] - _DAYS_BEFORE[month - 1] + (1 if leap and month == 2 else 0)
    if not 1 <= day <= length:
        return NO_TIME
    ms = 0
    at += 19
    if at < stop and text[at] == POINT:
        at += 1
        first = at
        scale = 100
        while at < stop and ZERO <= text[at] <= NINE:
            ms += scale * (int(text[at]) - ZERO)
            scale //= 10
            at += 1
        if at == first:
            return NO_TIME
    offset = 0
    if at < stop and text[at] == _Z:
        at += 1
    elif at + 6 == stop and (text[at] == PLUS or text[at] == MINUS) and text[at + 3] == COLON:
        hours, minutes = digits_at(text, at + 1, 2), digits_at(text, at + 4, 2)
        if not (0 <= hours < 24 and 0 <= minutes < 60):
            return NO_TIME
        offset = hours * 60 + minutes
        if text[at] == MINUS:
            offset = -offset
        at += 6
    if at != stop:
        return NO_TIME
    before = year - 1
    days = before * 365 + before // 4 - before // 100 + before // 400
    days += _DAYS_BEFORE[month - 1] + (1 if leap and month > 2 else 0) + day - 1 - _DAYS_TO_1970
    return int(((days * 24 + hour) * 60 + minute - offset) * 60_000 + second * 1000 + ms)
