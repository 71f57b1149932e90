from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer

from infra.errors import BrokerError, DataError
from infra.kafka.admin import create_topic
from infra.kafka.clients import producer_config
from infra.kafka.local import LocalKafka
from infra.settings import EventSettings
from models.data.interactions import Interactions
from models.readers import logs
from models.readers.logs import Topic, read_logs

T = 1_700_000_000_000

EVENTS: dict[str, Any] = {
    "event_id": ["e1", "e2", "e3", "e1", "e4"],
    "user_id": ["u", "u", "v", "u", "u"],
    "item_id": ["x", "y", "x", "x", "x"],
    "action": ["click", "view", "click", "click", "click"],
    "event_time": [T + 60_000, T + 70_000, T + 999_999, T + 60_000, T + 65_500],
    "category_id": ["c1", None, "c1", "c1", "c1"],
    "dwell_ms": [1500, None, None, 1500, 250],
}
"""e1 comes twice, as a log that was delivered again has it."""

SHOWN: dict[str, Any] = {
    "request_id": ["r2", "r1", "r1", "r1", "r3", "r4"],
    "user_id": ["u", "u", "u", "v", "w", "u"],
    "item_id": ["x", "x", "y", "x", "z", "x"],
    "ctr": [0.5, 0.25, 0.125, 0.75, None, 0.5],
    "time": [T + 50_000, T, T, T, T + 90_000, T + 61_000],
}


def write(directory: Path, events: dict[str, Any], shown: dict[str, Any] | None = None) -> Path:
    pq.write_table(pa.table(events), directory / "events.parquet")
    if shown is not None:
        pq.write_table(pa.table(shown), directory / "impressions.parquet")
    return directory


def names(interactions: Interactions) -> list[tuple[str, str, str]]:
    assert interactions.actions is not None
    return [
        (
            interactions.user_ids[user],
            interactions.item_ids[item],
            interactions.action_names[action],
        )
        for user, item, action in zip(
            interactions.users, interactions.items, interactions.actions, strict=True
        )
    ]


EXPECTED = [("u", "x", "click"), ("u", "x", "click"), ("u", "y", "view"), ("v", "x", "click")]


def test_events_are_interactions_and_count_once(tmp_path: Path) -> None:
    interactions = logs.read(write(tmp_path, EVENTS))
    assert names(interactions) == EXPECTED
    assert interactions.times.tolist() == [
        t // 1000 for t in (T + 60_000, T + 65_500, T + 70_000, T + 999_999)
    ]
    assert interactions.dwell_s is not None
    assert interactions.dwell_s.tolist() == [1.5, 0.25, 0, 0]
    category = interactions.item_attributes["category"]
    assert [category.values[row] for row in category.rows[:, 0]] == ["", "c1", ""]


def test_impressions_have_the_outcome_that_followed_within_the_window(tmp_path: Path) -> None:
    write(tmp_path, EVENTS, SHOWN)
    done = read_logs(tmp_path, outcomes=["click"], window_s=100)
    interactions, shown = done.interactions, done.impressions
    users = [interactions.user_ids[row] if row >= 0 else None for row in shown.users]
    items = [interactions.item_ids[row] for row in shown.items]
    # u saw x three times: at 0 s, at 50 s (clicked at 60 s), and at 61 s (clicked at 65.5 s).
    assert list(zip(users, items, shown.labels, strict=True)) == [
        ("u", "x", 0),
        ("u", "y", 0),  # a view is no click
        ("v", "x", 0),  # too late
        ("u", "x", 1),
        ("u", "x", 1),
        (None, "", 0),  # neither user nor item ever came
    ]
    assert shown.requests.tolist() == [0, 0, 0, 1, 2, 3]
    assert shown.times.tolist() == [(T + t) // 1000 for t in (0, 0, 0, 50_000, 61_000, 90_000)]
    np.testing.assert_array_equal(shown.ctrs, [0.25, 0.125, 0.75, 0.5, 0.5, np.nan])


def test_other_actions_and_a_longer_window_are_other_outcomes(tmp_path: Path) -> None:
    write(tmp_path, EVENTS, SHOWN)
    viewed = read_logs(tmp_path, outcomes=["view"], window_s=100).impressions
    assert viewed.labels.tolist() == [0, 1, 0, 0, 0, 0]
    long = read_logs(tmp_path, outcomes=["click"], window_s=1000).impressions
    assert long.labels.tolist() == [0, 0, 1, 1, 1, 0]


def test_the_join_is_what_a_loop_over_the_events_finds() -> None:
    rng = np.random.default_rng(0)
    shown, done = rng.integers(0, 12, 300), rng.integers(0, 12, 200)
    shown_ms, done_ms = np.sort(rng.integers(0, 500, 300)), rng.integers(0, 500, 200)
    expected = np.zeros(300, np.bool_)
    for pair, at in zip(done, done_ms, strict=True):
        before = np.flatnonzero((shown == pair) & (shown_ms <= at))
        if len(before) and at - shown_ms[before].max() <= 20:
            expected[before[-1]] = True
    found = logs.followed(shown, shown_ms, done, done_ms, 20)
    assert 0 < found.sum() < 200
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("shown", "done"), [(0, 3), (3, 0), (0, 0)])
def test_the_join_takes_nothing_at_all(shown: int, done: int) -> None:
    one, other = np.zeros(shown, np.int64), np.zeros(done, np.int64)
    assert not logs.followed(one, one, other, other - 1, 5).any()


def test_events_are_read_as_the_settings_say(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user": pa.array([{"id": 7}, {"id": 8}]),
            "sku": [1, 2],
            "kind": ["buy", "share"],
            "at": ["2023-11-14T22:13:20Z", "1999-01-01T00:00:00Z"],
        }
    )
    pq.write_table(table, tmp_path / "e.parquet")
    settings = EventSettings(
        fields={"user_id": "user.id", "item_id": "sku", "action": "kind", "event_time": "at"},
        actions={"buy": "purchase"},
        time_unit="iso",
    )
    # The second is older than any event can be.
    assert names(logs.read(tmp_path, settings=settings)) == [("7", "1", "purchase")]


def test_actions_have_the_codes_under_which_they_are_stored(tmp_path: Path) -> None:
    settings = EventSettings(action_names=("view", "answered", "click"))
    interactions = logs.read(write(tmp_path, EVENTS), settings=settings)
    assert interactions.action_names == ["", *settings.action_names]
    assert interactions.actions is not None
    assert interactions.actions.tolist() == [3, 3, 1, 3]


def test_an_action_that_is_not_declared_is_none_in_particular(tmp_path: Path) -> None:
    settings = EventSettings(action_names=("view",))
    interactions = logs.read(write(tmp_path, EVENTS), settings=settings)
    assert interactions.actions is not None
    assert interactions.actions.tolist() == [0, 0, 1, 0]


def test_a_constant_stands_for_what_events_do_not_say(tmp_path: Path) -> None:
    events = {name: EVENTS[name] for name in ("user_id", "item_id", "event_time")}
    write(tmp_path, events)
    interactions = logs.read(tmp_path, settings=EventSettings(constants={"action": "click"}))
    assert {action for _, _, action in names(interactions)} == {"click"}


@pytest.mark.parametrize(
    ("events", "shown", "words"),
    [
        ({"action": None}, {}, "lacks the column 'action'"),
        ({"user_id": [None, *"abcd"]}, {}, "user_id is null in row 1"),
        ({"event_time": list("abcde")}, {}, "event_time must be a timestamp"),
        ({name: [] for name in EVENTS}, {}, "holds no behavior"),
        ({}, {"item_id": None}, "lacks the column 'item_id'"),
        ({}, {"time": [None] * 6}, "time is null in row 1"),
        ({}, {"request_id": ["r", None, "r", "r", "r", "r"]}, "request_id is null"),
        ({}, {"ctr": ["high"] * 6}, "cannot be read as ctr"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, events: dict[str, Any], shown: dict[str, Any], words: str
) -> None:
    there = [
        {name: column for name, column in {**table, **other}.items() if column is not None}
        for table, other in ((EVENTS, events), (SHOWN, shown))
    ]
    with pytest.raises(DataError, match=words) as told:
        read_logs(write(tmp_path, *there))
    assert "\n" not in str(told.value)


def test_missing_logs_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not there; it should hold events\.parquet"):
        logs.read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="name where the impressions are"):
        read_logs(Topic("127.0.0.1:9", "events"))


def encoded(table: dict[str, Any]) -> list[bytes]:
    return [json.dumps(row).encode() for row in rows(table)]


def rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in zip(table, row, strict=True) if value is not None}
        for row in zip(*table.values(), strict=True)
    ]


def produce(kafka: LocalKafka, topic: str, values: Sequence[bytes | None]) -> str:
    create_topic(kafka.bootstrap, topic, 3)
    producer = Producer(producer_config(kafka.bootstrap))
    for number, value in enumerate(values):
        producer.produce(topic, value, str(number))
    assert producer.flush(10) == 0
    return topic


@pytest.mark.kafka
def test_logs_come_from_kafka_alike(
    kafka: LocalKafka, unique_topic: Callable[[str], str], tmp_path: Path
) -> None:
    noise: list[bytes | None] = [b"no json", b"[1]", b'{"user_id": "u"}', None, b"\xff", b"{\n}"]
    events = produce(kafka, unique_topic("events"), [*encoded(EVENTS), *noise])
    shown = produce(kafka, unique_topic("shown"), encoded(SHOWN))
    broker = kafka.bootstrap
    streamed = read_logs(
        Topic(broker, events), Topic(broker, shown), outcomes=["click"], window_s=100
    )
    stored = read_logs(write(tmp_path, EVENTS, SHOWN), outcomes=["click"], window_s=100)
    assert names(streamed.interactions) == names(stored.interactions)
    # Partitions come in any order: rows of one moment may change places.
    assert outcomes(streamed) == outcomes(stored)
    assert len(logs.read(Topic(broker, events, since_ms=0))) == 4
    with pytest.raises(DataError, match=f"topic {events} holds no behavior"):
        logs.read(Topic(broker, events, since_ms=T * 2))
    with pytest.raises(BrokerError, match="nowhere"):
        logs.read(Topic(broker, "nowhere", timeout_s=1.0))


def outcomes(done: logs.Logs) -> list[tuple[int, int, int, str, float]]:
    shown = done.impressions
    return sorted(
        zip(
            shown.times.tolist(),
            shown.users.tolist(),
            shown.items.tolist(),
            [f"{ctr}" for ctr in shown.ctrs],
            shown.labels.tolist(),
            strict=True,
        )
    )


@pytest.mark.kafka
def test_a_limit_bounds_what_is_read(kafka: LocalKafka, unique_topic: Callable[[str], str]) -> None:
    values = encoded(EVENTS)[:1] * 50
    topic = produce(kafka, unique_topic("many"), values)
    batches = list(logs.messages(Topic(kafka.bootstrap, topic, limit=7)))
    assert sum(map(len, batches)) == 7
    assert sum(map(len, logs.messages(Topic(kafka.bootstrap, topic)))) == 50


def test_a_message_that_spoils_a_block_costs_only_itself() -> None:
    schema = pa.schema([("user_id", pa.string()), ("ctr", pa.float64()), ("time", pa.int64())])
    parse = logs._json_parser({"user_id": "u.id", "ctr": "ctr", "time": "t"}, schema)
    good = b'{"u": {"id": "7"}, "ctr": 0.5, "t": 5, "more": [1]}'
    assert parse([good, b"{}"]).to_pylist() == [
        {"user_id": "7", "ctr": 0.5, "time": 5},
        {"user_id": None, "ctr": None, "time": None},
    ]
    spoilt = parse([b'{"u": {"id": 8}, "ctr": 1, "t": 6.0}', b"{", good, b'{"u": 1, "t": "x"}'])
    assert spoilt["user_id"].to_pylist() == ["8", None, "7", None]
    assert spoilt["ctr"].to_pylist() == [1.0, None, 0.5, None]
    assert spoilt["time"].to_pylist() == [6, None, 5, None]
