"""Event times: units, rounding, limits, and that whole columns follow the rule for one value."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings import EventSettings
from streaming.events.rejects import Reason, Rejected
from streaming.events.times import Times, Timestamp, moment, of_stamps

NOW = 1_700_000_000_000


def read(value: object, unit: Any = "ms") -> int:
    times = Times(EventSettings(time_unit=unit))
    return times.read(value, "event_time", times.latest(NOW))


def refused(value: object, unit: Any = "ms") -> Rejected:
    with pytest.raises(Rejected) as caught:
        read(value, unit)
    return caught.value


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("ms", NOW),
        ("ms", float(NOW)),
        ("ms", str(NOW)),
        ("ms", f" {NOW} "),
        ("ms", "1.7e12"),
        ("ms", Decimal(NOW)),
        ("s", NOW // 1000),
        ("s", NOW / 1000),
        ("s", "1700000000.000"),
        ("us", NOW * 1000),
        ("us", str(NOW * 1000)),
        ("iso", "2023-11-14T22:13:20+00:00"),
        ("iso", "2023-11-14T23:13:20.000+01:00"),
        ("iso", "2023-11-14T22:13:20Z"),
        ("iso", "2023-11-14T22:13:20"),
        ("iso", " 2023-11-14 22:13:20"),
        ("iso", Timestamp(NOW)),
    ],
)
def test_times_come_in_the_platforms_unit(unit: Any, value: object) -> None:
    assert read(value, unit) == NOW


@pytest.mark.parametrize(
    ("unit", "value", "ms"),
    [
        ("ms", NOW + 0.75, 0),
        ("ms", f"{NOW}.999", 0),
        ("us", NOW * 1000 + 999, 0),
        ("us", NOW * 1000 + 999.75, 0),
        ("us", Decimal(1700000000000999), 0),
        ("s", 1700000000.1239, 123),
        ("s", "1700000000.1239", 123),
        ("s", Decimal("1700000000.1239"), 123),
        ("iso", "2023-11-14T22:13:20.9999Z", 999),
        ("iso", "2023-11-14T22:13:20.123999999Z", 123),
    ],
)
def test_what_is_finer_than_a_millisecond_is_cut_off(unit: Any, value: object, ms: int) -> None:
    assert read(value, unit) == NOW + ms


def test_times_before_1970_are_rounded_down_too() -> None:
    times = Times(EventSettings(earliest="1900-01-01"))
    assert times.read(-0.5, "event_time", NOW) == -1
    assert Timestamp.of(-1, "us").ms == -1


@given(st.integers(-(2**40), 2**41))
def test_a_decimal_of_seconds_with_three_places_is_exact(ms: int) -> None:
    times = Times(EventSettings(time_unit="s"))
    assert times.to_ms(ms / 1000) == ms


@given(st.floats(-1e11, 1e11))
def test_seconds_are_what_their_shortest_decimal_says(value: float) -> None:
    times = Times(EventSettings(time_unit="s"))
    assert times.to_ms(value) == math.floor(Decimal(repr(value)) * 1000)


@pytest.mark.parametrize(
    ("value", "unit", "reason"),
    [
        ("yesterday", "ms", Reason.BAD_TIME),
        ("nan", "ms", Reason.BAD_TIME),
        (math.nan, "ms", Reason.BAD_TIME),
        (-math.inf, "s", Reason.BAD_TIME),
        ("0x18bcfe56800", "ms", Reason.BAD_TIME),
        ("2023-11-14", "ms", Reason.BAD_TIME),
        ("2023-13-40", "iso", Reason.BAD_TIME),
        ("9" * 300, "iso", Reason.BAD_TIME),
        ("20231114", "iso", Reason.BAD_TIME),
        (20231114, "iso", Reason.BAD_TIME),
        ("1640080382100.0", "iso", Reason.BAD_TIME),
        (1.5, "iso", Reason.BAD_TIME),
        (True, "ms", Reason.WRONG_TYPE),
        (True, "iso", Reason.WRONG_TYPE),
        ([1], "s", Reason.WRONG_TYPE),
        ({}, "iso", Reason.WRONG_TYPE),
        ("1e999", "ms", Reason.TOO_LONG),
        ("9" * 5000, "ms", Reason.TOO_LONG),
        (-1, "ms", Reason.NEGATIVE),
        (5, "ms", Reason.TOO_OLD),
        ("1969-01-01", "iso", Reason.TOO_OLD),
        (Timestamp(-1), "ms", Reason.TOO_OLD),
        (NOW + 86_400_001, "ms", Reason.IN_FUTURE),
        (10**30, "us", Reason.IN_FUTURE),
        (1.7e300, "s", Reason.IN_FUTURE),
        ("9999-01-01", "iso", Reason.IN_FUTURE),
    ],
)
def test_what_is_no_time_or_out_of_range_is_refused(
    value: object, unit: Any, reason: Reason
) -> None:
    rejected = refused(value, unit)
    assert rejected.reason is reason
    assert "event_time" in rejected.detail
    assert len(rejected.detail) < 300


def test_the_limits_themselves_are_taken() -> None:
    times = Times(EventSettings())
    assert read(times.earliest) == times.earliest
    assert read(NOW + 86_400_000) == NOW + 86_400_000


def test_a_detail_says_which_moment_was_read() -> None:
    assert refused(NOW // 1000).detail == (
        "event_time 1700000000 is 1970-01-20T16:13:20+00:00, before 2000-01-01;"
        " check time_unit (ms)"
    )


def test_a_moment_without_calendar_is_told_too() -> None:
    assert moment(10**300) == "beyond all calendars"


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@given(values=st.lists(st.floats() | st.floats(0, 2e9) | st.floats(0, 2e15), max_size=5))
def test_columns_of_doubles_are_sure_only_of_what_the_rule_says(
    unit: Any, values: list[float]
) -> None:
    times = Times(EventSettings(time_unit=unit))
    column, sure = times.of_doubles(np.array(values, np.float64))
    for value, ms in zip(np.array(values)[sure], column[sure], strict=True):
        assert ms == times.to_ms(float(value))


def test_columns_of_usual_seconds_are_all_sure() -> None:
    seconds = np.linspace(0, 2**31, 200_000).round(3)
    _, sure = Times(EventSettings(time_unit="s")).of_doubles(seconds)
    assert sure.all()


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
def test_columns_of_integers_are_sure_only_of_what_the_rule_says(
    unit: Any, values: list[int]
) -> None:
    times = Times(EventSettings(time_unit=unit))
    column, sure = times.of_integers(np.array(values, np.int64))
    for value, ms in zip(np.array(values)[sure], column[sure], strict=True):
        assert ms == times.to_ms(int(value))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@given(count=st.integers(-(2**63), 2**63 - 1))
def test_a_stamp_is_the_same_alone_and_in_a_column(unit: str, count: int) -> None:
    (ms,), (sure,) = of_stamps(np.array([count]), unit)
    assert not sure or ms == Timestamp.of(count, unit).ms


def test_in_iso_no_number_is_sure() -> None:
    times = Times(EventSettings(time_unit="iso"))
    assert not times.of_integers(np.array([NOW]))[1].any()
    assert not times.of_doubles(np.array([1.5]))[1].any()
