"""What the tests of the hot path share: topics, events, a running app, and patience with an end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Self

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewPartitions
from faust.types import TP
from prometheus_client import CollectorRegistry

from infra.behaviors import Source
from infra.errors import LifelongError
from infra.kafka.admin import create_topic, topic_id
from infra.kafka.clients import client_config, producer_config
from infra.kafka.local import LocalKafka
from infra.metrics import WorkerMetrics
from infra.settings import Settings
from infra.store import Append, Appended, Group, StoreOptions
from infra.stores.memory import MemoryStore
from streaming.app import LifelongApp, create_app
from streaming.dead_letters import DeadLetter, DeadLetters, KafkaDeadLetters
from streaming.interruptions import Interruptions
from streaming.traces import open_traces
from streaming.worker import run_worker

PATIENCE_S = 40.0
NOT_YET = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)
NOW = 1_700_000_000_000


def new_settings(bootstrap: str, **changes: Any) -> Settings:
    """Settings of a group, a topic and a dead-letter topic that no other test has."""
    name = f"hot.{uuid.uuid4().hex[:10]}"
    broker = {
        "bootstrap": bootstrap,
        "topic": name,
        "dead_letter_topic": f"{name}.dead",
        "group": name,
        "partitions": 4,
    }
    worker = {"session_timeout_s": 6.0, "retry_max_s": 0.2, "metrics_port": 0}
    given: dict[str, Any] = {"broker": broker, "worker": worker, "store": {"url": "memory://"}}
    for section, values in changes.items():
        given[section] = given.get(section, {}) | values
    return Settings.model_validate(given)


def create_topics(settings: Settings, max_message_bytes: int = 1_048_588) -> None:
    broker = settings.broker
    create_topic(broker, broker.topic, broker.partitions, max_message_bytes=max_message_bytes)
    create_topic(broker, broker.dead_letter_topic, 1)


def one_partition(kafka: LocalKafka, held_max_s: float = 120.0) -> Settings:
    """Settings of a topic of one partition, which is there."""
    settings = new_settings(
        kafka.bootstrap, broker={"partitions": 1}, worker={"held_max_s": held_max_s}
    )
    create_topics(settings)
    return settings


def event(user: str, number: int = 0, **changes: Any) -> bytes:
    """A sound event; the same number gives the same event."""
    content = {
        "event_id": f"{user}-{number}",
        "user_id": user,
        "item_id": f"item-{number % 50}",
        "action": "click",
        "event_time": NOW + number,
    }
    return json.dumps(content | changes).encode()


def add_partitions(settings: Settings, count: int) -> None:
    """Have the topic so many partitions."""
    admin, topic = AdminClient(client_config(settings.broker)), settings.broker.topic
    admin.create_partitions([NewPartitions(topic, count)])[topic].result(PATIENCE_S)


def produce(
    settings: Settings,
    events: Iterable[tuple[str, bytes | None]],
    config: Mapping[str, str] | None = None,
    **where: Any,
) -> int:
    """Send (key, value) pairs and return how many the broker took."""
    ours = producer_config(settings.broker) | {"message.max.bytes": 15_000_000}
    producer = Producer(ours | dict(config or {}))
    count = 0
    for count, (key, value) in enumerate(events, start=1):  # noqa: B007 - the last one is the answer
        producer.produce(settings.broker.topic, value, key.encode(), **where)
        producer.poll(0)
    assert producer.flush(PATIENCE_S) == 0
    return count


def committed(settings: Settings) -> dict[int, int]:
    """Committed offset of each partition that has one."""
    consumer = Consumer(
        {"bootstrap.servers": settings.broker.bootstrap, "group.id": settings.broker.group}
    )
    partitions = [
        TopicPartition(settings.broker.topic, n) for n in range(settings.broker.partitions)
    ]
    deadline = time.monotonic() + PATIENCE_S
    try:
        while True:
            try:
                found = consumer.committed(partitions, timeout=10)
            except KafkaException as error:  # a broker that has just started again
                if error.args[0].code() not in NOT_YET or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return {p.partition: p.offset for p in found if p.offset >= 0}
    finally:
        consumer.close()


def dead_letters_of(settings: Settings, count: int) -> list[Message]:
    """The first ``count`` messages of the dead-letter topic."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.broker.bootstrap,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": 15_000_000,
        }
    )
    consumer.subscribe([settings.broker.dead_letter_topic])
    found: list[Message] = []
    deadline = time.monotonic() + PATIENCE_S
    try:
        while len(found) < count and time.monotonic() < deadline:
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                found.append(message)
        return found
    finally:
        consumer.close()


def headers_of(message: Message) -> dict[str, str]:
    return {name: bytes(value or b"").decode() for name, value in message.headers() or []}


async def until(done: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait for a condition, but not for ever.

    Between two looks it pauses for as long as the last one took: who waits for others on a busy
    machine leaves it to them.
    """
    began = looked = time.monotonic()
    while not done():
        now = time.monotonic()
        assert now < began + timeout_s, f"waited {timeout_s} s until {what}"
        await asyncio.sleep(max(0.02, now - looked))
        looked = time.monotonic()


class WatchedStore(MemoryStore):
    """A memory store that remembers what was appended, and fails when told to."""

    def __init__(self) -> None:
        super().__init__(StoreOptions(length=100_000))
        self.appends: list[tuple[Source, int, int]] = []
        """Source, first and last offset of each append that succeeded."""
        self.failure: Callable[[Source, Sequence[Append]], Exception | None] = lambda _s, _a: None
        self.failures = 0

    def append(
        self, groups: Sequence[Group], now_ms: int, *, digest: bytes | None = None
    ) -> Appended:
        for group in groups:
            failure = self.failure(group.source, group.appends)
            if failure is not None:
                self.failures += 1
                raise failure
        appended = super().append(groups, now_ms, digest=digest)
        for group in groups:
            offsets = [offset for append in group.appends for offset in append.offsets]
            if offsets:
                self.appends.append((group.source, min(offsets), max(offsets)))
        return appended

    def counts(self) -> dict[str, int]:
        """Behaviors ever applied, by user."""
        users = self.users(b"", 1_000_000).users
        found = self.sequences(users)
        return {u: s.version.count for u, s in zip(users, found, strict=True) if s is not None}


@dataclass
class KeptLetters:
    """Dead letters kept in memory; they fail as long as ``failure`` is set."""

    letters: list[DeadLetter] = field(default_factory=list)
    failure: Exception | None = None
    failures: int = 0

    def send(self, letters: Sequence[DeadLetter]) -> None:
        if self.failure is not None:
            self.failures += 1
            raise self.failure
        self.letters += letters

    def close(self) -> None:
        pass


@dataclass
class Running:
    """An app at work."""

    app: LifelongApp
    metrics: WorkerMetrics
    partitions: set[int] = field(default_factory=set)
    """Their numbers."""
    places: set[TP] = field(default_factory=set)
    assignments: int = 0
    """How often it was given partitions."""
    rebalances: int = 0

    def assigned(self, places: set[TP]) -> None:
        self.places, self.partitions = places, {tp.partition for tp in places}
        self.assignments += 1
        self.rebalances += 1

    def events(self, outcome: str) -> int:
        return int(self.metrics.events.labels(outcome)._value.get())


@asynccontextmanager
async def running(
    settings: Settings,
    store: MemoryStore,
    dead_letters: DeadLetters | None = None,
    digest: bytes | None = None,
    interruptions: Interruptions | None = None,
) -> AsyncIterator[Running]:
    """An app that consumes, until the block ends."""
    metrics = WorkerMetrics(CollectorRegistry())
    brokers = [one.broker for one in settings.readers()]
    letters = dead_letters or KafkaDeadLetters(
        settings.broker, {one.topic: one.dead_letter_topic for one in brokers}
    )
    traces = open_traces(settings, metrics)
    app = create_app(
        settings,
        store,
        letters,
        metrics,
        topic_id=partial(topic_id, settings.broker),
        digest=digest,
        interruptions=interruptions,
        traces=traces,
        on_assigned=lambda places: worker.assigned(places),  # noqa: PLW0108 - made below
    )
    worker = Running(app, metrics)
    try:
        await app.start()
        yield worker
    finally:
        await app.stop()
        app.batch_agent.close()
        await asyncio.to_thread(app.writer.close)
        await asyncio.to_thread(letters.close)
        if traces is not None:
            await asyncio.to_thread(traces.close)


def run_and_log(settings: Settings, log: Path) -> None:
    """Be a worker that says into a file what it has to say."""
    with log.open("ab") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    try:
        run_worker(settings)
    except LifelongError as error:
        sys.exit(f"{type(error).__name__}: {error}")


class WorkerProcess:
    """`streaming.worker.run_worker` in a process of its own, which ``context`` starts."""

    def __init__(self, settings: Settings, log: Path, context: ForkServerContext) -> None:
        self._log = log
        log.touch()
        self._process = context.Process(target=run_and_log, args=(settings, log))
        self._process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit status."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)
        return self.wait()

    def wait(self) -> int:
        self._process.join(PATIENCE_S)
        assert self._process.exitcode is not None, "it has not ended"
        return self._process.exitcode

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an answer of its endpoint; status 0 where nobody answers."""
        urls = re.findall(r"http://127\.0\.0\.1:\d+", self.said)
        if not urls:
            return 0, ""
        try:
            with urllib.request.urlopen(urls[-1] + path, timeout=5) as answer:  # noqa: S310 - http, see above
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> bool:
        assert self.running, self.said
        return self.get("/health/ready")[0] == 200
