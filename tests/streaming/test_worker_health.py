"""What each part of a worker that does not work makes of its health, from outside of it."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaConnectionError, LeaderNotAvailableError, NodeNotReadyError
from faust.types import TP
from prometheus_client import CollectorRegistry

from infra.behaviors import Source, partition_owner
from infra.errors import BrokerError, StoreUnavailable
from infra.metrics import WorkerMetrics
from infra.settings import Settings
from infra.store import DueUser, wall_clock_ms
from infra.stores.memory import MemoryStore
from streaming.agent import BatchAgent
from streaming.fetching import Failure
from streaming.health import Health, serve_health
from streaming.interruptions import Interruptions
from streaming.lives import Life
from streaming.positions import STILL_S, Positions, _Position
from streaming.schedule import TROUBLE_MS
from streaming.topic import TopicIdentity, Topics
from streaming.transport import BatchConsumer, Standing
from streaming.worker import CALM_S, DEAF_MS, Worker, check_store, measure_room
from streaming.writer import WriterProgress
from tests.streaming.running import KeptLetters, until
from tests.streaming.test_health import answer
from tests.streaming.test_schedule import CountingSystem

SETTINGS = Settings.model_validate({"worker": {"metrics_port": 0, "check_s": 0.05}})
TOPIC = SETTINGS.broker.topic
TP0 = TP(TOPIC, 0)


class FaultyStore(MemoryStore):
    """A store whose due users, or pings, fail as told."""

    def __init__(self) -> None:
        super().__init__()
        self.due_fault: Exception | None = None
        self.ping_fault: Exception | None = None
        self.before_ping: Callable[[], object] = lambda: None

    def due(self, owner: int, digest: bytes, limit: int) -> list[DueUser]:
        if self.due_fault is not None:
            raise self.due_fault
        return super().due(owner, digest, limit)

    def ping(self) -> None:
        self.before_ping()
        if self.ping_fault is not None:
            raise self.ping_fault


class FakeConsumer(BatchConsumer):
    """A consumer that fetches nothing, of partitions that fail as told."""

    def __init__(self) -> None:
        self.polled_at = time.monotonic()
        self.failed: dict[TP, Failure] = {}
        self.fault: Exception | None = None
        """What a question to the brokers ends with."""

    @property
    def failures(self) -> dict[TP, Failure]:
        return self.failed

    def assignment(self) -> set[TP]:
        return {TP0}

    async def standings(self, unplaced: Collection[TP] = ()) -> Mapping[TP, Standing]:
        if self.fault is not None:
            raise self.fault
        return {}


class FakeApp:
    """A Faust app without Kafka, that has joined its group with one partition; the agent in it and
    what is known of positions are real.
    """

    def __init__(
        self,
        metrics: WorkerMetrics,
        on_assigned: Callable[[set[TP]], None],
        topic_id: Callable[[], str],
    ) -> None:
        self.crash_reason: Exception | None = None
        self.should_stop = False
        self.consumer_generation_id = 1
        self.consumer = FakeConsumer()
        self.writer = SimpleNamespace(
            progress=WriterProgress(),
            interruptions=Interruptions(),
            close=lambda: None,
            make_due_for=self._make_due_for,
        )
        self.due_for: list[bytes | None] = []
        self.topic = topic = TopicIdentity(TOPIC, topic_id)
        topics = Topics([topic])
        self.positions = Positions(topics, MemoryStore(), cast("Any", None), metrics, 60.0)
        self.position = _Position(5, 5, Life(), Source(1, 1), 5)
        self.batch_agent = BatchAgent(
            cast("Any", self), cast("Any", self.writer), topics, self.positions, metrics, 1 << 20
        )
        self._on_assigned = on_assigned

    async def start(self) -> None:
        self.positions._at[TP0] = self.position
        self.writer.progress.assigned = True
        self._on_assigned({TP0})

    async def stop(self) -> None:
        self.should_stop = True

    async def _make_due_for(self, digest: bytes | None) -> None:
        self.due_for.append(digest)


class House:
    """A worker with everything around it in reach, and its endpoints."""

    def __init__(self) -> None:
        self.now = wall_clock_ms()
        self.store = FaultyStore()
        self.apps: list[FakeApp] = []
        self.digests: list[bytes | None] = []
        """Of the bundle that users were due for when each of them was made."""
        self.topic_fault: Exception | None = None
        self.topic_id_fault: Exception | None = None
        self.registry = CollectorRegistry()
        self.metrics = WorkerMetrics(self.registry)
        self.health = Health(SETTINGS.worker.stall_s)
        self.port = 0
        self.worker = Worker(
            SETTINGS,
            self.store,
            CountingSystem(),
            KeptLetters(),
            self.metrics,
            self.health,
            prepare=self._prepare,
            create=self._create,
            clock=lambda: self.now,
        )

    @property
    def app(self) -> FakeApp:
        """The consumer at work."""
        return self.apps[-1]

    def because(self) -> dict[str, str]:
        """Why the endpoint says that the worker is not ready; nothing where it says that it is."""
        status, _, body = answer(self.port, "/health/ready")
        assert status in (200, 503)
        return cast("dict[str, str]", json.loads(body).get("because", {}))

    def warnings(self) -> dict[str, str]:
        """What the endpoint says is odd about the worker."""
        body = answer(self.port, "/health/ready")[2]
        return cast("dict[str, str]", json.loads(body).get("warnings", {}))

    def ready(self) -> bool:
        return answer(self.port, "/health/ready")[0] == 200

    def shows(self, line: str) -> bool:
        return line in answer(self.port, "/metrics")[2].splitlines()

    async def says(self, part: str, why: str) -> None:
        """Wait until the endpoint names the part, with those words."""
        await until(lambda: why in self.because().get(part, ""), f"{part}: {why}")

    def fail(self, fault: Exception) -> None:
        """Have questions of the consumer to the brokers end with that."""
        self.app.topic.adopt("id")  # it asks them nothing before
        self.app.consumer.fault = fault

    def _prepare(self, _: object) -> list[TP]:
        if self.topic_fault is not None:
            raise self.topic_fault
        return [TP0]

    def _topic_id(self) -> str:
        if self.topic_id_fault is not None:
            raise self.topic_id_fault
        return "id"

    def _create(
        self,
        *_: object,
        on_assigned: Callable[[set[TP]], None],
        digest: bytes | None,
        **_named: object,
    ) -> Any:
        self.digests.append(digest)
        self.apps.append(FakeApp(self.metrics, on_assigned, self._topic_id))
        return self.app


@asynccontextmanager
async def ready_house() -> AsyncIterator[House]:
    """A worker at work that is ready."""
    house, stop = House(), asyncio.Event()
    with serve_health(SETTINGS, house.registry, house.health) as house.port:
        running = asyncio.create_task(house.worker.run(stop))
        try:
            await until(house.ready, "the worker is ready")
            yield house
        finally:
            stop.set()
            await running


async def test_a_consumer_that_crashed_keeps_the_worker_unready_until_the_next_has_run() -> None:
    async with ready_house() as house:
        house.app.crash_reason = RuntimeError("out of its mind")
        await house.says("consumer", "RuntimeError: out of its mind")
        await until(lambda: len(house.apps) == 2, "the next consumer runs")
        await asyncio.sleep(1)
        assert "consumer" in house.because()
        house.worker._crashed_at -= CALM_S
        await until(house.ready, "it is taken for sound")


@pytest.mark.parametrize(
    "fault", [TimeoutError(), KafkaConnectionError("closed"), NodeNotReadyError("1")]
)
async def test_a_consumer_that_gets_no_answers_where_another_client_does_is_given_up(
    fault: Exception,
) -> None:
    async with ready_house() as house:
        house.fail(fault)
        await house.says("broker", "does not answer the consumer")
        assert len(house.apps) == 1
        house.now += DEAF_MS
        await house.says("consumer", "the consumer gets no answers, another client does")
        await until(lambda: len(house.apps) == 2, "the next consumer runs")
        assert house.shows("lifelong_worker_consumer_failures_total 1.0")


async def test_a_consumer_is_not_given_up_for_what_no_broker_can_tell() -> None:
    async with ready_house() as house:
        house.fail(LeaderNotAvailableError("behaviors/0"))
        await house.says("broker", "behaviors/0")
        house.now += DEAF_MS
        await asyncio.sleep(0.3)
        assert len(house.apps) == 1


async def test_a_consumer_that_gets_no_answers_waits_with_all_others_for_the_brokers() -> None:
    """However long: where they are back, it has its time to hear of it."""
    async with ready_house() as house:
        house.fail(TimeoutError())
        await house.says("broker", "does not answer the consumer")
        house.topic_id_fault = BrokerError("no broker answers")
        await house.says("broker", "no broker answers")
        house.now += DEAF_MS
        house.topic_id_fault = None
        await house.says("broker", "does not answer the consumer")
        assert len(house.apps) == 1
        house.app.consumer.fault = None
        await until(lambda: "broker" not in house.because(), "it has its answers")


async def test_a_consumer_that_waits_for_the_broker_after_a_crash_is_not_ready_in_the_metrics() -> (
    None
):
    async with ready_house() as house:
        assert house.shows("lifelong_worker_ready 1.0")
        house.topic_fault = BrokerError("no broker answers")
        house.app.crash_reason = RuntimeError("out of its mind")
        await house.says("broker", "no broker answers")
        assert house.shows("lifelong_worker_ready 0.0")


async def test_reclustering_that_fails_for_long_is_told_until_it_goes_on() -> None:
    async with ready_house() as house:
        house.store.due_fault = StoreUnavailable("the index of due users is gone")
        await asyncio.sleep(0.3)
        assert house.ready()
        house.now += TROUBLE_MS
        await house.says("reclustering", "the index of due users is gone")
        house.store.due_fault = None
        await until(house.ready, "reclustering goes on")


async def test_what_a_ping_of_the_store_finds_is_told_until_it_is_mended() -> None:
    async with ready_house() as house:
        house.store.ping_fault = StoreUnavailable("the index due_1 is not there")
        await house.says("store", "the index due_1 is not there")
        house.store.ping_fault = None
        await until(house.ready, "the index is there again")


async def test_a_store_that_does_not_answer_a_ping_is_away_until_it_does() -> None:
    store, health, answers = FaultyStore(), Health(60), threading.Event()
    health.cleared("start")
    store.before_ping = answers.wait
    asking = asyncio.create_task(check_store(store, health, pause_s=0.01, budget_s=0.05))
    try:
        await until(lambda: not health.ready(), "the budget is spent")
        assert health.obstacles == {"store": "has not answered for 0.05 s"}
        answers.set()
        await until(health.ready, "the store answers")
    finally:
        answers.set()
        asking.cancel()


class FillingStore(MemoryStore):
    """A store that tells how full it is, or raises."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: Exception | None = None

    def room(self) -> Any:
        if self.fault is not None:
            raise self.fault
        return SimpleNamespace(share=0.75, readers=0.25, told="three quarters")


async def test_how_full_the_store_is_is_told_while_it_says_so() -> None:
    store, metrics = FillingStore(), WorkerMetrics(CollectorRegistry())
    used, readers = metrics.store_used_ratio._value, metrics.store_reader_ratio._value
    asking = asyncio.create_task(measure_room(store, metrics, pause_s=0.01))
    try:
        await until(lambda: (used.get(), readers.get()) == (0.75, 0.25), "it is told")
        store.fault = StoreUnavailable("gone")
        await until(lambda: math.isnan(used.get()), "it is not known any more")
        assert math.isnan(readers.get())
    finally:
        asking.cancel()


async def test_a_worker_that_does_not_live_is_measured_so() -> None:
    async with ready_house() as house:
        name = "lifelong_worker_live"
        assert house.registry.get_sample_value(name) == 1
        house.health.stall_s = -1
        assert house.registry.get_sample_value(name) == 0


async def test_a_partition_that_cannot_be_read_is_told_until_it_can() -> None:
    async with ready_house() as house:
        house.app.consumer.failed = {TP0: Failure(10, "CorruptRecordException", 2, 0.0, False)}
        await house.says("partition 0", "cannot be read at offset 10: CorruptRecordException")
        house.app.consumer.failed = {}
        await until(house.ready, "it can be read again")


async def test_a_partition_that_does_not_get_on_is_told_until_it_does() -> None:
    async with ready_house() as house:
        at = house.app.position
        at.still_at, at.still_since = 5, time.monotonic() - STILL_S - 1
        await house.says("partition 0", "nothing was applied from offset 5 on")
        at.still_at = -1
        await until(house.ready, "it gets on")


async def test_a_partition_of_which_it_is_not_known_where_to_go_on_is_told() -> None:
    async with ready_house() as house:
        house.app.batch_agent._unplaced[TP0] = time.monotonic() - 3600
        await house.says("partition 0", "not known yet where to go on")


async def test_a_batch_that_cannot_be_written_is_told_until_it_is() -> None:
    async with ready_house() as house:
        progress = house.app.writer.progress
        progress.failure = "StoreFull: no room"
        await house.says("writing", "StoreFull: no room")
        progress.failure = None
        await until(house.ready, "it is written")


async def test_a_batch_that_cannot_be_decoded_yet_is_told_until_it_is() -> None:
    async with ready_house() as house:
        progress = house.app.writer.progress
        progress.unread = "the Schema Registry is away"
        await house.says("decoding", "the Schema Registry is away")
        progress.unread = None
        await until(house.ready, "it is decoded")


async def test_a_worker_that_has_not_joined_its_group_is_not_ready() -> None:
    async with ready_house() as house:
        house.app.writer.progress.assigned = False
        await house.says("group", "not joined yet")


def test_the_metric_follows_a_part_that_goes_away_between_two_judgements() -> None:
    house = House()
    house.health.cleared("start")
    assert house.registry.get_sample_value("lifelong_worker_ready") == 1
    house.health.blocked("store", "no room")
    assert house.registry.get_sample_value("lifelong_worker_ready") == 0


def test_the_metric_follows_a_loop_that_stands_still() -> None:
    house = House()
    house.health.cleared("start")
    house.health.seen_at -= SETTINGS.worker.stall_s
    assert house.registry.get_sample_value("lifelong_worker_ready") == 0


async def test_the_worker_reclusters_for_its_own_partitions() -> None:
    async with ready_house() as house:
        assert house.worker._reclusterer.owners == {partition_owner(TOPIC, 0)}


async def test_a_worker_that_stops_is_not_ready() -> None:
    async with ready_house() as house:
        pass
    assert house.health.obstacles == {"worker": "stopping"}
