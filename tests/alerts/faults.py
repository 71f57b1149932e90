"""The faults: each lasts as long as its context does, and names the alerts that are to tell it."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from infra.processes import die_with_parent
from lifelong.shipped import BUNDLES
from tests.alerts.scene import MORE_ROOM, USERS, Scene, broken_bundle


class Fault(NamedTuple):
    """A fault."""

    inject: Callable[[Scene], AbstractContextManager[None]]
    alerts: tuple[str, ...]
    """Those of objectives with their longer window."""
    after: tuple[str, ...] = ()
    """Those that tell it once it is over, from what it held back."""


@contextmanager
def no_broker(scene: Scene) -> Iterator[None]:
    """Once it has told how far its logs go: a worker that starts without one is not ready."""
    scene.wait_until("lifelong_worker_logs_asked_timestamp_seconds > 0")
    scene.kafka.stop()
    yield
    scene.kafka.start()


@contextmanager
def worker_killed(scene: Scene) -> Iterator[None]:
    scene.kill("worker")
    yield
    scene.start_worker()
    scene.wait_ready("worker")


@contextmanager
def poison(scene: Scene) -> Iterator[None]:
    with (
        scene.producer() as producer,
        scene.meanwhile(lambda: producer.produce(scene.broker.topic, b"{", partition=1), 0.05),
    ):
        yield


@contextmanager
def open_transaction(scene: Scene) -> Iterator[None]:
    """What it holds back counts late once it is aborted."""
    with scene.producer(transactional_id="alerts") as producer:
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(scene.broker.topic, scene.event("u0", 0), "u0", partition=0)
        producer.flush(10)
        yield
        producer.abort_transaction(30)


@contextmanager
def another_bundle_broken(scene: Scene) -> Iterator[None]:
    good = scene.bundle.readlink()
    scene.switch_bundle(broken_bundle(scene.directory))
    yield
    scene.switch_bundle(good)


def slots_taken(scene: Scene) -> AbstractContextManager[None]:
    """A program has nearly all of the store's slots for readers."""
    return holding(
        scene,
        "held = [store.begin() for _ in range(int(0.9 * store.info()['max_readers']))]",
        # Spare ones keep their slots, but no page from being used again.
        "for snapshot in held: snapshot.abort()",
    )


@contextmanager
def holding(scene: Scene, *lines: str) -> Iterator[None]:
    """Another program has the store open, does something, and is killed in the end."""
    text = "\n".join(
        (
            "import sys, lmdb",
            "store = lmdb.open(sys.argv[1], max_dbs=16, map_size=1 << 32, max_spare_txns=10_000)",
            *lines,
            "print('done', flush=True)",
            "sys.stdin.read()",
        )
    )
    with subprocess.Popen(
        [sys.executable, "-c", text, str(scene.store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - makes one system call
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline(), "the program beside the worker has ended"
            yield
        finally:
            program.kill()


@contextmanager
def overload(scene: Scene) -> Iterator[None]:
    """More ask at a time than may wait."""
    with ThreadPoolExecutor(8) as pool:

        def burst() -> None:
            users = [f"u{number}" for number in range(8)]
            list(pool.map(lambda user: scene.ask_for(user, 300), users))

        with scene.meanwhile(burst, 0.2):
            yield


@contextmanager
def store_filled(scene: Scene) -> Iterator[None]:
    """New users come until it has no room; the worker is started again with more."""
    users = itertools.count()

    def fill() -> None:
        for user in itertools.islice(users, 1000):
            name = f"new{user}"
            producer.produce(scene.broker.topic, scene.event(name, user), name)
        producer.flush(10)

    with scene.producer() as producer, scene.meanwhile(fill, 0.05):
        scene.wait_firing("LifelongStoreFull")
    yield
    scene.room = MORE_ROOM
    with worker_killed(scene):
        scene.wait_firing(*WORKER_KILLED.alerts)


@contextmanager
def strangers(scene: Scene) -> Iterator[None]:
    """More rankings are of users whom nobody knows; then those of others drown them."""
    scene.strangers = 0.13
    yield
    scene.strangers, scene.haste = 0.0, 5
    scene.wait_quiet(*STRANGERS.alerts)
    scene.haste = 1


@contextmanager
def miscalibrated(scene: Scene) -> Iterator[None]:
    """Of many items with high CTRs none is clicked; then those of which half are drown them."""
    with scene.meanwhile(lambda: scene.tell(0, 20, ctr=0.5), 0.5):
        yield
    for _ in range(20):
        scene.tell(500, 1000, ctr=0.5)


@contextmanager
def bundles_differ(scene: Scene) -> Iterator[None]:
    """The second scorer has another one from the beginning."""
    yield
    scene.kill("twin")
    scene.start_scorer("twin", scene.twin_port, scene.bundle)
    scene.wait_ready("twin")


@contextmanager
def store_locked(scene: Scene) -> Iterator[None]:
    """A program holds its write lock, while more events come than ever."""
    with holding(scene, "held = store.begin(write=True)"), scene.producer() as producer:

        def burst() -> None:
            for number in range(500):
                user = f"u{number % USERS}"
                producer.produce(scene.broker.topic, scene.event(user, number), user)
            producer.flush(10)

        with scene.meanwhile(burst, 0.2):
            yield


@contextmanager
def events_overtaken(scene: Scene) -> Iterator[None]:
    """While no worker runs, retention removes what none has read."""
    with worker_killed(scene):
        time.sleep(2)  # events come
        scene.delete_records()
    yield


@contextmanager
def wrong_store(scene: Scene) -> Iterator[None]:
    """The second scorer is told of a store that is not there."""
    scene.kill("twin")
    scene.start_scorer("twin", scene.twin_port, BUNDLES["twin"], store=scene.store / "away")
    yield
    scene.kill("twin")
    scene.start_scorer("twin", scene.twin_port, BUNDLES["twin"])
    scene.wait_ready("twin")


NO_BROKER = Fault(no_broker, ("LifelongBrokersSilent", "LifelongWorkerNotReady"))
WORKER_KILLED = Fault(worker_killed, ("LifelongNoWorker", "LifelongProcessDown"))
POISON = Fault(poison, ("LifelongDeadLetters",))
OPEN_TRANSACTION = Fault(open_transaction, ("LifelongPartitionHeld",))
BROKEN_BUNDLE = Fault(another_bundle_broken, ("LifelongReloadFailed",))
SLOTS_TAKEN = Fault(slots_taken, ("LifelongReaderSlots",))
OVERLOAD = Fault(overload, ("LifelongRefusals", "LifelongRankingsFail 1h"))
STORE_FILLED = Fault(
    store_filled, ("LifelongStoreFull", "LifelongStoreErrors", "LifelongStoreNearlyFull")
)
STRANGERS = Fault(strangers, ("LifelongStrangersRise",))
MISCALIBRATED = Fault(miscalibrated, ("LifelongMiscalibrated",))
BUNDLES_DIFFER = Fault(bundles_differ, ("LifelongBundlesDiffer",))
STORE_LOCKED = Fault(
    store_locked,
    ("LifelongWorkerStuck", "LifelongEventsBehind", "LifelongLagGrows"),
    after=("LifelongEventsLate 1h",),
)
EVENTS_OVERTAKEN = Fault(events_overtaken, ("LifelongEventsLost",))
WRONG_STORE = Fault(wrong_store, ("LifelongScorerNotReady", "LifelongRankingsFail 1h"))
