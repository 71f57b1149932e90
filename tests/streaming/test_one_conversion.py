"""The same row becomes the same stored bytes, or is refused for the same reason, by whichever way
it comes: as a record of a topic, a JSON line, a CSV row or a Parquet row.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from infra.behaviors import (
    DEFAULT_ACTIONS,
    MAX_ACTIONS,
    category_key,
    event_key,
    item_key,
    pack_behavior,
)
from infra.settings import EventSettings
from streaming.events.conversion import Conversion
from streaming.events.decoder import EventDecoder
from streaming.events.rejects import Reason, Rejected
from streaming.events.times import Times
from streaming.files.reader import EventFile
from streaming.files.replay import encode_batch
from streaming.history.packing import pack

NOW = 1_700_000_000_000
ROW: dict[str, Any] = {
    "event_id": "e1",
    "user_id": "u1",
    "item_id": "i1",
    "action": "click",
    "event_time": NOW,
    "category_id": "c1",
    "dwell_ms": 250,
}
FIELDS = tuple(ROW)
IDS = ("event_id", "user_id", "item_id", "action", "category_id")

Row = Mapping[str, Any]
Stored = tuple[str, bytes, int]
"""User, packed behavior, event key."""
Refused = tuple[Reason, str]
"""Reason and detail."""
Outcome = Stored | Refused


def by_kafka(row: Row, mapping: EventSettings) -> Outcome:
    """As a record without a key; then, if it is taken, with the right key as well."""
    value = json.dumps(row).encode()
    decoded = EventDecoder(mapping, keyless=True).decode_batch([(0, None, value)], NOW)
    if decoded.rejects:
        return decoded.rejects[0].reason, decoded.rejects[0].detail
    (append,) = decoded.appends
    record = (0, append.user.encode(), value)
    assert EventDecoder(mapping).decode_batch([record], NOW).appends == [append]
    return append.user, append.behaviors[0], append.event_keys[0]


def by_file(path: Path, mapping: EventSettings) -> list[Outcome]:
    file = EventFile(path, mapping, on_bad="skip", now_ms=NOW)
    found: dict[int, Outcome] = {}
    for raw in file._rows.batches(file._columns, 0):
        batch, rejects = file._convert(raw)
        found |= {reject.row: (reject.reason, reject.detail) for reject in rejects}
        events = pack(batch)
        taken = zip(
            batch.rows.tolist(),
            events.users.to_pylist(),
            events.behaviors,
            events.event_keys.tolist(),
            strict=True,
        )
        found |= {row: (user, packed.tobytes(), key) for row, user, packed, key in taken}
    return [found[row] for row in sorted(found)]


def by_jsonl(rows: Sequence[Row], mapping: EventSettings, folder: Path) -> list[Outcome]:
    path = folder / "e.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return by_file(path, mapping)


def by_csv(rows: Sequence[Row], mapping: EventSettings, folder: Path) -> list[Outcome]:
    path = folder / "e.csv"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows([row[name] for name in FIELDS] for row in rows)
    path.write_bytes(text.getvalue().encode())
    return by_file(path, mapping)


def column(values: list[Any]) -> Any:
    if bool in set(map(type, values)) and float in set(map(type, values)):
        raise TypeError("pyarrow takes booleans for 0.0 and 1.0 here")
    try:
        return pa.array(values)
    except OverflowError:
        return pa.array(values, pa.uint64())


def by_parquet(rows: Sequence[Row], mapping: EventSettings, folder: Path) -> list[Outcome] | None:
    """None: no table holds these rows."""
    path = folder / "e.parquet"
    try:
        table = pa.table({name: column([row[name] for row in rows]) for name in FIELDS})
        pq.write_table(table, path)
    except (pa.ArrowException, OverflowError, TypeError):
        return None
    return by_file(path, mapping)


def reasons(outcomes: Sequence[Outcome]) -> list[Stored | Reason]:
    """The outcomes without details: formats show one number in their own ways, as 5, 5.0 or '5'."""
    return [outcome if len(outcome) == 3 else outcome[0] for outcome in outcomes]


def in_csv(row: Row) -> dict[str, Any] | None:
    """The row as a CSV file can say it: nothing is an empty text. None: it cannot."""
    said: dict[str, Any] = {}
    for name in FIELDS:
        value = row.get(name)
        said[name] = "" if value is None else value
        if isinstance(value, bool | list | dict):
            return None
        if isinstance(value, str) and ("\r" in value or (name in IDS and LIKE_FLOAT(value))):
            return None
    return said


LIKE_FLOAT = re.compile(r"-?[0-9]+(\.[0-9]+([eE][-+]?[0-9]+)?|[eE][-+][0-9]+)").fullmatch


def scaled(ms: float, unit: str) -> float:
    return {"s": ms / 1000, "ms": ms, "us": ms * 1000, "iso": ms}[unit]


MOMENTS = st.one_of(
    st.integers(NOW - 10**12, NOW + 10**8),
    st.integers(1_073_741_824_000, 1_099_511_627_000),  # where doubles of s are least exact
    st.floats(NOW - 10**11, NOW),
)
TIMES = st.one_of(
    st.tuples(MOMENTS, st.sampled_from(["s", "ms", "us"])).map(lambda drawn: scaled(*drawn)),
    st.integers(NOW * 1000 - 10**15, NOW * 1000 + 10**9),
    st.tuples(
        st.datetimes(),
        st.sampled_from(["", "Z", "+02:00", "-0730", "+01"]),
        st.sampled_from(["T", " ", "x"]),
    ).map(lambda drawn: drawn[0].isoformat(drawn[2]) + drawn[1]),
    st.sampled_from(
        [
            *(
                "2023-11-14T22:13:20.9999Z",
                "2023-11-14T22:13:20.123456789",
                "2023-11-14",
                "20231114",
            ),
            *("20231114T221320Z", "2023-11-14T22:13:60", "2023-13-40", " 2023-11-14T22:13:20Z"),
            *("now", "", " ", "nan", "inf", "-inf", "1e999", "0x18bcfe56800", "1_700_000_000_000"),
            *("1700000000000.", ".5", "+1700000000000", " 1700000000000 ", "1.7e12", "٣"),
            *("1699999999.9999999", "1700000000.1239", "1700000000000999", "9" * 25, "9" * 5000),
            *(1700000000000.7, 1700000000.1239, 1700000000000999, -1, -0.5, -0.0, 0, 2**63, 2**70),
            *(1.7e300, 1.7e12, 5e-324),
        ]
    ),
)
NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**66), 2**66),
    st.integers(-5, 5),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-100, 100).map(lambda value: float(round(value))),
    st.text(max_size=20),
    st.text("0123456789.-+eE \0", max_size=6),
    st.sampled_from(["u\0x", "7.0", "-7", "007", "12e5", "1e+16", 1e16, -7, 7.0, 1.5, -0.0]),
    st.sampled_from(["i" * 256, "i" * 257, "ü" * 128, "ü" * 129, "\ufeff", "NULL", "a,b", 'a"b']),
    st.sampled_from([[], [1], {"id": 1}, "a\nb", "", "click", "buy", "clik", 2**32 - 1, 2**32]),
    st.sampled_from([4294967295.5, "4294967295.5", "12", "1.9", 1.9, "1e3", "-1", "-0.1", "abc"]),
)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A sound row with some of its fields changed or left out."""
    row = ROW | {"event_time": draw(TIMES)}
    for name in draw(st.sets(st.sampled_from(FIELDS), max_size=3)):
        if draw(st.integers(0, 9)) == 0:
            del row[name]
        elif name != "event_time" or draw(st.booleans()):
            row[name] = draw(NASTY)
    return row


MAPPINGS = st.builds(
    EventSettings,
    time_unit=st.sampled_from(["s", "ms", "us", "iso"]),
    constants=st.sampled_from(
        [
            {},
            {"action": "view", "event_id": "e", "dwell_ms": 7},
            {"category_id": 3, "item_id": "none", "dwell_ms": "1.9"},
        ]
    ),
    actions=st.sampled_from([{}, {"buy": "purchase", "7": "cart", "": "like"}]),
    action_names=st.sampled_from(
        [DEFAULT_ACTIONS.names, ("like", "-7", "purchase", "cart", "view", "a,b")]
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(rows(), min_size=1, max_size=5), mapping=MAPPINGS)
@example(rows=[ROW | {"event_time": 1_073_741_824.001}], mapping=EventSettings(time_unit="s"))
@example(rows=[ROW | {"dwell_ms": value} for value in (1.5, True)], mapping=EventSettings())
@example(
    rows=[ROW | {name: "x\0y"} for name in ("user_id", "item_id", "event_id", "category_id")],
    mapping=EventSettings(),
)
def test_a_row_becomes_the_same_by_every_way(
    rows: list[dict[str, Any]], mapping: EventSettings, folder: Path
) -> None:
    expected = [by_kafka(row, mapping) for row in rows]
    assert by_jsonl(rows, mapping, folder) == expected

    said = [row for row in map(in_csv, rows) if row is not None]
    if said:
        expected = [by_kafka(row, mapping) for row in said]
        assert reasons(by_csv(said, mapping, folder)) == reasons(expected)

    tabled = [{name: row.get(name) for name in FIELDS} for row in rows]
    expected = [by_kafka(row, mapping) for row in tabled]
    together = by_parquet(tabled, mapping, folder)
    if together is not None:
        assert reasons(together) == reasons(expected)
        return
    for row, outcome in zip(tabled, expected, strict=True):
        alone = by_parquet([row], mapping, folder)
        assert alone is None or reasons(alone) == reasons([outcome])


def stored(**changes: Any) -> Stored:
    row = ROW | changes
    packed = pack_behavior(
        item_key(row["item_id"]),
        row["event_time"],
        category_key(row["category_id"]),
        row["dwell_ms"],
        DEFAULT_ACTIONS.codes[row["action"]],
    )
    return row["user_id"], packed, event_key(row["event_id"])


@pytest.mark.parametrize(
    ("unit", "changes", "becomes"),
    [
        ("ms", {"event_time": 1700000000000.7}, stored()),
        ("us", {"event_time": 1700000000000999}, stored()),
        ("s", {"event_time": 1700000000.1239}, stored(event_time=NOW + 123)),
        ("iso", {"event_time": "2023-11-14T22:13:20.9999Z"}, stored(event_time=NOW + 999)),
        ("ms", {"event_time": "1700000000000"}, stored()),
        ("ms", {"user_id": -7}, stored(user_id="-7")),
        ("ms", {"item_id": 7.0}, stored(item_id="7")),
        ("ms", {"item_id": 7.5}, Reason.WRONG_TYPE),
        ("ms", {"user_id": "u\0x"}, Reason.BAD_TEXT),
        ("ms", {"dwell_ms": 1.9}, stored(dwell_ms=1)),
        ("ms", {"dwell_ms": "12"}, stored(dwell_ms=12)),
        ("ms", {"action": ""}, stored(action="view")),
        ("ms", {"event_time": 2**63 + 5}, Reason.IN_FUTURE),
        ("iso", {"event_time": 20231114}, Reason.BAD_TIME),
    ],
)
def test_a_known_row_becomes_what_it_should(
    unit: Any, changes: dict[str, Any], becomes: Stored | Reason, folder: Path
) -> None:
    mapping = EventSettings(time_unit=unit, constants={"action": "view"})
    row = ROW | changes

    assert reasons([by_kafka(row, mapping)]) == [becomes]
    assert reasons(by_jsonl([row], mapping, folder)) == [becomes]
    assert reasons(by_csv([row], mapping, folder)) == [becomes]
    assert reasons(by_parquet([row], mapping, folder) or ()) == [becomes]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FIELDS)
def test_what_json_cannot_say_is_refused_in_a_table(name: str, value: float, folder: Path) -> None:
    row = ROW | {name: value}
    with pytest.raises(Rejected) as refused:
        Conversion(EventSettings()).convert(row.get, NOW)

    outcomes = by_parquet([row], EventSettings(), folder)
    assert outcomes == [(refused.value.reason, refused.value.detail)]


@given(time=st.floats(0, NOW / 1000))
def test_columns_of_doubles_are_read_as_each_double_is(time: float) -> None:
    times = Times(EventSettings(time_unit="s"))
    (ms,), (sure,) = times.of_doubles(np.array([time]))

    assert not sure or ms == times.to_ms(time) == math.floor(Decimal(repr(time)) * 1000)


def test_a_replayed_row_is_stored_as_a_backfilled_one(folder: Path) -> None:
    rows = [
        ROW,
        ROW | {"user_id": -7, "item_id": 7.0, "dwell_ms": "1.9", "event_time": NOW - 0.7},
        ROW | {"category_id": None, "dwell_ms": None, "action": "buy"},
    ]
    declared = ("purchase", "seen", "click")
    mapping = EventSettings(action_names=declared, actions={"buy": "purchase"})
    backfilled = by_jsonl(rows, mapping, folder)
    file = EventFile(folder / "e.jsonl", mapping, now_ms=NOW)
    (batch,) = file.batches()
    events = [json.loads(message["value"]) for message in encode_batch(batch, 0, file.actions)]

    assert [event["action"] for event in events] == ["click", "click", "purchase"]
    assert [by_kafka(event, EventSettings(action_names=declared)) for event in events] == backfilled


MANY = tuple(f"action {code}" for code in range(1, MAX_ACTIONS + 1))


def test_any_of_255_actions_is_stored_under_its_code_by_every_way(folder: Path) -> None:
    mapping = EventSettings(action_names=MANY)
    rows = [ROW | {"action": name} for name in MANY]
    expected = [(*stored()[:1], packed_with(code), stored()[2]) for code in range(1, 256)]

    assert [by_kafka(row, mapping) for row in rows] == expected
    assert by_jsonl(rows, mapping, folder) == expected
    assert by_csv(rows, mapping, folder) == expected
    assert by_parquet(rows, mapping, folder) == expected


def packed_with(action: int) -> bytes:
    return pack_behavior(item_key("i1"), NOW, category_key("c1"), 250, action)


def test_an_action_that_is_not_declared_is_refused_alike_by_every_way(folder: Path) -> None:
    mapping = EventSettings(action_names=("answered right", "answered wrong"))
    refused = (
        Reason.UNKNOWN_ACTION,
        "action 'click' is not known; add it to events.action_names, or map it in events.actions",
    )

    assert by_kafka(ROW, mapping) == refused
    assert by_jsonl([ROW], mapping, folder) == [refused]
    assert by_csv([ROW], mapping, folder) == [refused]
    assert by_parquet([ROW], mapping, folder) == [refused]
