"""The faults: each lasts as long as its context does, and names the alerts that are to tell it."""

from __future__ import annotations

import itertools
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import lmdb

from infra.processes import die_with_parent
from lifelong.demo.processes import answers, free_port
from lifelong.shipped import BUNDLES
from tests.alerts.scene import (
    BUSY_USERS,
    CANDIDATES,
    MORE_ROOM,
    PARTITIONS,
    READY_S,
    USERS,
    Scene,
    broken_bundle,
)
from tests.certificates import Authority
from tests.chaos.log_tail import cut_tail

HELD, POISONED, DAMAGED = range(PARTITIONS)
"""Partitions, by what is done to them."""

LONG_MS = 600_000
"""After which brokers abort a transaction: longer than any fault lasts."""


class Fault(NamedTuple):
    """A fault."""

    inject: Callable[[Scene], AbstractContextManager[None]]
    alerts: tuple[str, ...]
    """Those of objectives with their longer window."""
    after: tuple[str, ...] = ()
    """Those that tell it once it is over, from what it held back."""


@contextmanager
def nothing_runs(scene: Scene) -> Iterator[None]:
    """As it is at the beginning."""
    yield
    scene.start_worker()
    scene.wait_ready("worker")


@contextmanager
def no_users(scene: Scene) -> Iterator[None]:
    """As it is before events come."""
    yield
    scene.start_flow()


@contextmanager
def no_broker(scene: Scene) -> Iterator[None]:
    """It loses the end of a log while it is away, of what was read and is no behavior."""
    with scene.producer() as producer:
        for _ in range(3):
            producer.produce(scene.broker.topic, b"{", partition=POISONED)
            producer.flush(10)
    scene.wait_until("lifelong_worker_rejects_total > 2")
    # It has told how far its logs go: a worker that starts without one is not ready.
    scene.wait_until("lifelong_worker_logs_asked_timestamp_seconds > 0")
    scene.kafka.stop()
    yield
    cut_tail(scene.kafka.directory / "data", scene.broker.topic, POISONED, first=1, share=1)
    scene.kafka.start(READY_S)


@contextmanager
def worker_killed(scene: Scene) -> Iterator[None]:
    scene.kill("worker")
    yield
    scene.start_worker()
    scene.wait_ready("worker")


@contextmanager
def scorer_crashes(scene: Scene) -> Iterator[None]:
    """The second scorer ends soon after each start, and is started again at once."""

    def crash() -> None:
        if answers(f"http://127.0.0.1:{scene.twin_port}/metrics"):
            time.sleep(1.5)  # it is scraped each second
            scene.kill("twin")
            scene.start_twin()

    with scene.meanwhile(crash, 0.2):
        yield
    scene.restart("twin")  # whoever is started by a thread ends with it


@contextmanager
def poison(scene: Scene) -> Iterator[None]:
    with (
        scene.producer() as producer,
        scene.meanwhile(
            lambda: producer.produce(scene.broker.topic, b"{", partition=POISONED), 0.05
        ),
    ):
        yield


@contextmanager
def open_transaction(scene: Scene) -> Iterator[None]:
    """What it holds back counts late once it is aborted."""
    with transaction(scene, HELD):
        yield


@contextmanager
def damaged_batch(scene: Scene) -> Iterator[None]:
    """A byte of a batch is another on the broker's disk than it was; nobody has read it before,
    since a transaction held it back. The log then begins behind it.
    """
    with transaction(scene, DAMAGED), scene.producer() as producer:
        producer.produce(scene.broker.topic, scene.event("u0", 0), "u0", partition=DAMAGED)
        producer.flush(10)
        directory = scene.kafka.directory / "data" / f"{scene.broker.topic}-{DAMAGED}"
        with max(directory.glob("*.log")).open("r+b") as log:
            log.seek(-1, os.SEEK_END)
            (byte,) = log.read(1)
            log.seek(-1, os.SEEK_END)
            log.write(bytes([byte ^ 0xFF]))
    yield
    scene.delete_records(DAMAGED)


@contextmanager
def transaction(scene: Scene, partition: int) -> Iterator[None]:
    """A producer's transaction is open in a partition, and is aborted in the end."""
    who = f"alerts-{partition}"
    with scene.producer(transactional_id=who, transaction_timeout_ms=LONG_MS) as producer:
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(scene.broker.topic, scene.event("u0", 0), "u0", partition=partition)
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
    """More ask at a time than may wait, of a scorer that is held to a fifth of a processor."""
    pid = scene.pid("scorer")

    def throttle() -> None:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.08)
        os.kill(pid, signal.SIGCONT)

    with ThreadPoolExecutor(8) as pool:

        def burst() -> None:
            users = [f"u{number}" for number in range(8)]
            list(pool.map(lambda user: scene.ask_for(user, 300), users))

        with scene.meanwhile(burst, 0.2), scene.meanwhile(throttle, 0.02):
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
def reclusterer_asleep(scene: Scene) -> Iterator[None]:
    """The worker looks for due users so seldom that they wait for longer than they may."""
    with worker_with(scene, {"worker.recluster_poll_s": 8}):
        yield


@contextmanager
def segments_damaged(scene: Scene) -> Iterator[None]:
    """The disk gives other bytes of segments than were written."""
    damaged = 0
    with lmdb.open(str(scene.store), max_dbs=16, map_size=scene.room) as store:
        segments = store.open_db(b"segments")
        while not damaged:
            with store.begin(write=True) as txn, txn.cursor(segments) as cursor:
                for key, value in list(itertools.islice(cursor, BUSY_USERS)):
                    damaged += txn.put(key, value[:-1] + bytes([value[-1] ^ 0xFF]), db=segments)
            time.sleep(0.1)
    yield


@contextmanager
def store_away(scene: Scene) -> Iterator[None]:
    """Its directory is not where it was."""
    aside = scene.store.with_name("aside")
    scene.store.rename(aside)
    yield
    aside.rename(scene.store)


@contextmanager
def strange_requests(scene: Scene) -> Iterator[None]:
    """More rankings are of users whom nobody knows, and of items that no bundle knows; then those
    of others drown them.
    """
    scene.strangers, scene.unknown = 0.13, CANDIDATES // 2
    yield
    scene.strangers, scene.unknown, scene.haste = 0.0, 0, 5
    scene.wait_quiet(*STRANGE_REQUESTS.alerts)
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
    scene.start_twin(scene.bundle)
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
        scene.delete_records(*range(PARTITIONS))
    yield


@contextmanager
def wrong_store(scene: Scene) -> Iterator[None]:
    """The second scorer is told of a store that is not there."""
    scene.kill("twin")
    scene.start_twin(chosen={"store.url": f"lmdb://{scene.store / 'away'}"})
    yield
    scene.restart("twin")


@contextmanager
def nobody_reclusters(scene: Scene) -> Iterator[None]:
    """The worker has no thread for it, and more events come than a segment holds."""
    with worker_with(scene, {"worker.recluster_threads": 0}), scene.producer() as producer:
        for number in range(170 * USERS):
            user = f"u{number % USERS}"
            producer.produce(scene.broker.topic, scene.event(user, number), user)
        producer.flush(10)
        yield


@contextmanager
def worker_stuck(scene: Scene) -> Iterator[None]:
    """The store is locked, as with `store_locked`, by which the worker can take no more events and
    sits still.
    """
    few = {"worker.group_bytes": 4096, "worker.stall_s": 5}
    with worker_with(scene, few), store_locked(scene):
        yield


@contextmanager
def renewal_stands(scene: Scene) -> Iterator[None]:
    """Another bundle, for which hardly anybody is made due."""
    good = scene.bundle.readlink()
    with worker_with(scene, {"worker.renew_per_s": 0.001}):
        scene.switch_bundle(BUNDLES["sdim"])
        yield
    scene.wait_quiet(*RENEWAL_STANDS.alerts)
    scene.switch_bundle(good)


@contextmanager
def worker_with(scene: Scene, settings: Mapping[str, object]) -> Iterator[None]:
    """The worker is started again with these settings, and in the end as it was."""
    before = scene.worker
    scene.worker = {**before, **settings}
    scene.restart("worker")
    yield
    scene.worker = before
    scene.restart("worker")


@contextmanager
def certificate_expires(scene: Scene) -> Iterator[None]:
    """That of the second scorer; then it is renewed."""
    authority = Authority(scene.directory)
    pair = authority.pair("twin", days=1)
    port = free_port()
    scene.kill("twin")
    scene.start_twin(
        chosen={"scorer.port": port, "scorer.tls_cert": pair.cert, "scorer.tls_key": pair.key}
    )
    trusted = ssl.create_default_context(cafile=authority.certificate)
    with relayed(scene.twin_port, f"https://127.0.0.1:{port}", trusted):
        yield
        authority.pair("twin", days=90)
        scene.wait_quiet(*CERTIFICATE_EXPIRES.alerts)
    scene.restart("twin")


@contextmanager
def relayed(port: int, url: str, trusted: ssl.SSLContext) -> Iterator[None]:
    """What is asked at the port in plain, as this Prometheus does, is asked at the URL."""

    class Relay(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Who asks waits no longer, or there is no scorer yet.
            with suppress(OSError), urllib.request.urlopen(url + self.path, context=trusted) as it:  # noqa: S310 - ours
                self.send_response(it.status)
                self.send_header("Content-Type", it.headers["Content-Type"])
                self.end_headers()
                self.wfile.write(it.read())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", port), Relay) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


NOTHING_RUNS = Fault(nothing_runs, ("LifelongNoWorker", "LifelongNoScorer"))
NO_USERS = Fault(no_users, ("LifelongStoreEmpty",))
NO_BROKER = Fault(
    no_broker, ("LifelongBrokersSilent", "LifelongWorkerNotReady"), after=("LifelongLogCut",)
)
WORKER_KILLED = Fault(worker_killed, ("LifelongNoWorker", "LifelongProcessDown"))
SCORER_CRASHES = Fault(scorer_crashes, ("LifelongCrashLoop",))
POISON = Fault(poison, ("LifelongDeadLetters",))
OPEN_TRANSACTION = Fault(open_transaction, ("LifelongPartitionHeld",))
DAMAGED_BATCH = Fault(
    damaged_batch, ("LifelongPartitionUnreadable",), after=("LifelongEventsLost",)
)
BROKEN_BUNDLE = Fault(another_bundle_broken, ("LifelongReloadFailed",))
SLOTS_TAKEN = Fault(slots_taken, ("LifelongReaderSlots",))
OVERLOAD = Fault(
    overload, ("LifelongRefusals", "LifelongRankingsFail 1h", "LifelongRankingsSlow 1h")
)
RECLUSTERER_ASLEEP = Fault(reclusterer_asleep, ("LifelongDueOldest", "LifelongInterestsLate 1h"))
SEGMENTS_DAMAGED = Fault(segments_damaged, ("LifelongStoreDamage",))
STORE_AWAY = Fault(store_away, ("LifelongDegraded", "LifelongStoreErrors"))
STORE_FILLED = Fault(
    store_filled, ("LifelongStoreFull", "LifelongStoreErrors", "LifelongStoreNearlyFull")
)
MISCALIBRATED = Fault(miscalibrated, ("LifelongMiscalibrated",))
STRANGE_REQUESTS = Fault(strange_requests, ("LifelongStrangersRise", "LifelongUnknownItemsRise"))
NOBODY_RECLUSTERS = Fault(nobody_reclusters, ("LifelongNewerBehaviors", "LifelongDueOldest"))
WORKER_STUCK = Fault(worker_stuck, ("LifelongWorkerNotLive",))
RENEWAL_STANDS = Fault(renewal_stands, ("LifelongRenewalStands",))
CERTIFICATE_EXPIRES = Fault(certificate_expires, ("LifelongCertificateExpires",))
BUNDLES_DIFFER = Fault(bundles_differ, ("LifelongBundlesDiffer",))
STORE_LOCKED = Fault(
    store_locked,
    ("LifelongWorkerStuck", "LifelongEventsBehind", "LifelongLagGrows"),
    after=("LifelongEventsLate 1h",),
)
EVENTS_OVERTAKEN = Fault(events_overtaken, ("LifelongEventsLost",))
WRONG_STORE = Fault(wrong_store, ("LifelongScorerNotReady", "LifelongRankingsFail 1h"))

BEFORE_EVENTS = (
    NO_USERS,
    POISON,
    OPEN_TRANSACTION,
    DAMAGED_BATCH,
    BROKEN_BUNDLE,
    SLOTS_TAKEN,
    OVERLOAD,
)
"""Those that need no events, and leave each other alone."""

WITH_EVENTS = ((STORE_AWAY,), (STORE_FILLED,))
"""One after the other, while requests become strange, which is told the latest."""

APART = {
    "scorer-crashes": SCORER_CRASHES,
    "reclusterer-asleep": RECLUSTERER_ASLEEP,
    "segments-damaged": SEGMENTS_DAMAGED,
    "nobody-reclusters": NOBODY_RECLUSTERS,
    "worker-stuck": WORKER_STUCK,
    "renewal-stands": RENEWAL_STANDS,
    "certificate-expires": CERTIFICATE_EXPIRES,
    "bundles-differ": BUNDLES_DIFFER,
    "store-locked": STORE_LOCKED,
    "events-overtaken": EVENTS_OVERTAKEN,
    "wrong-store": WRONG_STORE,
}
"""Each takes a time of its own."""

NOT_INJECTED = {
    "LifelongReclusterFails": "for one user alone it fails by a fault of this software: what a disk"
    " does to a record is told as damage, and to the store as errors of it",
    "LifelongSearchMisses": "a bundle whose search misses behaviors is refused by its golden"
    " requests",
}
"""Alerts that no fault here makes fire, and why; promtool's tests alone see them do."""
