"""The service's own logs: events, and impressions with what came of them.

*Events* are what the worker reads: what users did. *Impressions* are what a scorer's candidates
became: which items were shown to whom, when, and with which CTR. An impression's label is its
outcome: 1 if an event of the right kind on the same item by the same user followed within a window.

Both come as parquet (a file, or a directory of files) or from a Kafka topic with one JSON object a
message. Events have the fields of `infra.settings.EventSettings`, under the names that the settings
give them; impressions have request_id, user_id, item_id, ctr and time. Events that come twice, told
by their event_id, count once.

    logs = read_logs(Path("logs"), outcomes=["click"], window_s=1800)
    logs.interactions, logs.impressions.labels
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json

from infra.arrays import F32, I32, I64, Bools
from infra.errors import BrokerError, DataError
from infra.kafka.admin import topic_partitions
from infra.kafka.clients import client_config
from infra.settings import BrokerSettings, EventSettings
from infra.telemetry import get_logger
from models.data.interactions import Column, Columns, Interactions, pc
from models.readers import tables
from models.readers.tables import TimeUnit

EVENTS: Final = "events.parquet"
IMPRESSIONS: Final = "impressions.parquet"
IMPRESSION_FIELDS: Final = ("request_id", "user_id", "item_id", "ctr", "time")

_NEEDED: Final = ("request_id", "user_id", "item_id", "time")
_BATCH: Final = 10_000  # messages parsed at a time: some MB of JSON
_POLL_S: Final = 0.2  # a batch that is not full waits this long
_NUMBERS: Final = {"ctr": pa.float64(), "dwell_ms": pa.float64()}

log = get_logger(__name__)


@dataclass(frozen=True)
class Topic:
    """A Kafka topic, from its beginning (or a moment) to where it ends when reading begins."""

    broker: BrokerSettings | str
    """The settings of the broker, or its address."""
    name: str
    since_ms: int | None = None
    """Leave out messages that Kafka took before this moment, ms since epoch."""
    limit: int | None = None
    """Messages read, at most."""
    timeout_s: float = 30.0
    """Longest silence of the broker."""

    def __str__(self) -> str:
        return f"topic {self.name}"


@dataclass(frozen=True)
class LoggedImpressions:
    """I items shown, in order of time."""

    users: I32
    """i32[I]: row of the user in the interactions; -1 for a user without events."""
    items: I32
    """i32[I]: row of the item in the interactions; 0 for an item without events."""
    times: I64
    """i64[I]: seconds since epoch, ascending."""
    ctrs: F32
    """f32[I]: the CTR that the service gave; NaN where it was not logged."""
    labels: F32
    """f32[I]: 1 where the outcome followed within the window, else 0."""
    requests: I64
    """i64[I]: number of the request that it was shown for, by first occurrence."""

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Logs:
    """Events as interactions, and impressions that point into them."""

    interactions: Interactions
    impressions: LoggedImpressions


def read(
    path: Path | Topic, *, settings: EventSettings | None = None, share: float = 1.0
) -> Interactions:
    """Read the events alone.

    Args:
        path: a parquet file, a directory that holds `EVENTS` or parquet files, or a topic.
        settings: how events are written.
        share: the first part of the events to keep, by time.

    Raises:
        DataError: there are no events, or they cannot be read.
        BrokerError: Kafka cannot be reached, or has no such topic.
    """
    events, _ = _events(_beside(path, EVENTS), settings or EventSettings())
    return events.interactions(str(path), share=share)


def read_logs(
    events: Path | Topic,
    impressions: Path | Topic | None = None,
    *,
    outcomes: Sequence[str] = ("click", "purchase"),
    window_s: float = 1800.0,
    settings: EventSettings | None = None,
    time_unit: TimeUnit = "ms",
) -> Logs:
    """Read events, and impressions joined with them.

    Each event of an outcome belongs to the last impression of its item to its user before it, and
    to no other; so an item that is shown twice and clicked once has one label 1.

    Args:
        events: as in `read`.
        impressions: where they are, as in `read`; by default `IMPRESSIONS` in the directory
            ``events``.
        outcomes: actions that make a label 1.
        window_s: how long after an impression its outcome may come.
        settings: how events are written.
        time_unit: what the impressions' times count, if they are numbers.

    Raises:
        DataError: there are no events, or files cannot be read.
        BrokerError: Kafka cannot be reached, or has no such topic.
    """
    if impressions is None:
        if isinstance(events, Topic):
            raise DataError(f"{events} holds events; name where the impressions are, too")
        impressions = events
    done, done_ms = _events(_beside(events, EVENTS), settings or EventSettings())
    interactions = done.interactions(str(events))
    shown_in = _beside(impressions, IMPRESSIONS)
    shown = _table(shown_in, {name: name for name in IMPRESSION_FIELDS}, time_unit, _NEEDED)
    shown_ms = tables.milliseconds(shown["time"], f"{shown_in}: time", time_unit)
    order = np.argsort(shown_ms, kind="stable")
    shown, shown_ms = shown.take(pa.array(order)), shown_ms[order]
    for name in ("user_id", "item_id", "request_id"):
        if shown[name].null_count:
            raise DataError(f"{shown_in}: {name} is null in some row; drop such rows")
    counts = np.isin(_texts(done.actions), np.array(outcomes, dtype=object))
    pairs = _pairs([shown["user_id"], done.users], [shown["item_id"], done.items])
    labels = followed(
        pairs[: len(shown)],
        shown_ms,
        pairs[len(shown) :][counts],
        done_ms[counts],
        int(window_s * 1000),
    )
    _, requests = np.unique(shown["request_id"].to_numpy(), return_inverse=True)
    ctrs = pc.fill_null(shown["ctr"].cast(pa.float32()), np.nan).to_numpy()
    return Logs(
        interactions,
        LoggedImpressions(
            users=_rows(shown["user_id"], interactions.user_ids, -1),
            items=_rows(shown["item_id"], interactions.item_ids, 0),
            times=shown_ms // 1000,
            ctrs=ctrs,
            labels=labels.astype(np.float32),
            requests=_by_occurrence(requests.astype(np.int64)),
        ),
    )


def followed(shown: I64, shown_ms: I64, done: I64, done_ms: I64, window_ms: int) -> Bools:
    """Which impressions an outcome followed (bool[I]): every outcome counts for the last one.

    >>> pair = np.zeros(2, np.int64)  # one item, shown twice and clicked once
    >>> followed(pair, np.array([0, 50]), pair[:1], np.array([60]), 100).tolist()
    [False, True]

    Args:
        shown: i64[I]: number of each impression's pair of user and item.
        shown_ms: i64[I]: when it was shown.
        done: i64[E]: the same number of each outcome.
        done_ms: i64[E]: when it happened; at the moment of an impression counts as after it.
        window_ms: longest time between the two.
    """
    size = len(shown)
    pair = np.concatenate([shown, done])
    when = np.concatenate([shown_ms, done_ms])
    is_outcome = np.arange(len(pair)) >= size
    order = np.lexsort((is_outcome, when, pair))
    # Along this order, the last impression at or before each place.
    place = np.where(is_outcome[order], -1, np.arange(len(order)))
    last = np.maximum.accumulate(place) if len(place) else place
    places = np.flatnonzero(is_outcome[order] & (last >= 0))
    outcome, impression = order[places], order[last[places]]
    near = (pair[outcome] == pair[impression]) & (when[outcome] - when[impression] <= window_ms)
    found = np.zeros(size, np.bool_)
    found[impression[near]] = True
    return found


def _events(source: Path | Topic, settings: EventSettings) -> tuple[Columns, I64]:
    """The events' columns, and their times in ms."""
    names = settings.single_names()
    unit: TimeUnit = "ms" if settings.time_unit == "iso" else settings.time_unit
    needed = tuple(
        name
        for name in ("user_id", "item_id", "event_time", "action")
        if name not in settings.constants
    )
    json_unit = None if settings.time_unit == "iso" else unit
    table = _table(source, names, json_unit, needed)
    for name, value in settings.constants.items():
        table = _with_constant(table, name, value)
    times = tables.milliseconds(table["event_time"], f"{source}: event_time", unit)
    kept = times >= settings.earliest_ms
    kept &= _first_of_each(table["event_id"])
    if not kept.all():
        table, times = table.filter(pa.array(kept)), times[kept]
    actions = tables.renamed(table["action"], lambda name: settings.actions.get(name, name))
    dwell = table["dwell_ms"]
    has_category = table["category_id"].null_count < len(table)
    columns = Columns(
        users=table["user_id"],
        items=table["item_id"],
        times=times // 1000,
        actions=actions,
        action_names=settings.action_names,
        dwell_s=None if dwell.null_count == len(dwell) else pc.divide(dwell, 1000.0),
        item_attributes={"category": table["category_id"]} if has_category else {},
    )
    return columns, times


def _with_constant(table: Any, name: str, value: object) -> Any:
    column = table[name]
    if column.null_count == len(table):
        filled = pa.array([value] * len(table))
        if name not in _NUMBERS and name != "event_time":
            filled = filled.cast(pa.string())
    else:
        filled = pc.fill_null(column, pa.scalar(value).cast(column.type))
    return table.set_column(table.column_names.index(name), name, filled)


def _first_of_each(ids: Column) -> Bools:
    """bool[N]: false for rows whose id stood in a row before."""
    kept = np.ones(len(ids), np.bool_)
    real = np.flatnonzero(ids.is_valid().to_numpy())
    if len(real):
        codes = ids.drop_null().dictionary_encode().combine_chunks().indices.to_numpy()
        _, first = np.unique(codes, return_index=True)
        kept[real] = False
        kept[real[first]] = True
    return kept


def _pairs(users: Sequence[Column], items: Sequence[Column]) -> I64:
    """i64: a number for each pair of user and item, over all columns end to end."""
    user, item = (
        pa.chunked_array([part.cast(pa.string()).combine_chunks() for part in parts])
        .dictionary_encode()
        .combine_chunks()
        for parts in (users, items)
    )
    numbers: I64 = user.indices.to_numpy().astype(np.int64) * len(item.dictionary)
    numbers += item.indices.to_numpy()
    return numbers


def _rows(ids: Column, known: list[str], missing: int) -> I32:
    found = pc.index_in(ids.cast(pa.string()), value_set=pa.array(known, pa.string()))
    rows: I32 = pc.fill_null(found, missing).to_numpy().astype(np.int32)
    return rows


def _texts(column: Column) -> npt.NDArray[np.object_]:
    texts: npt.NDArray[np.object_] = column.cast(pa.string()).to_numpy(zero_copy_only=False)
    return texts


def _by_occurrence(numbers: I64) -> I64:
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _beside(source: Path | Topic, name: str) -> Path | Topic:
    if isinstance(source, Topic):
        return source
    if not source.exists():
        raise DataError(f"{source} is not there; it should hold {name}, or be a parquet file")
    return source / name if (source / name).exists() else source


# Reading


def _table(
    source: Path | Topic,
    names: Mapping[str, str],
    unit: TimeUnit | None,
    needed: Sequence[str],
) -> Any:
    """Columns of our names; a field that the source does not have is a column of nulls."""
    if isinstance(source, Topic):
        return _topic(source, names, unit, needed)
    table = tables.read_parquet(source)
    there = {name: _column(table, path) for name, path in names.items()}
    found = [names[name] for name, column in there.items() if column is not None]
    tables.require(source, [*found, *table.column_names], [names[name] for name in needed])
    columns = {}
    for name, column in there.items():
        kind = _NUMBERS.get(name, pa.string())
        if column is None:
            columns[name] = pa.nulls(len(table), kind)
        elif name in {"event_time", "time"}:
            columns[name] = column
        else:
            with tables.reading(source, f"{name} in a table"):
                columns[name] = column.cast(kind)
    return pa.table(columns)


def _column(table: Any, path: str) -> Column | None:
    """A column by its name, or by the dotted path into a struct."""
    if path in table.column_names:
        return table[path]
    head, *steps = path.split(".")
    if head not in table.column_names:
        return None
    column = table[head]
    for step in steps:
        kind = column.type
        if not pa.types.is_struct(kind) or kind.get_field_index(step) < 0:
            return None
        column = pc.struct_field(column, step)
    return column


def _topic(
    topic: Topic, names: Mapping[str, str], unit: TimeUnit | None, needed: Sequence[str]
) -> Any:
    kinds = {name: _NUMBERS.get(name, pa.string()) for name in names}
    moment = "event_time" if "event_time" in names else "time"
    kinds[moment] = pa.string() if unit is None else pa.float64() if unit == "s" else pa.int64()
    schema = pa.schema(list(kinds.items()))
    parse = _json_parser(names, schema)
    parts = [parse(values) for values in messages(topic)]
    table = pa.Table.from_batches([], schema) if not parts else pa.concat_tables(parts)
    read = len(table)
    for name in needed:
        table = table.filter(table[name].is_valid())
    if len(table) < read:
        log.warning("messages skipped", topic=topic.name, skipped=read - len(table), of=read)
    return table


def _json_parser(names: Mapping[str, str], schema: Any) -> Callable[[list[bytes]], Any]:
    """A parser of messages to a table with a row each, null where a message does not say."""
    fields = _nested({path: schema.field(name).type for name, path in names.items()})
    options = pyarrow.json.ParseOptions(
        explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"
    )

    def parse(values: list[bytes]) -> Any:
        text = b"\n".join(values) + b"\n"
        try:
            rows = pyarrow.json.read_json(
                pa.BufferReader(text),
                read_options=pyarrow.json.ReadOptions(block_size=len(text) + 1),
                parse_options=options,
            )
        except pa.ArrowException:
            rows = None
        if rows is None or len(rows) != len(values):
            # One message that is no such object spoils a block; then each is looked at alone.
            return _parse_singly(values, names, schema)
        return pa.table({name: _column(rows, names[name]) for name in names})

    return parse


def _nested(paths: Mapping[str, Any]) -> list[Any]:
    """The arrow fields of dotted paths."""
    direct: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for path, kind in paths.items():
        head, _, rest = path.partition(".")
        if rest:
            below.setdefault(head, {})[rest] = kind
        else:
            direct[head] = kind
    direct |= {head: pa.struct(_nested(inner)) for head, inner in below.items()}
    return [pa.field(name, kind) for name, kind in direct.items()]


def _parse_singly(values: list[bytes], names: Mapping[str, str], schema: Any) -> Any:
    decode = msgspec.json.Decoder().decode
    columns: dict[str, list[object]] = {name: [] for name in names}
    paths = {name: path.split(".") for name, path in names.items()}
    for value in values:
        try:
            event = decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            event = None
        for name, path in paths.items():
            columns[name].append(_read_as(schema.field(name).type, _step(event, path)))
    return pa.table({n: pa.array(column, schema.field(n).type) for n, column in columns.items()})


def _step(value: object, path: Sequence[str]) -> object:
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _read_as(kind: Any, value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if pa.types.is_string(kind):
        return None if isinstance(value, float) else str(value)
    if isinstance(value, str):
        return None
    if pa.types.is_integer(kind):
        return int(value) if abs(value) < 2**62 else None
    return float(value)


def messages(topic: Topic) -> Iterator[list[bytes]]:
    """The values of a topic's messages, in batches, to where each partition ended at the start.

    Reads without a group: nothing is committed, and no other reader notices.

    Raises:
        BrokerError: the broker has no such topic, or fell silent.
    """
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

    partitions = range(topic_partitions(topic.broker, topic.name, timeout_s=topic.timeout_s))
    if not partitions:
        raise BrokerError(f"{topic} is not there; check its name and the broker's address")
    settings = client_config(topic.broker) | {
        "group.id": f"lifelong-read-{uuid.uuid4().hex}",  # asked for, and never used
        "enable.auto.commit": False,
        "enable.partition.eof": True,
    }
    consumer = Consumer(settings)
    try:
        ends, starts = {}, []
        for partition in partitions:
            at = TopicPartition(topic.name, partition, topic.since_ms or 0)
            low, high = consumer.get_watermark_offsets(at, timeout=topic.timeout_s)
            at.offset = OFFSET_BEGINNING
            if topic.since_ms is not None:
                (at,) = consumer.offsets_for_times(
                    [TopicPartition(topic.name, partition, topic.since_ms)], topic.timeout_s
                )
            if low < high and at.offset != -1:  # -1: nothing since that moment
                ends[partition] = high
                starts.append(at)
        if starts:
            consumer.assign(starts)
        yield from _consume(consumer, ends, topic)
    except KafkaException as error:
        reason = str(error.args[0].str()) if error.args else "no reason given"
        raise BrokerError(f"{topic} cannot be read: {reason}") from error
    finally:
        consumer.close()


def _consume(consumer: Any, ends: dict[int, int], topic: Topic) -> Iterator[list[bytes]]:
    from confluent_kafka import KafkaError

    left = topic.limit
    unread = set(ends)
    heard = time.monotonic()
    while unread and left != 0:
        batch = consumer.consume(_BATCH, timeout=_POLL_S)
        if batch:
            heard = time.monotonic()
        elif time.monotonic() - heard > topic.timeout_s:
            raise BrokerError(
                f"{topic} fell silent for {topic.timeout_s:g} s before its end; is the broker up?"
            )
        values = []
        for message in batch:
            error, partition = message.error(), message.partition()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                if error.retriable():
                    continue  # the client tries again; silence is what ends it
                raise BrokerError(f"{topic} cannot be read: {error.str()}")
            if error is None and message.offset() < ends[partition] and message.value() is not None:
                values.append(message.value())
            if error is not None or message.offset() >= ends[partition] - 1:
                unread.discard(partition)
        values = values[:left]
        left = None if left is None else left - len(values)
        if values:
            yield values
