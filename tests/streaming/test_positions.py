"""Where a worker goes on: a real Kafka loses records, and stores are put back."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest
from faust.types import TP
from prometheus_client import CollectorRegistry

from infra.behaviors import Source, item_key
from infra.kafka.local import LocalKafka
from infra.kafka.logs import LogBounds
from infra.metrics import WorkerMetrics
from infra.settings import Settings
from infra.store import Group, wall_clock_ms
from infra.stores.memory import MemoryStore
from streaming.interruptions import Interruptions
from streaming.lives import Life
from streaming.positions import STILL_S, Positions, Wanted, _Position
from streaming.topic import TopicIdentity, Topics
from streaming.transport import Log, Standing
from streaming.writer import GivenUp
from tests.infra.kafka.steps import delete_topic
from tests.streaming.kafka_harm import delete_records, lose_tail, stopped
from tests.streaming.running import (
    NOW,
    PATIENCE_S,
    KeptLetters,
    Running,
    WatchedStore,
    committed,
    create_topics,
    event,
    one_partition,
    produce,
    running,
    until,
)

if TYPE_CHECKING:
    from streaming.writer import BatchWriter

T = TypeVar("T")


def of(user: str, count: int, first: int = 0) -> Iterator[tuple[str, bytes]]:
    """Events without ids, so that only the marks can tell repetitions."""
    for number in range(first, first + count):
        yield user, event(user, number, event_id=None)


async def send(settings: Settings, events: Iterator[tuple[str, bytes]], **where: Any) -> None:
    """Send events in batches of ten, at which a log can be cut."""
    given = list(events)
    for i in range(0, len(given), 10):
        await asyncio.to_thread(produce, settings, given[i : i + 10], **where)


async def take(settings: Settings, store: WatchedStore, upto: int) -> Running:
    """Let a worker take all there is, and stop."""
    async with running(settings, store, KeptLetters()) as worker:
        await until(lambda: committed(settings) == {0: upto}, "all are committed")
    return worker


def copy(store: WatchedStore) -> WatchedStore:
    """The store as it is now, as a backup holds it."""
    backup = WatchedStore()
    for name in ("_heads", "_segments", "_bookmarks", "_positions"):
        kept = getattr(store, name)
        setattr(backup, name, {k: v.copy() if isinstance(v, dict) else v for k, v in kept.items()})
    return backup


def lost(worker: Running, cause: str) -> int:
    return int(worker.metrics.lost_events.labels(cause)._value.get())


def cuts(worker: Running) -> int:
    return int(worker.metrics.log_cuts._value.get())


@pytest.mark.kafka
async def test_events_that_take_lost_offsets_are_applied_once(kafka: LocalKafka) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    await send(settings, of("a", 30))
    await take(settings, store, 30)
    with stopped(kafka):
        lose_tail(kafka, settings, 20)
    await send(settings, of("b", 20))

    worker = await take(settings, store, 40)
    again = await take(settings, store, 40)

    assert store.counts() == {"a": 30, "b": 20}
    assert (cuts(worker), cuts(again)) == (1, 0)


@pytest.mark.kafka
async def test_a_log_that_is_shorter_than_the_store_was_fed_is_noticed(kafka: LocalKafka) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    await send(settings, of("a", 30))
    await take(settings, store, 30)
    with stopped(kafka):
        shutil.rmtree(kafka.directory / "data" / f"{settings.broker.topic}-0")

    async with running(settings, store, KeptLetters()) as worker:
        await until(lambda: cuts(worker) == 1, "the loss is noticed")
        await send(settings, of("a", 10, first=100))
        await until(lambda: worker.events("applied") == 10, "new events are applied")
        await until(lambda: committed(settings) == {0: 10}, "and committed")

    assert store.counts() == {"a": 40}


@pytest.mark.kafka
async def test_a_tail_lost_under_a_worker_is_noticed_and_what_follows_is_applied_once(
    kafka: LocalKafka,
) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    await send(settings, of("a", 30))

    async with running(settings, store, KeptLetters()) as worker:
        await until(lambda: committed(settings) == {0: 30}, "all are committed")
        with stopped(kafka):
            lose_tail(kafka, settings, 10)
        await send(settings, of("b", 50))
        await until(lambda: worker.events("applied") == 80, "new events are applied")
        await until(lambda: committed(settings) == {0: 60}, "and committed")

    assert store.counts() == {"a": 30, "b": 50}
    assert cuts(worker) == 1
    assert worker.events("replayed") == 0


@pytest.mark.long
@pytest.mark.kafka
async def test_a_restart_of_the_broker_that_loses_nothing_changes_nothing(
    kafka: LocalKafka,
) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    await send(settings, of("a", 30))

    async with running(settings, store, KeptLetters()) as worker:
        await until(lambda: committed(settings) == {0: 30}, "all are committed")
        with stopped(kafka):
            pass
        await send(settings, of("b", 10))
        await until(lambda: committed(settings) == {0: 40}, "new events are committed")
    await take(settings, store, 40)

    assert store.counts() == {"a": 30, "b": 10}
    assert cuts(worker) == 0
    assert len({source.key for source, _, _ in store.appends}) == 1


@pytest.mark.kafka
async def test_what_retention_took_is_counted_and_the_rest_applied(kafka: LocalKafka) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    await send(settings, of("a", 10))
    await take(settings, store, 10)
    await send(settings, of("a", 20, first=10))
    delete_records(settings, 25)

    worker = await take(settings, store, 30)
    again = await take(settings, store, 30)

    assert store.counts() == {"a": 15}
    assert (lost(worker, "retention"), lost(again, "retention")) == (15, 0)


@pytest.mark.kafka
async def test_who_never_read_a_topic_has_lost_nothing_of_it(kafka: LocalKafka) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    await send(settings, of("a", 20))
    delete_records(settings, 10)

    worker = await take(settings, store, 20)

    assert store.counts() == {"a": 10}
    assert lost(worker, "retention") == 0


@pytest.mark.kafka
async def test_what_a_deleted_topic_held_unread_is_counted(kafka: LocalKafka) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    await send(settings, of("a", 10))

    async with running(settings, store, KeptLetters()) as worker:
        await until(lambda: committed(settings) == {0: 10}, "all are committed")
        store.failure = lambda _s, _a: OSError("the disk is gone")
        await send(settings, of("a", 20, first=10))
        await worker.app.batch_agent.check()
        await asyncio.to_thread(delete_topic, settings.broker.bootstrap, settings.broker.topic)
        await asyncio.to_thread(create_topics, settings)
        store.failure = lambda _s, _a: None
        await until(lambda: worker.events("applied") + lost(worker, "deletion") == 30, "told")
        applied = worker.events("applied")
        await send(settings, of("b", 5))
        await until(lambda: store.counts().get("b") == 5, "the new topic is read")

    assert store.counts()["a"] == applied


@pytest.mark.kafka
async def test_what_a_deleted_topic_held_is_counted_though_its_partition_was_not_placed_yet(
    kafka: LocalKafka,
) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    await send(settings, of("a", 10))
    async with running(settings, store, KeptLetters()) as worker:
        agent, topic = worker.app.batch_agent, settings.broker.topic
        await until(lambda: committed(settings) == {0: 10}, "all are committed")
        consumer: Any = worker.app.consumer
        logs = consumer.logs

        async def unknown(_: object) -> dict[TP, object]:
            return {}

        consumer.logs = unknown  # as if nobody could tell where to go on
        agent.rebalanced({TP(topic, 0)})
        await send(settings, of("a", 20, first=10))
        await agent.check()
        await asyncio.to_thread(delete_topic, settings.broker.bootstrap, topic)
        await asyncio.to_thread(create_topics, settings)
        consumer.logs = logs
        await until(lambda: lost(worker, "deletion") == 20, "what was not read is told")


@pytest.mark.kafka
async def test_what_a_deleted_topic_held_is_told_by_none_who_had_left_it_to_others(
    kafka: LocalKafka,
) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    await send(settings, of("a", 10))
    async with running(settings, store, KeptLetters()) as worker:
        agent = worker.app.batch_agent
        await until(lambda: committed(settings) == {0: 10}, "all are committed")
        store.failure = lambda _s, _a: OSError("the disk is gone")
        await send(settings, of("a", 20, first=10))
        await agent.check()
        consumer: Any = worker.app.consumer
        assignment = consumer.assignment
        consumer.assignment = set  # as if the group had given its partition to another
        agent.rebalanced(set())
        await agent.check()
        consumer.assignment = assignment
        await asyncio.to_thread(delete_topic, settings.broker.bootstrap, settings.broker.topic)
        await asyncio.to_thread(create_topics, settings)
        store.failure = lambda _s, _a: None
        await send(settings, of("b", 5))
        await until(lambda: store.counts().get("b") == 5, "the new topic is read")

    assert lost(worker, "deletion") == 0


@pytest.mark.kafka
async def test_what_a_deleted_topic_held_is_told_by_who_gets_none_of_the_new_one(
    kafka: LocalKafka,
) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    await send(settings, of("a", 10))
    async with running(settings, store, KeptLetters()) as worker:
        agent = worker.app.batch_agent
        await until(lambda: committed(settings) == {0: 10}, "all are committed")
        store.failure = lambda _s, _a: OSError("the disk is gone")
        await send(settings, of("a", 20, first=10))
        await agent.check()
        await asyncio.to_thread(delete_topic, settings.broker.bootstrap, settings.broker.topic)
        consumer: Any = worker.app.consumer
        consumer.assignment = set  # as if the group gave the new one to others
        agent.rebalanced(set())
        await asyncio.to_thread(create_topics, settings)
        await agent.check()
        await until(lambda: lost(worker, "deletion") == 20, "what was not read is told")
        store.failure = lambda _s, _a: None


@pytest.mark.kafka
async def test_a_store_put_back_from_a_backup_catches_up(kafka: LocalKafka) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    await send(settings, of("a", 10))
    await take(settings, store, 10)
    backup = copy(store)
    await send(settings, of("a", 20, first=10))
    await take(settings, store, 30)

    async with running(settings, backup, KeptLetters()) as worker:
        await until(lambda: worker.events("applied") == 20, "what it lacks is applied")

    assert backup.counts() == store.counts() == {"a": 30}


@pytest.mark.kafka
async def test_an_empty_store_under_an_old_group_is_filled_as_far_as_kafka_can(
    kafka: LocalKafka,
) -> None:
    settings = one_partition(kafka)
    await send(settings, of("a", 30))
    await take(settings, WatchedStore(), 30)
    delete_records(settings, 10)
    empty = WatchedStore()

    async with running(settings, empty, KeptLetters()) as worker:
        await until(lambda: worker.events("applied") == 20, "all that is left is applied")

    assert empty.counts() == {"a": 20}
    assert lost(worker, "retention") == 10


@pytest.mark.kafka
async def test_a_new_group_goes_on_where_the_store_stands(kafka: LocalKafka) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    await send(settings, of("a", 30))
    await take(settings, store, 30)
    group = settings.broker.model_copy(update={"group": f"{settings.broker.group}.new"})
    renamed = settings.model_copy(update={"broker": group})
    await send(settings, of("a", 5, first=30))

    worker = await take(renamed, store, 35)

    assert store.counts() == {"a": 35}
    assert worker.events("replayed") == 0


@pytest.mark.parametrize("when", [{}, {"timestamp": NOW}], ids=["just now", "long ago, read late"])
async def test_what_a_store_lost_in_an_outage_is_fed_again_before_anything_newer(
    kafka: LocalKafka, when: dict[str, int]
) -> None:
    """A server with one copy was killed, and had not flushed what it acknowledged last."""
    settings, store, interruptions = one_partition(kafka), WatchedStore(), Interruptions()
    await send(settings, of("a", 20), **when)
    async with running(settings, store, KeptLetters(), interruptions=interruptions):
        await until(lambda: store.counts() == {"a": 20}, "all is applied")
        flushed = copy(store)
        await send(settings, of("a", 10, first=20), **when)
        await until(lambda: store.counts() == {"a": 30}, "the next are applied")
        for name in ("_heads", "_segments", "_positions"):
            setattr(store, name, getattr(flushed, name))
        interruptions(wall_clock_ms())
        await send(settings, of("a", 5, first=30), **when)
        await until(lambda: store.counts() == {"a": 35}, "all is there again")
    (sequence,) = store.sequences(["a"])
    assert sequence is not None
    expected = [item_key(f"item-{number}") for number in range(35)]
    assert sequence.behaviors["item"].tolist() == expected
    assert not interruptions.pending


@pytest.mark.parametrize("when", [{}, {"timestamp": NOW}], ids=["just now", "long ago, read late"])
async def test_an_outage_without_new_events_is_made_good_too(
    kafka: LocalKafka, when: dict[str, int]
) -> None:
    settings, store, interruptions = one_partition(kafka), WatchedStore(), Interruptions()
    empty = copy(store)
    await send(settings, of("a", 20), **when)
    async with running(settings, store, KeptLetters(), interruptions=interruptions) as worker:
        await until(lambda: store.counts() == {"a": 20}, "all is applied")
        for name in ("_heads", "_segments", "_positions"):
            setattr(store, name, getattr(empty, name))
        interruptions(wall_clock_ms())
        await worker.app.batch_agent.check()
        await until(lambda: store.counts() == {"a": 20}, "all is there again")


class Stuck(WatchedStore):
    """A store that does not answer how far it was fed, until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.let = threading.Event(), threading.Event()

    def positions(self, sources: Sequence[int]) -> list[int | None]:
        self.asked.set()
        assert self.let.wait(PATIENCE_S)
        return super().positions(sources)


@pytest.mark.kafka
async def test_lag_is_told_while_a_stuck_store_does_not_say_where_to_go_on(
    kafka: LocalKafka,
) -> None:
    settings, store = one_partition(kafka), Stuck()
    await send(settings, of("a", 10))
    await take(settings, WatchedStore(), 10)
    await send(settings, of("a", 5, first=10))
    async with running(settings, store, KeptLetters()) as worker:
        lag = worker.metrics.consumer_lag.labels(settings.broker.topic, "0")._value.get
        try:
            await until(store.asked.is_set, "the store is asked")
            await worker.app.batch_agent.check()
            assert lag() == 5
        finally:
            store.let.set()
        await until(lambda: committed(settings) == {0: 15}, "all are committed")
        await worker.app.batch_agent.check()
        assert lag() == 0


class GivingUp:
    """A writer whose partitions go to others before it has written anything; reads succeed."""

    async def until_done(self, call: Callable[[], T], wanted: Wanted) -> T:
        result = call()
        if result is None:  # it wrote
            raise GivenUp
        return result

    async def reach(self, source: Source, last: int, wanted: Wanted) -> None:
        raise GivenUp


class Losing:
    """A partition whose log has those bounds, and whose store was fed all below offset 20."""

    def __init__(self, bounds: LogBounds) -> None:
        self.tp = TP("behaviors", 0)
        self.metrics = WorkerMetrics(CollectorRegistry())
        store, topic = MemoryStore(), TopicIdentity("behaviors", lambda: "AAAAAAAAAAAAAAAAAAAAAQ")
        self._topic = topic
        topic.adopt("AAAAAAAAAAAAAAAAAAAAAQ")
        store.append([Group(topic.source(0), [], 19)], NOW)
        topics = Topics([topic])
        self._positions = Positions(topics, store, cast("Any", GivingUp()), self.metrics, 60.0)
        self._bounds = bounds
        self._consumer: Any = SimpleNamespace(read_by_id=lambda *_: None, logs=self._logs)

    async def find(self) -> None:
        """Look where to go on, and give up before the store has what follows."""
        with pytest.raises(GivenUp):
            await self._positions.find(self._consumer, self._topic, [self.tp], lambda: True)

    async def _logs(self, _: object) -> dict[TP, Log]:
        return {self.tp: Log(self._bounds, 20, None)}


async def test_what_retention_took_is_told_before_the_store_is_moved_past_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    losing = Losing(LogBounds(25, 30, 30))

    await losing.find()

    assert losing.metrics.lost_events.labels("retention")._value.get() == 5
    assert "events are gone from Kafka" in caplog.text


async def test_a_lost_tail_is_told_before_the_store_is_moved_past_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    losing = Losing(LogBounds(0, 15, 15))

    await losing.find()

    assert losing.metrics.log_cuts._value.get() == 1
    assert "the log lost its tail" in caplog.text


async def test_what_was_told_is_not_told_again_while_its_partition_is_placed() -> None:
    losing = Losing(LogBounds(25, 30, 30))

    for _ in range(3):
        await losing.find()

    assert losing.metrics.lost_events.labels("retention")._value.get() == 5


async def lost_with_the_topic(*rebalances: set[int], heard: str = "new") -> float:
    """Events told as deleted of partition 0, which held 10 more than were applied, by a worker that
    was given those partitions, one after the other, until it heard of the topic by that id.
    """
    metrics, store = WorkerMetrics(CollectorRegistry()), MemoryStore()
    topic = TopicIdentity("behaviors", lambda: heard)
    topic.adopt("old")
    store.append([Group(topic.source(0), [], 19)], NOW)
    positions = Positions(Topics([topic]), store, cast("Any", GivingUp()), metrics, 60.0)
    positions.forget({TP("behaviors", 0)})
    positions._at[TP("behaviors", 0)] = _Position(20, 20, Life(), topic.source(0), 30)
    for rebalance in rebalances:
        positions.forget({TP("behaviors", number) for number in rebalance})

    async def logs(_: object) -> dict[TP, Log]:
        return {}

    consumer: Any = SimpleNamespace(read_by_id=lambda *_: None, logs=logs)
    ours = [TP("behaviors", n) for n in rebalances[-1]]
    await positions.find(consumer, topic, ours, lambda: True)
    return float(metrics.lost_events.labels("deletion")._value.get())


async def test_what_a_deleted_topic_held_is_told_by_who_had_it_whatever_it_is_given_then() -> None:
    assert await lost_with_the_topic({0}) == 10
    assert await lost_with_the_topic(set(), {1}) == 10
    assert await lost_with_the_topic({1}) == 10


async def test_a_topic_that_is_the_same_after_a_rebalance_has_lost_nothing() -> None:
    assert await lost_with_the_topic({1}, heard="old") == 0


class TwoTopics:
    """Positions in partition 0 of each of two topics, which the store was fed up to offset 20, and
    whose logs held ten more.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = WorkerMetrics(self.registry)
        self.ids = {"clicks": "AAAAAAAAAAAAAAAAAAAAAQ", "orders": "AAAAAAAAAAAAAAAAAAAAAg"}
        self.topics = Topics(
            TopicIdentity(name, partial(self.ids.__getitem__, name)) for name in self.ids
        )
        self.tps = {name: TP(name, 0) for name in self.ids}
        store = MemoryStore()
        self.positions = Positions(
            self.topics, store, cast("Any", GivingUp()), self.metrics, 60.0, lambda: NOW
        )
        self.positions.forget(self.tps.values())
        for name, tp in self.tps.items():
            topic = self.topics[name]
            topic.adopt(self.ids[name])
            store.append([Group(topic.source(0), [], 19)], NOW)
            self.positions._at[tp] = _Position(20, 20, Life(), topic.source(0), 30)

    async def find(self, name: str) -> None:
        async def logs(_: object) -> dict[TP, Log]:
            return {}

        consumer: Any = SimpleNamespace(read_by_id=lambda *_: None, logs=logs)
        await self.positions.find(consumer, self.topics[name], [self.tps[name]], lambda: True)

    def value(self, metric: str, topic: str) -> float | None:
        labels = {"topic": topic, "partition": "0"}
        return self.registry.get_sample_value(f"lifelong_worker_{metric}", labels)


async def test_a_topic_made_anew_takes_nothing_of_another_away() -> None:
    two = TwoTopics()
    two.ids["orders"] = "AAAAAAAAAAAAAAAAAAAAAw"

    await two.find("orders")

    assert two.positions.next == {two.tps["clicks"]: 20}
    assert two.metrics.lost_events.labels("deletion")._value.get() == 10


async def test_who_finds_a_topic_does_not_leave_partitions_of_another_to_others() -> None:
    two = TwoTopics()
    two.positions.forget([two.tps["orders"]])

    await two.find("orders")

    assert set(two.positions._before) == {two.tps["clicks"], two.tps["orders"]}
    two.positions.leave_to_others(two.topics["clicks"])
    assert set(two.positions._before) == {two.tps["orders"]}


def test_partitions_of_two_topics_with_one_number_are_told_apart() -> None:
    two = TwoTopics()
    bounds = {"clicks": LogBounds(0, 25, 30), "orders": LogBounds(0, 21, 21)}
    two.positions.measure(
        {two.tps[name]: Standing(of, 1, 1, 20, -1, None) for name, of in bounds.items()}
    )
    two.positions._at[two.tps["clicks"]].held_since -= 61

    assert (two.value("consumer_lag", "clicks"), two.value("consumer_lag", "orders")) == (10, 1)
    assert list(two.positions.obstacles()) == ["partition 0 of clicks"]
    two.positions.forget([two.tps["orders"]])
    assert (two.value("consumer_lag", "clicks"), two.value("consumer_lag", "orders")) == (None, 1)


class Still:
    """A partition of which five events are applied, as it is measured."""

    def __init__(self) -> None:
        self.tp = TP("behaviors", 0)
        self.registry = CollectorRegistry()
        metrics = self.metrics = WorkerMetrics(self.registry)
        topics = Topics([TopicIdentity("behaviors", lambda: "id")])
        self._positions = Positions(topics, MemoryStore(), cast("BatchWriter", None), metrics, 60.0)
        self.at = _Position(5, 5, Life(), Source(1, 1), 5)
        self._positions._at[self.tp] = self.at

    def forget_it(self) -> None:
        """As if it was just assigned to a worker that knows nothing of it."""
        self._positions._at.clear()

    def measure(
        self, *, stable: int, end: int, fetched: int = 5, committed: int | None = None
    ) -> dict[str, str]:
        standing = Standing(LogBounds(0, stable, end), 1, 1, fetched, -1, committed)
        self._positions.measure({self.tp: standing})
        self.at.still_since -= STILL_S + 1
        return self._positions.obstacles()


def lag(still: Still) -> float | None:
    registry = still.registry
    return registry.get_sample_value(
        "lifelong_worker_consumer_lag", {"topic": "behaviors", "partition": "0"}
    )


def test_a_partition_of_which_nothing_is_found_out_yet_lags_behind_the_commit() -> None:
    still = Still()
    still.forget_it()
    still.measure(stable=20, end=20, committed=15)
    assert lag(still) == 5


def test_a_partition_of_which_nothing_is_known_at_all_lags_by_its_whole_log() -> None:
    still = Still()
    still.forget_it()
    still.measure(stable=20, end=20)
    assert lag(still) == 20


def test_a_partition_that_is_not_found_anew_after_a_rebalance_lags_behind_where_it_stood() -> None:
    still = Still()
    still.measure(stable=5, end=5)
    still._positions.forget({still.tp})
    still.measure(stable=10, end=10)
    assert lag(still) == 5


def test_a_partition_of_others_has_no_lag_here() -> None:
    still = Still()
    still.measure(stable=9, end=9)
    still._positions.forget({TP("behaviors", 1)})
    assert lag(still) is None


def behind(still: Still) -> float | None:
    labels = {"topic": "behaviors", "partition": "0"}
    return still.registry.get_sample_value("lifelong_worker_behind_seconds", labels)


def test_how_many_partitions_a_worker_has_is_told() -> None:
    still = Still()
    still._positions.forget({TP("behaviors", 1), TP("behaviors", 2)})
    assert still.registry.get_sample_value("lifelong_worker_partitions") == 2


def test_the_end_of_a_log_is_told() -> None:
    still = Still()
    still.measure(stable=9, end=9)
    name = "lifelong_worker_log_end_offset"
    assert still.registry.get_sample_value(name, {"topic": "behaviors", "partition": "0"}) == 9


def test_an_event_waits_since_the_log_was_last_seen_to_end_before_it() -> None:
    at = _Position(5, 5, Life(), Source(1, 1), 5)

    assert at.behind_s(5, 100, 0) == 0
    assert at.behind_s(5, 103, 0) == 0
    assert at.behind_s(7, 106, 0) == 3
    assert at.behind_s(9, 109, 0) == 6
    at.next = 7
    assert at.behind_s(9, 112, 0) == 6
    at.next = 9
    assert at.behind_s(9, 115, 0) == 0


def test_how_old_a_backlog_is_the_event_before_it_tells() -> None:
    at = _Position(5, 5, Life(), Source(1, 1), 5)
    at.stamp_ms = 1_000_000

    assert at.behind_s(900, 100, 1_060_000) == 60


def test_a_partition_that_is_not_found_yet_does_not_tell_how_far_it_is_behind_in_time() -> None:
    still = Still()
    still.measure(stable=9, end=9)
    assert behind(still) is not None
    still._positions.forget({still.tp})
    still.measure(stable=9, end=9)
    assert behind(still) is None


def truncated(still: Still) -> int:
    return int(still.metrics.lost_events.labels("truncation")._value.get())


def test_a_tail_that_was_known_and_is_gone_unread_is_counted_once() -> None:
    still = Still()
    for end in (9, 7, 7, 8):
        still.measure(stable=end, end=end)

    assert truncated(still) == 2


def test_a_tail_that_was_fetched_before_it_was_lost_is_not_given_up() -> None:
    still = Still()
    still.measure(stable=9, end=9)
    still.measure(stable=7, end=7, fetched=9)

    assert truncated(still) == 0


@pytest.mark.kafka
async def test_a_tail_that_was_known_and_is_gone_is_counted_where_the_partition_is_placed_anew(
    kafka: LocalKafka,
) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    await send(settings, of("a", 10))
    async with running(settings, store, KeptLetters()) as worker:
        agent = worker.app.batch_agent
        await until(lambda: committed(settings) == {0: 10}, "all are committed")
        tp = TP(settings.broker.topic, 0)
        agent._positions._at[tp].end = 30  # as if it had been told of 20 more
        agent._misplaced({tp})
        await until(lambda: lost(worker, "truncation") == 20, "they are told of")
        await send(settings, of("b", 10))
        await until(lambda: store.counts() == {"a": 10, "b": 10}, "what follows is applied")

    assert lost(worker, "truncation") == 20


def test_a_transaction_is_told_no_longer_of_a_partition_that_has_no_place() -> None:
    still, name = Still(), "lifelong_worker_held_events"
    still.measure(stable=5, end=9)
    assert still.registry.get_sample_value(name, {"topic": "behaviors", "partition": "0"}) == 4
    still._positions.forget({still.tp})
    still.measure(stable=5, end=9)
    assert still.registry.get_sample_value(name, {"topic": "behaviors", "partition": "0"}) is None


def test_a_partition_that_does_not_get_on_though_there_is_more_is_an_obstacle() -> None:
    found = Still().measure(stable=9, end=9)
    assert "from offset 5 on" in found["partition 0"]


def test_a_partition_without_more_is_no_obstacle() -> None:
    assert Still().measure(stable=5, end=5) == {}


def test_a_partition_that_a_transaction_holds_back_does_not_have_to_get_on() -> None:
    assert Still().measure(stable=5, end=9) == {}


def test_a_partition_that_gets_on_is_no_obstacle() -> None:
    still = Still()
    still.measure(stable=9, end=9)
    still.at.next = 7
    standing = Standing(LogBounds(0, 9, 9), 1, 1, 7, -1)
    still._positions.measure({still.tp: standing})
    assert still._positions.obstacles() == {}
