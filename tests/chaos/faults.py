"""The faults: each a function that injects one into a scene, and returns when it has ended.

What a fault destroys of Kafka's log goes into the ledger, to the event.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions

from infra.errors import BrokerError
from infra.kafka.admin import create_topic, topic_id, topic_partitions
from infra.kafka.clients import client_config
from infra.processes import die_with_parent
from tests.chaos.log_tail import cut_tail
from tests.chaos.scene import (
    PARTITIONS,
    SESSION_S,
    CommandFailed,
    NotInTime,
    Scene,
)

CODECS: Final = ("lz4", "zstd", "snappy", "gzip")

CANNOT_WRITE: Final = "cannot write, will retry"
"""What a worker says."""

FILL_S: Final = 8.0
"""Longest that a store is filled with what comes: its file may have many pages that are free."""

FILL: Final = 0.2
"""Most that is sent meanwhile, as a share of a run's events."""

_OPEN: Final = (
    "import sys, time, lmdb\nstore = lmdb.open(sys.argv[1], max_dbs=16, map_size=1 << 38)\n"
)

_TAKE_SLOTS: Final = """\
held = []
full = False
while True:
    try:
        held.append(store.begin())
    except lmdb.ReadersFullError:
        if not full:
            print(len(held), flush=True)
        full = True
        time.sleep(0.001)
"""
"""A program that takes every free reader slot of the store, and each that becomes free."""

_SNAPSHOT: Final = """\
with store.begin():
    print(1, flush=True)
    sys.stdin.read()
"""
"""A program that reads a snapshot of the store."""

_LOCK: Final = """\
with store.begin(write=True):
    print(1, flush=True)
    sys.stdin.read()
"""
"""A program that holds the store's write lock."""

_DELETE: Final = """\
import sys
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
bootstrap, topic, *places = sys.argv[1:]
ends = [TopicPartition(topic, *map(int, place.split(":"))) for place in places]
admin = AdminClient({"bootstrap.servers": bootstrap})
for done in admin.delete_records(ends).values():
    done.result(30)
"""
"""A program that removes records. It is one since processes that called the client's
`delete_records` themselves died at a later collection of garbage (confluent-kafka 2.12.2)."""


class Fault(NamedTuple):
    """A class of faults."""

    inject: Callable[[Scene, random.Random], str]
    """Returns what was done, in a few words."""
    alone: bool = False
    """Whether the producer waits meanwhile: the fault sends what it needs itself."""
    told: bool = False
    """Whether it keeps workers from getting on, so that they must say that they are not ready, and
    be it again when it is over."""


def kill_worker(scene: Scene, chance: random.Random) -> str:
    """SIGKILL; another is started in its place."""
    place = chance.choice(scene.crew.places)
    scene.crew.kill(place)
    scene.crew.start(place)
    return f"worker {place}"


def pause_worker(scene: Scene, chance: random.Random) -> str:
    """SIGSTOP for longer than the session, then SIGCONT."""
    place = chance.choice(scene.crew.places)
    seconds = SESSION_S * chance.uniform(1.3, 2)
    scene.crew.pause(place, seconds)
    return f"worker {place} for {seconds:.1f} s"


def restart_workers(scene: Scene, _: random.Random) -> str:
    """One after the other ends, and another takes its place and is waited for."""
    for place in scene.crew.places:
        scene.crew.stop(place)
        scene.crew.start(place)
        scene.crew.wait_ready(place)
    return f"{len(scene.crew.places)} workers"


def add_partitions(scene: Scene, chance: random.Random) -> str:
    with _admin(scene) as admin:
        topic = scene.settings.broker.topic
        before = len(admin.list_topics(topic, timeout=10).topics[topic].partitions)
        count = before + chance.randint(1, 2)
        admin.create_partitions([NewPartitions(topic, count)])[topic].result(30)
    return f"from {before} to {count}"


def kill_broker(scene: Scene, chance: random.Random) -> str:
    """SIGKILL; started again a little later."""
    _kill_broker(scene)
    seconds = chance.uniform(0.2, 3)
    time.sleep(seconds)
    told = scene.hold_until_told("broker")
    scene.kafka.start()
    return f"down for {seconds:.1f} s and until {told}, and its start"


def silence_broker(scene: Scene, _: random.Random) -> str:
    """All that workers and broker say to each other is thrown away, for longer than the session;
    the connections that were open then stay so, and never give anything again.
    """
    scene.proxy.fall_silent()
    began = time.monotonic()
    told = scene.hold_until_told("broker")
    time.sleep(max(0.0, began + 1.5 * SESSION_S - time.monotonic()))
    scene.proxy.speak()
    return f"for {time.monotonic() - began:.1f} s, {told}"


def renew_topic(scene: Scene, chance: random.Random) -> str:
    """Delete the topic with events that nobody has stored but all know of, and make it anew."""
    broker = scene.settings.broker
    before = topic_id(broker, broker.topic)
    with _unstored_burst(scene, chance) as burst:
        with _admin(scene) as admin:
            admin.delete_topics([broker.topic])[broker.topic].result(30)
        scene.ledger.renew_topic()
    time.sleep(chance.uniform(0, 2))
    told = scene.hold_until_told("broker")

    def made() -> bool:
        try:
            create_topic(broker, broker.topic, PARTITIONS)
            return topic_id(broker, broker.topic) != before
        except BrokerError:
            return False

    scene.wait_until(made, "the topic is made anew", 30)
    return f"{len(burst):,} events just sent, {told}"


def lose_tail(scene: Scene, chance: random.Random) -> str:
    """Kill the broker and cut the newest batches off one partition, which the store has."""
    burst = scene.producer.send(_burst(scene, chance))
    scene.wait_until(scene.drained, "the tail is stored", 60)
    return _cut_tail(scene, burst, chance)


def lose_unread_tail(scene: Scene, chance: random.Random) -> str:
    """The same, but nobody has stored what is cut, though all know of it."""
    with _unstored_burst(scene, chance) as burst:
        return _cut_tail(scene, burst, chance)


def abort_transactions(scene: Scene, chance: random.Random) -> str:
    aborted = committed = 0
    for commit in (False, True, False):
        count = _burst(scene, chance) // 4
        scene.producer.send_in_transaction(count, commit=commit)
        committed += count * commit
        aborted += count * (not commit)
    return f"{aborted:,} events aborted, {committed:,} committed"


def leave_transaction_open(scene: Scene, chance: random.Random) -> str:
    """A transaction stays open while events come after it, until a worker says so."""
    told = ""

    def meanwhile() -> None:
        nonlocal told
        scene.producer.send(_burst(scene, chance) // 4)
        told = scene.hold_until_told("partition")

    count = _burst(scene, chance) // 4
    scene.producer.send_in_transaction(count, commit=True, meanwhile=meanwhile)
    return f"{count:,} events, {told}"


def compress(scene: Scene, chance: random.Random) -> str:
    codecs = chance.sample(CODECS, len(CODECS))
    for codec in codecs:
        scene.producer.send(_burst(scene, chance) // 4, codec=codec)
    return ", ".join(codecs)


KNOWN_S: Final = 60.0
"""Longest that workers may take to hear how far the logs go."""

READ_S: Final = 60.0
"""Longest that workers may take for the events of one burst."""


def overtake(scene: Scene, chance: random.Random) -> str:
    """While no worker runs, retention removes events that none has read."""
    # Who comes to a topic for the first time has missed nothing of what was there before.
    scene.producer.send(_burst(scene, chance))
    scene.wait_until(scene.drained, "some of each partition is read", READ_S)
    scene.crew.stop()
    burst = scene.producer.send(_burst(scene, chance))
    topic = scene.settings.broker.topic
    ledger = scene.ledger
    partitions = sorted({int(p) for p in ledger.partitions[burst.start : burst.stop]})
    ends = {}
    for partition in chance.sample(partitions, min(2, len(partitions))):
        offsets = ledger.offsets_of(partition, burst)
        ends[partition] = chance.randint(int(offsets.min()) + 1, int(offsets.max()))
        ledger.destroy("retention", partition, 0, ends[partition])
    places = [f"{partition}:{end}" for partition, end in ends.items()]
    command = [sys.executable, "-c", _DELETE, scene.kafka.bootstrap, topic, *places]
    subprocess.run(command, check=True, timeout=60)
    scene.crew.start()
    return ", ".join(f"partition {one} up to offset {end}" for one, end in ends.items())


def fill_store(scene: Scene, chance: random.Random) -> str:
    """Let the store's file grow no more, as on a full disk, until workers say so; where it need not
    grow for long, have its second half refuse what is written, too.
    """
    size = (scene.store_path / "data.mdb").stat().st_size
    said = _times_said(scene, CANNOT_WRITE)
    began, first = time.monotonic(), scene.ledger.sent
    # While the snapshot is in use, no page that is freed after it can be used again.
    with scene.crew.limited(size) as limit, _program(scene, _SNAPSHOT):
        while _times_said(scene, CANNOT_WRITE) == said:
            scene.producer.send(_burst(scene, chance) // 4)
            time.sleep(0.2)
            seconds, sent = time.monotonic() - began, scene.ledger.sent - first
            if seconds > FILL_S or sent > scene.size.events * FILL:
                size //= 2
                if not size:
                    raise NotInTime("the store takes what it has no room for")
                limit(size)
                first, began = scene.ledger.sent, time.monotonic()
        told = scene.hold_until_told("store", "writing")
        time.sleep(chance.uniform(0, 3))
    return f"at {size / 1e6:.1f} MB, {told}"


def use_up_readers(scene: Scene, chance: random.Random) -> str:
    """A program takes every reader slot of the store, and is killed with them."""
    with _program(scene, _TAKE_SLOTS) as taken:
        time.sleep(chance.uniform(0.5, 3))
        # Who writes needs none, once it is known where to go on.
        told = scene.hold_until_told("reclustering", "writing")
    return f"{taken} slots, {told}"


def lock_store(scene: Scene, chance: random.Random) -> str:
    """A program holds the store's write lock for longer than the session and until a worker says
    so, and is killed with it.
    """
    with _program(scene, _LOCK):
        seconds = SESSION_S * chance.uniform(1, 1.5)
        time.sleep(seconds)
        told = scene.hold_until_told("store", "writing")
    return f"for {seconds:.1f} s, {told}"


def restore_store(scene: Scene, chance: random.Random) -> str:
    """Put a copy in the store's place that is older than the offsets that the group has."""
    copy = scene.directory / f"copy-{scene.restored}"
    scene.command("store", "backup", str(copy))
    burst = scene.producer.send(_burst(scene, chance))
    scene.wait_until(scene.drained, "all is stored", 60)
    scene.crew.stop()
    scene.restore(copy)
    scene.crew.start()
    return f"{len(burst):,} events older"


FAULTS: Final[dict[str, Fault]] = {
    "worker-killed": Fault(kill_worker),
    "worker-paused": Fault(pause_worker),
    "rolling-restart": Fault(restart_workers),
    "partitions-added": Fault(add_partitions),
    "broker-killed": Fault(kill_broker, told=True),
    "broker-silent": Fault(silence_broker, told=True),
    "topic-made-anew": Fault(renew_topic, alone=True, told=True),
    "log-tail-lost": Fault(lose_tail, alone=True, told=True),
    "unread-tail-lost": Fault(lose_unread_tail, alone=True, told=True),
    "transactions-aborted": Fault(abort_transactions, alone=True),
    "transaction-left-open": Fault(leave_transaction_open, alone=True, told=True),
    "compressed": Fault(compress, alone=True),
    "retention-overtaking": Fault(overtake, alone=True),
    "store-full": Fault(fill_store, alone=True, told=True),
    "reader-slots-used-up": Fault(use_up_readers, told=True),
    "store-locked": Fault(lock_store, told=True),
    "store-restored": Fault(restore_store, alone=True),
}
"""Each by its name."""


def _cut_tail(scene: Scene, burst: range, chance: random.Random) -> str:
    """Kill the broker, cut what one partition has of the burst, and start it."""
    _kill_broker(scene)
    told = scene.hold_until_told("broker")
    ledger, topic = scene.ledger, scene.settings.broker.topic
    partition = int(chance.choice(sorted(set(ledger.partitions[burst.start : burst.stop]))))
    offsets = ledger.offsets_of(partition, burst)
    first, end = int(offsets.min()), int(offsets.max()) + 1
    data = scene.kafka.directory / "data"
    cut = cut_tail(data, topic, partition, first, chance.uniform(0.2, 1))
    gone = ledger.destroy("truncation", partition, cut, end)
    scene.kafka.start()
    return f"{gone:,} events of partition {partition}, {told}"


def _kill_broker(scene: Scene) -> None:
    pid = scene.kafka.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while scene.kafka.running:
        if time.monotonic() > deadline:
            raise NotInTime("the killed broker does not end")
        time.sleep(0.02)


def _times_said(scene: Scene, what: str) -> int:
    """How often workers have said something."""
    return sum(what in line for line in scene.crew.said())


@contextlib.contextmanager
def _program(scene: Scene, text: str) -> Iterator[int]:
    """Run a program on the store, which says a number once it has what it wants; then kill it."""
    with subprocess.Popen(
        [sys.executable, "-c", _OPEN + text, str(scene.store_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - makes one system call
    ) as program:
        try:
            assert program.stdout is not None
            said = program.stdout.readline()
            if not said:
                raise CommandFailed("the program that was to use the store has ended")
            yield int(said)
        finally:
            program.kill()


@contextlib.contextmanager
def _unstored_burst(scene: Scene, chance: random.Random) -> Iterator[range]:
    """Send a burst of which all workers know and of which nothing is stored while this lasts.

    The store is locked meanwhile. A worker that is given a partition then (the group may settle
    anew at any moment) cannot place it before the store answers, and says nothing of it: the lock
    is let go and taken again, for another burst.
    """
    for last in (False, False, True):
        _let_all_know(scene, KNOWN_S)
        with _program(scene, _LOCK):
            burst = scene.producer.send(_burst(scene, chance))
            try:
                _let_all_know(scene, KNOWN_S if last else KNOWN_S / 3)
            except NotInTime:
                if last:
                    raise
                continue
            yield burst
            return


def _let_all_know(scene: Scene, timeout_s: float) -> None:
    """Wait until every worker has heard how far the logs go by now."""
    now, topic = time.time(), scene.settings.broker.topic
    partitions = topic_partitions(scene.settings.broker, topic)
    scene.wait_until(
        lambda: scene.crew.know_logs_since(now, partitions), "all workers know the logs", timeout_s
    )


def _burst(scene: Scene, chance: random.Random) -> int:
    """How many events a fault sends by itself."""
    return int(scene.size.events * chance.uniform(0.01, 0.02))


@contextlib.contextmanager
def _admin(scene: Scene) -> Iterator[Any]:
    try:
        yield AdminClient(client_config(scene.settings.broker))
    except KafkaException as error:
        raise BrokerError(f"Kafka refused: {error}") from error
