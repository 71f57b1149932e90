from __future__ import annotations

from typing import Any

import pytest

from infra.settings import EventSettings
from tests.streaming.events.formats.events import brief, outcomes

TABLE = EventSettings(format="debezium")
ROW = {"event_id": 1, "user_id": 42, "item_id": "i", "action": "view", "event_time": 1_791_211_680}


def change(op: str = "c", **changes: Any) -> dict[str, Any]:
    row = ROW | {"event_time": 1_791_211_680_000}
    return {"op": op, "before": None, "after": row, "source": {}, "ts_ms": 1} | changes


def with_schema(kind: str, count: int) -> dict[str, Any]:
    columns = [{"field": "event_time", "type": "int64", "name": f"io.debezium.time.{kind}"}]
    schema = {"type": "struct", "fields": [{"field": "after", "fields": columns}]}
    return {"schema": schema, "payload": change(after=ROW | {"event_time": count})}


@pytest.mark.parametrize("op", ["c", "r"])
def test_a_row_that_is_inserted_or_found_is_a_behavior(op: str) -> None:
    assert brief(TABLE, change(op), key=b'{"event_id": 1}') == [("42", "i", "1")]


@pytest.mark.parametrize("op", ["u", "d", "t", "m"])
def test_other_changes_are_ignored(op: str) -> None:
    assert brief(TABLE, change(op)) == ["op"]


def test_changed_rows_count_where_a_rule_says_so() -> None:
    settings = EventSettings(format="debezium", only={"op": ["c", "u"]})
    assert brief(settings, change("u")) == [("42", "i", "1")]
    assert brief(settings, change("r")) == ["op"]


@pytest.mark.parametrize("value", [None, {"schema": None, "payload": None}])
def test_a_tombstone_is_ignored(value: Any) -> None:
    assert brief(TABLE, value) == ["tombstone"]


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("Timestamp", 1_791_211_680_120),
        ("MicroTimestamp", 1_791_211_680_120_999),
        ("NanoTimestamp", 1_791_211_680_120_999_999),
    ],
)
def test_a_schema_says_what_a_time_counts(kind: str, count: int) -> None:
    [event] = outcomes(TABLE, with_schema(kind, count))
    assert event[3] == 1_791_211_680_120


@pytest.mark.parametrize("value", [ROW, {"op": "x"}, {"payload": 3}, {"payload": {"op": None}}])
def test_what_is_no_change_is_refused(value: Any) -> None:
    assert brief(TABLE, value) == ["bad_format"]
