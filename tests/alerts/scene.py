"""The scene: a Kafka, a worker, two scorers and a flow of events and rankings, under a Prometheus.

One scorer has the bundle of ENCODE, as the worker, the other one that of TWIN, over the same store.
Prometheus has our rules with time sixty times as fast, and remembers a quiet yesterday.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

from confluent_kafka import Producer

from infra.deploy.asking import Series, Span, ask, firing
from infra.deploy.causes import SCORER_JOB, WORKER_JOB
from infra.deploy.local import LocalPrometheus
from infra.deploy.rules import rules
from infra.deploy.scaling import scaled_rule
from infra.errors import LifelongError
from infra.kafka.admin import create_topic
from infra.kafka.clients import producer_config
from infra.kafka.local import LocalKafka
from infra.settings import BrokerSettings
from lifelong.demo.processes import ServiceProcess, free_port
from lifelong.shipped import BUNDLES
from models.bundle import Bundle
from scorer.client import Outcome, RankClient, ScorerError

FASTER: Final = 60
"""How many times as fast the rules' time runs: an hour is a minute, a minute a second."""

PACES: Final = {"LifelongCrashLoop": 20, "LifelongRenewalStands": 3600}
"""Alerts whose time runs as many times as fast: a process takes as long to start as it takes, and
nobody waits twelve minutes."""

DAY_S: Final = 86_400 // FASTER

READY_S: Final = 90.0
FIRING_S: Final = 120.0
"""Longest wait for an alert, of which the slowest in question takes half of that."""

QUIET_S: Final = 90.0
"""Longest wait until an alert is over, of which some look a minute back."""

PARTITIONS: Final = 3
"""Of the topic, so that what is done to one of them leaves the others alone."""

USERS: Final = 50
BUSY_USERS: Final = 4
"""Of these are half of the events: a segment of each is full every few seconds."""

EVENTS_PER_S: Final = 150
RANKINGS_PER_S: Final = 30
CANDIDATES: Final = 20

ROOM: Final = 16 << 20
"""Bytes that the store may take: few, so that it can be filled."""

MORE_ROOM: Final = 1 << 30

_DELETE: Final = """\
import sys
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
bootstrap, topic, *partitions = sys.argv[1:]
admin = AdminClient({"bootstrap.servers": bootstrap})
ends = [TopicPartition(topic, int(partition), -1) for partition in partitions]
for done in admin.delete_records(ends).values():
    done.result(30)
"""
"""A program, for the reason that `tests.chaos.faults` has one."""


class NotTold(LifelongError):
    """An alert did not come, or did not go."""


class Scene:
    """All parts, ended when it is left. Services are started one by one, or by `run`.

    Args:
        directory: takes broker, store, Prometheus and logs.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kafka = LocalKafka(directory / "kafka", kind="apache")
        self.store = directory / "store"
        self.bundle = directory / "bundle"
        """A link to the bundle that the worker and the first scorer have."""
        self.room = ROOM
        self.worker: dict[str, object] = {}
        """Further settings of the worker that is started next."""
        self.strangers = 0.0
        """Share of the rankings that are to be of users of whom nothing is stored."""
        self.unknown = 0
        """Candidates of each ranking that no bundle knows."""
        self.haste = 1
        """How many times as many rankings are asked for."""
        self.items = Bundle.load(BUNDLES["encode"]).item_ids[1:]
        self.scorer_port, self.twin_port, self._worker_port, port = (free_port() for _ in range(4))
        places = {
            WORKER_JOB: [f"127.0.0.1:{self._worker_port}"],
            SCORER_JOB: [f"127.0.0.1:{self.scorer_port}", f"127.0.0.1:{self.twin_port}"],
        }
        self.prometheus = LocalPrometheus(
            directory / "prometheus", _faster_rules(), places, port=port
        )
        self._services: dict[str, ServiceProcess] = {}
        self._lock = threading.Lock()
        """Over those that must run: who looks at them, and who ends one."""
        self._log_number = itertools.count()
        self._ended = threading.Event()
        self._flows = False
        self._stack = ExitStack()
        self.began = time.time()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._stack.close()

    def _start(self) -> None:
        self._remember_yesterday()
        self._stack.enter_context(self.prometheus)
        self.began = time.time()
        self._stack.enter_context(self.kafka)
        self.broker = BrokerSettings(
            bootstrap=self.kafka.bootstrap,
            topic="alerts",
            dead_letter_topic="alerts.dead",
            group="alerts",
        )
        create_topic(self.broker, self.broker.topic, PARTITIONS)
        create_topic(self.broker, self.broker.dead_letter_topic, 1)
        self.switch_bundle(BUNDLES["encode"])
        self._stack.callback(self._stop_services)

    def start_scorers(self) -> None:
        """They need the store, which a worker makes."""
        self.start_scorer()
        self.start_twin()
        self.wait_ready("scorer")
        self.wait_ready("twin")

    def start_worker(self) -> None:
        chosen = {
            "worker.metrics_port": self._worker_port,
            "worker.check_s": 0.5,
            "worker.held_max_s": 2,
            "worker.retry_max_s": 0.5,
            "worker.session_timeout_s": 4,
            **self.worker,
        }
        self._start_service("worker", "worker", chosen, self.bundle, "/health/ready")

    def start_scorer(self) -> None:
        """The first scorer."""
        self._start_scorer("scorer", {"scorer.port": self.scorer_port}, self.bundle)

    def start_twin(
        self, bundle: Path = BUNDLES["twin"], chosen: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        """The second scorer, with another bundle or further settings where they are given."""
        self._start_scorer("twin", {"scorer.port": self.twin_port, **chosen}, bundle)

    def pid(self, name: str) -> int:
        return self._services[name].pid

    def kill(self, name: str) -> None:
        with self._lock:
            service = self._services.pop(name)
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(service.pid, signal.SIGKILL)
        service.stop()

    def restart(self, name: str) -> None:
        """Kill it, start it with what is set now, and wait until it is ready."""
        self.kill(name)
        {"worker": self.start_worker, "scorer": self.start_scorer, "twin": self.start_twin}[name]()
        self.wait_ready(name)

    def delete_records(self, *partitions: int) -> None:
        """Have Kafka remove all that it holds of some partitions, as retention would."""
        command = [sys.executable, "-c", _DELETE, self.broker.bootstrap, self.broker.topic]
        subprocess.run([*command, *map(str, partitions)], check=True, timeout=60)

    def wait_ready(self, name: str) -> None:
        self._services[name].wait_ready(READY_S)

    def switch_bundle(self, target: Path) -> None:
        link = self.directory / "bundle.new"
        link.symlink_to(target)
        link.replace(self.bundle)

    def run(self) -> None:
        """Start whatever does not run yet."""
        if not self._services:
            self.start_worker()
            self.wait_ready("worker")
            self.start_scorers()
        if not self._flows:
            self.start_flow()

    def start_flow(self) -> None:
        """Events and rankings, until the scene is left."""
        self._flows = True
        for name, flow in (("events", self._send_events), ("rankings", self._ask_rankings)):
            thread = threading.Thread(target=flow, name=name)
            thread.start()
            self._stack.callback(thread.join)

    def event(self, user: str, number: int) -> bytes:
        """An event of a user."""
        fields = {
            "user_id": user,
            "item_id": self.items[number * 31 % 1000],
            "action": "purchase",
            "event_time": int(time.time() * 1000),
        }
        return json.dumps(fields).encode()

    @contextmanager
    def producer(self, **changes: object) -> Iterator[Producer]:
        """A producer of its own."""
        more = {key.replace("_", "."): value for key, value in changes.items()}
        producer = Producer(producer_config(self.broker) | {"log_level": 0} | more)
        yield producer
        producer.flush(10)

    @contextmanager
    def meanwhile(self, deed: Callable[[], object], every_s: float) -> Iterator[None]:
        """Do something again and again as long as this lasts."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(every_s):
                deed()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def ask_for(self, user: str, candidates: int = CANDIDATES) -> None:
        """A ranking; that it is refused is no news."""
        with suppress(ScorerError), RankClient(f"http://127.0.0.1:{self.scorer_port}") as client:
            client.rank(user, self.items[:candidates])

    def tell(self, positives: int, outcomes: int, ctr: float) -> None:
        """Outcomes of a bundle that nobody names, some of them positive."""
        with RankClient(f"http://127.0.0.1:{self.scorer_port}") as client:
            client.tell([Outcome(ctr, number < positives) for number in range(outcomes)])

    def wait_firing(self, *wanted: str) -> None:
        """Wait until each of these alerts has fired from now on.

        Raises:
            NotTold: one of them has not.
        """
        self._wait(set(wanted), lambda now: now, FIRING_S, "nothing")

    def wait_quiet(self, *unwanted: str) -> None:
        """Wait until each of these alerts has been over at some moment from now on.

        Raises:
            NotTold: one of them goes on.
        """
        self._wait(set(unwanted), lambda now: set(unwanted) - now, QUIET_S, "still")

    def wait_until(self, *exprs: str) -> None:
        """Wait until Prometheus has told something for each of these expressions.

        Raises:
            NotTold: it does not.
        """
        deadline = time.monotonic() + FIRING_S
        left = list(exprs)
        while left := [expr for expr in left if not any(one.told for one in self.ask(expr))]:
            if time.monotonic() > deadline:
                raise NotTold(f"nothing after {FIRING_S:.0f} s for {'; '.join(left)}")
            time.sleep(0.25)

    def fired(self) -> set[str]:
        """The alerts that have fired so far."""
        series = self.ask('ALERTS{alertstate="firing"}')
        return {_name(one.labels) for one in series}

    def ask(self, expr: str) -> list[Series]:
        """What Prometheus tells of all the time until now."""
        return ask(self.prometheus.url, expr, Span(self.began, time.time(), 1))

    def _wait(
        self, left: set[str], found: Callable[[set[str]], set[str]], most_s: float, what: str
    ) -> None:
        deadline = time.monotonic() + most_s
        while left := left - found(now := {_name(one) for one in firing(self.prometheus.url)}):
            with self._lock:
                for service in self._services.values():
                    service.check()
            if time.monotonic() > deadline:
                raise NotTold(
                    f"{what} of {', '.join(sorted(left))} after {most_s:.0f} s; there fire:"
                    f" {', '.join(sorted(now))}"
                )
            time.sleep(0.25)

    def _start_scorer(self, name: str, chosen: Mapping[str, object], bundle: Path) -> None:
        of_all = {"scorer.sampled": 1, "scorer.lame_duck_s": 0, "scorer.max_waiting": 2}
        self._start_service(name, "scorer", {**of_all, **chosen}, bundle, "/v2/health/ready")

    def _start_service(
        self, name: str, command: str, chosen: Mapping[str, object], bundle: Path, ready: str
    ) -> None:
        port = chosen["worker.metrics_port" if command == "worker" else "scorer.port"]
        of_all = {
            "broker.bootstrap": self.broker.bootstrap,
            "broker.topic": self.broker.topic,
            "broker.dead_letter_topic": self.broker.dead_letter_topic,
            "broker.group": self.broker.group,
            "store.url": f"lmdb://{self.store}?max_size={self.room}",
            "bundle.path": bundle,
            "bundle.poll_s": 0.5,
        }
        words = [f"--set={key}={value}" for key, value in {**of_all, **chosen}.items()]
        service = ServiceProcess(
            name,
            [command, *words],
            self.directory / f"{name}-{next(self._log_number)}.log",
            f"http://127.0.0.1:{port}{ready}",
        )
        with self._lock:
            self._services[name] = service

    def _stop_services(self) -> None:
        for name in list(self._services):
            self.kill(name)  # nobody waits for what they would still write

    def _send_events(self) -> None:
        with self.producer() as producer:
            for number in itertools.count():
                if self._ended.wait(1 / EVENTS_PER_S):
                    return
                among = USERS if number % 2 else BUSY_USERS
                user = f"u{number // 2 % among}"
                with suppress(BufferError):  # the broker is away
                    producer.produce(self.broker.topic, self.event(user, number), user)
                producer.poll(0)

    def _ask_rankings(self) -> None:
        urls = [f"http://127.0.0.1:{port}" for port in (self.scorer_port, self.twin_port)]
        chance = random.Random(0)
        with RankClient(urls[0]) as first, RankClient(urls[1]) as twin:
            strangers = 0
            for number in itertools.count():
                if self._ended.wait(1 / RANKINGS_PER_S / self.haste):
                    return
                stranger = strangers < self.strangers * number
                strangers += stranger
                user = f"stranger{number}" if stranger else f"u{number % USERS}"
                start = number * 7 % (len(self.items) - CANDIDATES)
                items = [f"new{place}" for place in range(self.unknown)]
                items += self.items[start : start + CANDIDATES - self.unknown]
                client = twin if number % 8 == 0 else first
                with suppress(ScorerError):
                    ranking = client.rank(user, items)
                    # As many are positive as the CTRs say.
                    outcomes = [
                        Outcome(line.ctr, chance.random() < line.ctr) for line in ranking.items
                    ]
                    client.tell(outcomes, ranking.version)

    def _remember_yesterday(self) -> None:
        """Give Prometheus what it would have recorded a day ago."""
        shares = ("lifelong:strangers:ratio_rate1h", "lifelong:unknown_items:ratio_rate1h")
        now = int(time.time())
        times = range(now - DAY_S - 10, now - DAY_S + 900)
        lines = [f"{share} 0.05 {at}" for share in shares for at in times]
        file = self.directory / "yesterday.om"
        file.write_text("\n".join([*lines, "# EOF", ""]))
        command = ["promtool", "tsdb", "create-blocks-from", "openmetrics"]
        subprocess.run(
            [*command, str(file), str(self.prometheus.data)], check=True, capture_output=True
        )


def _faster_rules() -> dict[str, Any]:
    """Our rules, with time as it runs here."""
    groups = rules()["groups"]
    return {"groups": [{**group, "rules": list(map(_faster, group["rules"]))} for group in groups]}


def _faster(rule: Mapping[str, Any]) -> dict[str, Any]:
    return scaled_rule(rule, PACES.get(rule.get("alert", ""), FASTER))


def broken_bundle(directory: Path) -> Path:
    """A bundle of which a file is not what it was when it was written."""
    bundle = directory / "broken-bundle"
    shutil.copytree(BUNDLES["sdim"], bundle)
    graph = bundle / "scorer.onnx"
    graph.write_bytes(bytes(reversed(graph.read_bytes())))
    return bundle


def _name(labels: Any) -> str:
    """An alert's name, and where it has a window that."""
    window = labels.get("window")
    return str(labels["alertname"]) + (f" {window}" if window else "")
