"""Event times: every way that a time is written, to ms since epoch (UTC), and which are taken.

One rule for every way that an event can come:

- A number counts s, ms or us since 1970, as ``time_unit`` says. A text that says a number is that
  number. What is finer than a ms is cut off: times are rounded *down*, before 1970 as well.
- A number with a fraction is a double, and the time is what its shortest decimal says: 1.001 s is
  1001 ms, though the double nearest to 1.001 lies below it.
- With the unit ``iso`` a time is a text in ISO 8601. One that names no offset is UTC. A bare number
  is none, not even as a text: "20231114" could be a date or a count of seconds.
- A typed column of a file (a Parquet timestamp or date) carries its own unit, whatever the settings
  say. One without a zone is UTC.
- A time lies between ``earliest`` and ``max_ahead_s`` from now, both included.

`Times.read` is the rule itself, for one value. The methods on arrays are the same rule where it is
simple; they say of which values they are sure, and the others are for `Times.read`.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, NamedTuple

import numpy as np

from infra.arrays import F64, I64, Bools
from infra.settings import EventSettings
from streaming.events.rejects import Reason, Rejected, kind, show
from streaming.events.values import MAX_EXACT, as_number, says_number

EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
DAY_MS: Final = 86_400_000

_SURE_MS: Final = 2.0**42
_DOUBT_MS: Final = 1e-3
"""A double of s times 1000 differs from what its decimal says by less than `_DOUBT_MS`, as long as
it is below `_SURE_MS` (the year 2109)."""

_STAMPS_PER_MS: Final = {"ms": 1, "us": 1000, "ns": 1_000_000}


class Timestamp(NamedTuple):
    """A moment that needs no unit: what a typed column holds."""

    ms: int
    """Since epoch, UTC, rounded down."""

    @classmethod
    def of(cls, count: int, unit: str) -> Timestamp:
        """The moment so many s, ms, us or ns after epoch."""
        return cls(count * 1000 if unit == "s" else count // _STAMPS_PER_MS[unit])

    def __repr__(self) -> str:
        return moment(self.ms)


class Times:
    """The rule for event times, under the settings' unit and limits.

    >>> times = Times(EventSettings(time_unit="s"))
    >>> times.read(1_700_000_000.1239, "event_time", latest=1_800_000_000_000)
    1700000000123
    """

    def __init__(self, settings: EventSettings) -> None:
        self.unit: Final = settings.time_unit
        self.earliest: Final = settings.earliest_ms
        self._earliest_shown = settings.earliest.date().isoformat()
        self._max_ahead_ms = settings.max_ahead_s * 1000
        self.typed: Final[Any] = {"ms": int, "us": int, "s": int | float, "iso": str}[self.unit]
        """The type that `to_ms` takes, and that nearly all events have."""
        self.to_ms: Final[Callable[[Any], int]] = _TO_MS[self.unit]
        """A time in the settings' unit to ms. ValueError or OverflowError: it is none. Knows
        nothing of the limits."""

    def latest(self, now_ms: int) -> int:
        """The last time that is taken at ``now_ms``."""
        return now_ms + self._max_ahead_ms

    def read(self, value: object, shown: str, latest: float) -> int:
        """A time as ms since epoch.

        Args:
            value: as the event holds it: a number, a text, or an `Timestamp`.
            shown: the field's name for people.
            latest: see the method of this name.

        Raises:
            Rejected: it is no time, or out of the limits; the detail says which moment was read.
        """
        if isinstance(value, Timestamp):
            ms = value.ms
        elif self.unit == "iso":
            ms = self._read_iso(value, shown)
        else:
            number = as_number(value, shown)
            if number is None:
                raise Rejected(
                    Reason.BAD_TIME, f"{shown} {show(value)} is not a time in {self.unit}"
                )
            ms = self.to_ms(number)
        if self.earliest <= ms <= latest:
            return ms
        read = f"{shown} {show(value)}"
        if not isinstance(value, Timestamp):
            read += f" is {moment(ms)}"
        if ms > latest:
            reason, wrong = Reason.IN_FUTURE, "too far in the future"
        elif ms < 0 and self.unit != "iso" and not isinstance(value, Timestamp):
            reason, wrong = Reason.NEGATIVE, "negative"
        else:
            reason, wrong = Reason.TOO_OLD, f"before {self._earliest_shown}"
        raise Rejected(reason, f"{read}, {wrong}; check time_unit ({self.unit})")

    def _read_iso(self, value: object, shown: str) -> int:
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            raise Rejected(
                Reason.BAD_TIME,
                f"{shown} {show(value)} is a number, not ISO 8601 text; check time_unit (iso)",
            )
        if not isinstance(value, str):
            raise Rejected(Reason.WRONG_TYPE, f"{shown} is {kind(value)}, not ISO 8601 text")
        try:
            return _iso_to_ms(value.strip())
        except (ValueError, OverflowError):
            raise Rejected(
                Reason.BAD_TIME, f"{shown} {show(value)} is not a time in ISO 8601"
            ) from None

    # Whole columns

    def within(self, ms: I64, latest: int) -> Bools:
        """bool[n]: which times lie within the limits."""
        inside: Bools = (ms >= self.earliest) & (ms <= latest)
        return inside

    def of_integers(self, values: I64) -> tuple[I64, Bools]:
        """Whole numbers (i64[n]) of the settings' unit as ms, and of which that is sure."""
        if self.unit == "iso":
            return values, np.zeros(len(values), np.bool_)
        if self.unit == "ms":
            return values, np.ones(len(values), np.bool_)
        return of_stamps(values, self.unit)

    def of_doubles(self, values: F64) -> tuple[I64, Bools]:
        """Numbers (f64[n]) of the settings' unit as ms, and of which that is sure."""
        if self.unit == "iso":
            return np.zeros(len(values), np.int64), np.zeros(len(values), np.bool_)
        bound = _SURE_MS / 1000 if self.unit == "s" else float(MAX_EXACT)
        with np.errstate(invalid="ignore"):
            sure: Bools = np.abs(values) < bound
        finite = np.where(sure, values, 0.0)
        if self.unit != "s":
            whole = np.floor(finite).astype(np.int64)
            return (whole if self.unit == "ms" else whole // 1000), sure
        ms = finite * 1000.0
        nearest = np.rint(ms)
        exact = nearest / 1000.0 == finite
        sure &= exact | (np.abs(ms - nearest) > _DOUBT_MS)
        return np.where(exact, nearest, np.floor(ms)).astype(np.int64), sure


def of_stamps(values: I64, unit: str) -> tuple[I64, Bools]:
    """Counts (i64[n]) of s, ms, us or ns since epoch as ms, and of which that is sure."""
    if unit == "s":
        most = MAX_EXACT // 1000
        sure: Bools = (-most < values) & (values < most)
        return np.where(sure, values, 0) * 1000, sure
    return values // _STAMPS_PER_MS[unit], np.ones(len(values), np.bool_)


def moment(ms: int) -> str:
    """A time as people read it; a count of ms where no calendar reaches."""
    try:
        return (EPOCH + dt.timedelta(milliseconds=ms)).isoformat(timespec="seconds")
    except OverflowError:
        return "beyond all calendars"


def _seconds_to_ms(value: float) -> int:
    if isinstance(value, int):
        return value * 1000
    ms = value * 1000.0
    if -_SURE_MS < ms < _SURE_MS:
        nearest = round(ms)
        if nearest / 1000.0 == value:  # it is the double of a decimal with three places
            return nearest
        if abs(ms - nearest) > _DOUBT_MS:
            return math.floor(ms)
    return math.floor(Decimal(repr(value)).scaleb(3))


def _microseconds_to_ms(value: float) -> int:
    return math.floor(value) // 1000


def _iso_to_ms(value: str) -> int:
    # Python finds dates in many numbers. Those in the usual form are told by their first dash.
    if value[4:5] != "-" and says_number(value):
        raise ValueError("a bare number")
    instant = dt.datetime.fromisoformat(value)
    since = (instant if instant.tzinfo else instant.replace(tzinfo=dt.UTC)) - EPOCH
    return since.days * DAY_MS + since.seconds * 1000 + since.microseconds // 1000


_TO_MS: Final[dict[str, Callable[[Any], int]]] = {
    "ms": math.floor,
    "s": _seconds_to_ms,
    "us": _microseconds_to_ms,
    "iso": _iso_to_ms,
}
