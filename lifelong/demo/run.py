"""``lifelong demo``: the whole system on real purchases and a real Kafka, in about two minutes.

Every part is started as a user would start it. What is printed is measured from outside: counts
against the input, freshness from the store, latency at the client, quality on requests that were
fixed in advance and that the offline model and the rules answer too.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from extractor.system import System
from extractor.systems import open_system
from infra.arrays import F32, Array, Bools
from infra.behaviors import partition_owner
from infra.errors import LifelongError, SettingsError
from infra.kafka.admin import create_topic, ping
from infra.kafka.clients import producer_config
from infra.kafka.local import LocalKafka
from infra.settings import Settings, load_settings
from infra.store import Profile, StoredSequence
from infra.stores import open_store
from lifelong.broker import KINDS
from lifelong.demo.freshness import FreshnessProbe
from lifelong.demo.outcomes import counted_calibration
from lifelong.demo.plan import plan_requests
from lifelong.demo.processes import ServiceProcess, free_port
from lifelong.demo.stream import LARGE, PATIENT, Client, LiveResult, LiveStream, in_order
from lifelong.portrait import Portrait, name_interests
from lifelong.shipped import BUNDLES, MAPPING, Purchases, rows_by_user, write_purchases
from models.bundle import Bundle
from models.features import EMPTY_HISTORY
from models.measures import predictions
from models.measures.quality import Quality, ranking_quality
from models.measures.unknown import Earnings, UnknownRanks, most_popular, unknown_ranks
from models.reference.serving import (
    StoredFeatures,
    StoredUser,
    extract_plainly,
    score_stored,
)
from scorer.client import RankClient
from scorer.ids import item_keys
from streaming.files.replay import BehaviorEvent, EventProducer
from streaming.history.inputs import FileInput
from streaming.history.job import Job

REQUESTS: Final = 1500
"""Ranking requests of 100 candidates, each of another user, where the stream has so many users."""

COMPARED: Final = 200
"""Users whose CTRs are compared after the stream has drained."""

READY_S: Final = 90.0
"""Longest wait for a service, which compiles its kernels on its first start on a machine."""

DRAIN_S: Final = 120.0
"""Longest wait for the worker to apply and cluster what was sent."""


ALL: Final = "all"
"""What stands for every system that has a shipped bundle."""


class NotInTime(LifelongError):
    """A part of the demo took far longer than it should."""


@dataclass(frozen=True)
class DemoOptions:
    """What the command line chose."""

    keep: bool = False
    """Leave all running until interrupted."""
    events: int | None = None
    """Live purchases to stream; None: all."""
    rate: float = 20_000
    """Events a second; 0: as fast as it goes."""
    broker: str = "auto"
    """auto, apache, mock or HOST:PORT."""
    store: str | None = None
    """Store URL; None: LMDB in a temporary directory."""
    system: str = "encode"
    """System of the shipped bundle to take; `ALL`: each, one after another."""
    bundle: Path | None = None
    """Bundle; None: the shipped one of the system."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Further settings of the services, by their keys."""


class Steps:
    """The demo's steps on the terminal, each with its bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            # Without a terminal a bar would be redrawn as lines without end.
            disable=not console.is_terminal,
        )

    @contextlib.contextmanager
    def step(self, title: str, total: int = 1) -> Iterator[Callable[[int], None]]:
        """A step of ``total`` units; the yielded function takes how many are done."""
        begin = time.perf_counter()
        task = self._progress.add_task(title, total=total)

        def at(done: int) -> None:
            self._progress.update(task, completed=min(done, total))

        yield at
        at(total)
        self._progress.stop_task(task)
        if self._progress.disable:
            self._console.print(f"{title}: {time.perf_counter() - begin:.1f} s", highlight=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def run_demo(options: DemoOptions, *, quiet: bool) -> dict[str, Any]:
    """Run the demo and return its figures, of all systems by their names under "systems"; prints
    them unless ``quiet``.

    Everything started here has ended when this returns or raises.
    """
    console = Console(file=sys.stderr) if quiet else Console()
    if options.system == ALL:
        return {"systems": _side_by_side(options, console, quiet=quiet)}
    with _demo(options, console) as (demo, report):
        if not quiet:
            from lifelong.demo.report import show

            show(console, report, demo.portrait())
        if options.keep:
            _wait_for_interrupt(console, demo)
    return report


@contextlib.contextmanager
def _demo(options: DemoOptions, console: Console) -> Iterator[tuple[Demo, dict[str, Any]]]:
    """A demo that has run, and its figures; its parts go on until this is left."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lifelong-demo-")))
        with Steps(console) as steps:
            demo = Demo(options, directory, stack, steps)
            demo.start()
            demo.stream()
            report = demo.report()
        yield demo, report


def _side_by_side(
    options: DemoOptions, console: Console, *, quiet: bool
) -> dict[str, dict[str, Any]]:
    """The demo of each system, one after another: on a machine of few cores they would slow each
    other down. Stream and requests are the same.
    """
    for flag, given in (
        ("--keep", options.keep),
        ("--store", options.store),
        ("--bundle", options.bundle),
    ):
        if given:
            raise SettingsError(
                f"{flag} is for a demo of one system; leave it out, or --system all"
            )
    reports = {}
    for name in BUNDLES:
        console.print(f"[bold]{name}[/bold]")
        with _demo(replace(options, system=name), console) as (_, reports[name]):
            pass
    if not quiet:
        from lifelong.demo.report import show_systems

        show_systems(console, reports)
    return reports


class Demo:
    """The running parts and what was measured of them."""

    def __init__(
        self,
        options: DemoOptions,
        directory: Path,
        stack: contextlib.ExitStack,
        steps: Steps,
    ) -> None:
        self._options = options
        self._directory = directory
        self._stack = stack
        self._steps = steps
        self._purchases = Purchases.load()
        self._first = self._purchases.history_rows
        live = len(self._purchases) - self._first
        self._last = self._first + min(options.events or live, live)
        if options.system not in BUNDLES:
            raise SettingsError(
                f"--system {options.system!r}: choose {', '.join(BUNDLES)} or {ALL}"
            )
        loaded = Bundle.load(options.bundle or BUNDLES[options.system])
        self._bundle = loaded.declaring(MAPPING.declared_actions)
        self._system = open_system(self._bundle)
        self._broker_kind = options.broker
        self._services: list[ServiceProcess] = []

    def start(self) -> None:
        """Start Kafka, make the topics, write the history, start the worker and the scorer."""
        with self._steps.step("start Kafka"):
            bootstrap = self._start_kafka()
        self.settings = self._make_settings(bootstrap)
        with self._steps.step("create topics", 2) as at:
            for i, topic in enumerate(self._topics()):
                create_topic(self.settings.broker, topic, self.settings.broker.partitions)
                at(i + 1)
        self._store = open_store(self.settings.store)
        self._stack.callback(self._store.close)
        # It gets ready while the others are at work.
        self._scorer, self.scorer_url = self._start_scorer(self._bundle.path)
        with self._steps.step("backfill the history", self._first) as at:
            self._backfill(at)
        with self._steps.step("start the worker"):
            self._worker = self._start_worker()
            self._worker.wait_ready(READY_S)
        due = self._due_users()
        with self._steps.step("cluster the history's users", due) as at:
            self._wait_until_none_due(lambda left: at(due - left))
        with self._steps.step("start the scorer"):
            self._scorer.wait_ready(READY_S)

    def stream(self) -> None:
        """Replay the live purchases while asking for rankings, until all is clustered."""
        purchases = self._purchases
        self._requests = plan_requests(purchases, self._first, self._last, REQUESTS)
        large = np.random.default_rng(0).permutation(len(purchases.items))[:LARGE]
        large_items = [purchases.items[code] for code in large]
        probe = FreshnessProbe(self._store, self._bundle.digest, clusters=self._system.keeps_state)
        producer = EventProducer(producer_config(self.settings.broker), self.settings.broker.topic)
        with self._steps.step("stream and rank", self._last - self._first) as at:
            live = LiveStream(
                purchases,
                self._first,
                self._last,
                self._requests,
                send=lambda row: producer.send(self._event(row)),
                client_of=lambda answered: Client(
                    self.scorer_url, purchases, answered, large_items
                ),
                probe=probe,
                rate=self._options.rate,
                on_progress=at,
                check=self._check_services,
            )
            begin = time.perf_counter()
            self._live, _ = live.run()
            producer.close()
        with self._steps.step("wait until all is applied"):
            self._wait_until_applied()
            self._stream_seconds = time.perf_counter() - begin
        with self._steps.step("wait until all is clustered"):
            self._freshness = probe.finish(DRAIN_S)
            self._wait_until_none_due(lambda _: None)

    def _event(self, row: int) -> BehaviorEvent:
        purchases = self._purchases
        return BehaviorEvent(
            event_id=f"purchase-{row}",
            user_id=purchases.users[purchases.user[row]],
            item_id=purchases.items[purchases.item[row]],
            action="purchase",
            event_time=int(purchases.time_ms[row]),
        )

    def report(self) -> dict[str, Any]:
        """All figures, under the keys of ``--json``."""
        live, requests = self._live, self._requests
        targets = [request.target for request in requests]
        lost, doubled = self._count_lost_and_doubled()
        with self._steps.step("score the same requests offline", len(requests)) as at:
            offline = self._score_offline(at)
        rankings: dict[str, Sequence[Array]] = {
            "live": [live.ctrs[request.row] for request in requests],
            "offline": offline,
            "popularity": [request.popularity for request in requests],
            "repeat": [request.bought for request in requests],
        }
        qualities = {
            name: ranking_quality(np.stack(scores), targets) for name, scores in rankings.items()
        }
        with self._steps.step("compare CTRs on the stored states", COMPARED) as at:
            difference = self._max_ctr_difference(at)
        with self._steps.step("rank an unknown item", COMPARED) as at:
            ranks = self._unknown_ranks(at)
        ctrs = np.stack(rankings["live"])
        events = self._last - self._first
        return {
            "broker": self._broker_kind,
            "events": events,
            "sequences": self._sequences,
            "lost": lost,
            "doubled": doubled,
            "events_per_second": round(events / self._stream_seconds, 1),
            "freshness_p50_s": _percentile(self._freshness.rankings, 50),
            "freshness_p99_s": _percentile(self._freshness.rankings, 99),
            **self._clustered(),
            "requests": sum(map(len, live.seconds.values())),
            "requests_per_second": round(
                sum(map(len, live.seconds.values())) / live.ask_seconds, 1
            ),
            **_latencies(live),
            **_quality_figures(qualities),
            "calibration": self._calibration(ctrs, targets),
            "outcomes": {"told": live.told, **counted_calibration(self.scorer_url)},
            "unknown": {**self._unknown_earnings(ctrs, targets), "ranks": asdict(ranks)},
            "max_ctr_difference": difference,
            "worker_memory_bytes": self._worker.anonymous_memory(),
            "scorer_memory_bytes": self._scorer.anonymous_memory(),
        }

    def _clustered(self) -> dict[str, float | None]:
        """Seconds from a sealed segment to interests that cover it; None where none are stored."""
        clusters = self._freshness.clusters if self._system.keeps_state else None
        return {
            f"clustered_p{p}_s": None if clusters is None else _percentile(clusters, p)
            for p in (50, 99)
        }

    def portrait(self) -> Portrait:
        """One real user: their interests in words, and what they would be shown first."""
        purchases = self._purchases
        user = self._portrait_user()
        sequence = self._store.sequences([user])[0]
        profile = self._store.profiles([user], self._bundle.digest)[0]
        assert sequence is not None
        assert profile is not None
        state = self._system.extract(sequence)
        if profile.interests is not None:
            state = self._system.layout.decode(profile.interests, user)
        popular = np.argsort(-np.bincount(purchases.item[: self._last]), kind="stable")[:LARGE]
        with RankClient(self.scorer_url, retries=PATIENT) as client:
            ranking = client.rank(
                user,
                [purchases.items[code] for code in popular],
                top_k=10,
                time_ms=int(purchases.time_ms[self._last - 1]),
            )
        return Portrait(
            user=user,
            events=sequence.version.count,
            interests=name_interests(self._bundle, self._system, sequence, state, 6),
            ranked=[(purchases.titles.get(e.item, e.item), e.ctr) for e in ranking.items],
        )

    def addresses(self) -> dict[str, str]:
        """What is where, for somebody who goes on from here."""
        return {
            "kafka": self.settings.broker.bootstrap,
            "topic": self.settings.broker.topic,
            "store": self.settings.store.masked_url,
            "scorer": self.scorer_url,
            "worker": self.worker_url,
            "user": self._portrait_user(),
            "item": self._purchases.items[0],
        }

    def _start_kafka(self) -> str:
        choice = self._options.broker
        if ":" in choice:
            ping(choice)
            self._broker_kind = choice
            return choice
        if choice not in KINDS:
            raise SettingsError(f"--broker {choice!r}: choose {', '.join(KINDS)} or HOST:PORT")
        kafka = self._stack.enter_context(LocalKafka(self._directory / "kafka", kind=choice))
        self._broker_kind = kafka.kind
        return kafka.bootstrap

    def _make_settings(self, bootstrap: str) -> Settings:
        # Topics of its own: on somebody's Kafka the demo must not meet their events.
        topic = f"lifelong-demo-{uuid.uuid4().hex[:8]}"
        return load_settings(
            {
                "broker": {
                    "bootstrap": bootstrap,
                    "topic": topic,
                    "dead_letter_topic": f"{topic}.dead",
                    "group": topic,
                },
                "store": {"url": self._options.store or f"lmdb://{self._directory / 'store'}"},
                "bundle": {"path": str(self._bundle.path)},
            }
        )

    def _topics(self) -> tuple[str, str]:
        return self.settings.broker.topic, self.settings.broker.dead_letter_topic

    def _backfill(self, at: Callable[[int], None]) -> None:
        if not self._store.empty():
            raise LifelongError(
                f"--store {self.settings.store.masked_url}: the demo counts every event and needs"
                " an empty store; name another"
            )
        file = self._directory / "history.parquet"
        write_purchases(0, self._first, file)
        job = Job(
            [FileInput(file, MAPPING)],
            self._store,
            self.settings.broker.topic,
            self.settings.broker.partitions,
            self._directory / "history",
            digest=self._bundle.digest if self._system.keeps_state else None,
        )
        job.run(lambda progress: at(round(progress.fraction * self._first)))

    def _start_worker(self) -> ServiceProcess:
        port = free_port(self.settings.worker.metrics_port)
        self.worker_url = f"http://127.0.0.1:{port}"
        arguments = ["worker", "--metrics-port", str(port), *self._common_arguments()]
        return self._start_service("worker", arguments, f"{self.worker_url}/health/ready")

    def scorer_beside(self, bundle: Path) -> str:
        """Start another scorer over the same store, with another bundle; its URL."""
        scorer, url = self._start_scorer(bundle)
        scorer.wait_ready(READY_S)
        return url

    def _start_scorer(self, bundle: Path) -> tuple[ServiceProcess, str]:
        port = free_port(self.settings.scorer.port)
        url = f"http://127.0.0.1:{port}"
        arguments = ["scorer", "--port", str(port), *self._common_arguments()]
        # Nobody balances here, so nobody has to notice that it stops.
        for assignment in ("scorer.lame_duck_s=0", f"bundle.path={bundle}"):
            arguments += ["--set", assignment]
        name = f"scorer-{port}"
        return self._start_service(name, arguments, f"{url}/v2/health/ready"), url

    def _start_service(self, name: str, arguments: Sequence[str], ready_url: str) -> ServiceProcess:
        service = ServiceProcess(name, arguments, self._directory / f"{name}.log", ready_url)
        self._stack.enter_context(service)
        self._services.append(service)
        return service

    def _common_arguments(self) -> list[str]:
        broker = self.settings.broker
        chosen = {
            "broker.bootstrap": broker.bootstrap,
            "broker.topic": broker.topic,
            "broker.dead_letter_topic": broker.dead_letter_topic,
            "broker.group": broker.group,
            "store.url": self.settings.store.url,
            "bundle.path": str(self.settings.bundle.path),
            **self._options.more,
        }
        return [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]

    def _check_services(self) -> None:
        for service in self._services:
            service.check()

    def _due_users(self) -> int:
        if not self._system.keeps_state:
            return 0
        broker = self.settings.broker
        owners = (partition_owner(broker.topic, number) for number in range(broker.partitions))
        return sum(len(self._store.due(owner, self._bundle.digest, 10_000)) for owner in owners)

    def _wait_until_none_due(self, at: Callable[[int], None]) -> None:
        """Until the worker has clustered every due user."""

        def none_due() -> bool:
            left = self._due_users()
            at(left)
            return left == 0

        self._wait(none_due, "cluster all users")

    def _wait_until_applied(self) -> None:
        """Wait until the store has as many events as were sent; a shortfall is reported, not
        waited for longer than DRAIN_S.
        """
        expected = np.bincount(self._purchases.user[: self._last])
        open_users = set(np.unique(self._purchases.user[self._first : self._last]).tolist())

        def applied() -> bool:
            users = list(open_users)
            names = [self._purchases.users[user] for user in users]
            found = self._store.profiles(names, self._bundle.digest)
            for user, profile in zip(users, found, strict=True):
                if profile is not None and profile.version.count >= expected[user]:
                    open_users.discard(user)
            return not open_users

        with contextlib.suppress(NotInTime):
            self._wait(applied, "apply all events")

    def _wait(self, done: Callable[[], bool], deed: str) -> None:
        deadline = time.monotonic() + DRAIN_S
        while not done():
            self._check_services()
            if time.monotonic() > deadline:
                raise NotInTime(
                    f"the worker did not {deed} within {DRAIN_S:.0f} s; is the machine very busy?"
                )
            time.sleep(0.05)

    def _count_lost_and_doubled(self) -> tuple[int, int]:
        """Events that are missing from the sequences, and events that are there too often.

        Each user's count, and each behavior that is kept, is held against the input.
        """
        behaviors = self._purchases.behaviors()[: self._last]
        order = np.argsort(self._purchases.user[: self._last], kind="stable")
        users = self._purchases.user[order]
        starts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
        lost = doubled = self._sequences = 0
        for rows in np.split(order, starts[1:]):
            user = self._purchases.users[self._purchases.user[rows[0]]]
            stored = self._store.sequences([user])[0]
            self._sequences += stored is not None
            missing, extra = _compare(behaviors[rows], stored)
            lost += missing
            doubled += extra
        return lost, doubled

    def _score_offline(self, at: Callable[[int], None]) -> list[F32]:
        """CTRs of the same requests on exact sequences, without the service."""
        purchases = self._purchases
        behaviors = purchases.behaviors()
        session = self._bundle.scorer_session()
        rows_of = rows_by_user(purchases.user)
        scores = []
        for i, request in enumerate(self._requests):
            rows = rows_of[int(purchases.user[request.row])]
            before = behaviors[rows[rows < request.row]]
            time_ms = int(purchases.time_ms[request.row])
            user = extract_plainly(
                self._bundle,
                before["item"].copy(),
                before["time"].copy(),
                known=before,
                now_ms=time_ms,
            )
            keys = item_keys([purchases.items[code] for code in request.candidates])
            scores.append(
                score_stored(self._bundle, session, user if len(before) else None, keys, time_ms)
            )
            at(i + 1)
        return scores

    def _max_ctr_difference(self, at: Callable[[int], None]) -> float:
        """The most that the service's CTRs differ from a plain evaluation on the stored states."""
        purchases = self._purchases
        session = self._bundle.scorer_session()
        worst = 0.0
        with RankClient(self.scorer_url, retries=PATIENT) as client:
            for i, request in enumerate(self._requests[:COMPARED]):
                user = purchases.users[purchases.user[request.row]]
                items = [purchases.items[code] for code in request.candidates]
                time_ms = int(purchases.time_ms[self._last - 1])
                served = in_order(client.rank(user, items, time_ms=time_ms), items)
                (profile,) = self._store.profiles([user], self._bundle.digest)
                (sequence,) = self._store.sequences([user])
                stored = _stored_user(self._bundle, self._system, profile, sequence, time_ms)
                plain = score_stored(self._bundle, session, stored, item_keys(items), time_ms)
                worst = max(worst, float(np.abs(served - plain).max()))
                at(i + 1)
        return worst

    def _calibration(self, ctrs: F32, targets: Sequence[int]) -> dict[str, float]:
        """Predicted beside observed CTRs of the live requests: one in a hundred is bought."""
        labels = _labels(ctrs, targets)
        return {
            "expected_calibration_error": predictions.calibration_error(ctrs, labels),
            "predicted_over_observed": predictions.calibration_ratio(ctrs, labels),
            "sampling_rate": self._bundle.manifest.corrected_for,
        }

    def _unknown_earnings(self, ctrs: F32, targets: Sequence[int]) -> dict[str, Any]:
        """What candidates that the bundle does not know were said to earn, and what they earned."""
        rows = self._bundle.rows(item_keys(self._purchases.items))
        candidates = np.stack([request.candidates for request in self._requests])
        earned = Earnings.of(ctrs, _labels(ctrs, targets), rows[candidates] == 0)
        return {
            name: None if isinstance(value, float) and np.isnan(value) else value
            for name, value in asdict(earned).items()
        }

    def _unknown_ranks(self, at: Callable[[int], None]) -> UnknownRanks:
        """Where users of the requests get an item that the bundle does not know, among the most
        popular ones.
        """
        bundle = self._bundle
        items = ["", *(bundle.item_ids[row] for row in most_popular(bundle.popularity))]
        items[0] = next(name for name in map(str, count()) if not bundle.rows(item_keys([name]))[0])
        time_ms = int(self._purchases.time_ms[self._last - 1])
        ctrs = []
        with RankClient(self.scorer_url, retries=PATIENT) as client:
            for i, request in enumerate(self._requests[:COMPARED]):
                user = self._purchases.users[self._purchases.user[request.row]]
                ctrs.append(in_order(client.rank(user, items, time_ms=time_ms), items))
                at(i + 1)
        return unknown_ranks(np.stack(ctrs))

    def _portrait_user(self) -> str:
        """The user asked about who has nearest to 300 purchases: much, and still one person's."""
        counts = np.bincount(self._purchases.user[: self._last])
        asked = [int(self._purchases.user[request.row]) for request in self._requests]
        return self._purchases.users[min(asked, key=lambda user: abs(int(counts[user]) - 300))]


def _compare(expected: npt.NDArray[np.void], stored: StoredSequence | None) -> tuple[int, int]:
    """How many behaviors of one user are lost and doubled."""
    if stored is None:
        return len(expected), 0
    kept = stored.behaviors
    wanted = expected[-len(kept) :] if len(kept) else expected[:0]
    surplus = stored.version.count - len(expected)
    if surplus == 0 and len(kept) == len(wanted) and bool((kept == wanted).all()):
        return 0, 0
    there, due = Counter(kept.tolist()), Counter(wanted.tolist())
    return (
        max(-surplus, (due - there).total()),
        max(surplus, (there - due).total()),
    )


def _stored_user(
    bundle: Bundle,
    system: System,
    profile: Profile | None,
    sequence: StoredSequence | None,
    now_ms: int,
) -> StoredUser | None:
    """What the store holds of a user, for the plain evaluation as of a moment; None: nothing."""
    if profile is None or sequence is None:
        return None
    if profile.interests is None:
        # Who keeps no states reads as many as those would cover, not all that are stored.
        newer = profile.recent if system.keeps_state else profile.recent[-bundle.manifest.L :]
        return StoredUser(
            tensors={},
            recent=np.empty(0, np.uint64),
            history=EMPTY_HISTORY,
            newer=newer["item"].copy(),
            newer_times=newer["time"].copy(),
            count=profile.version.count,
            last_time_ms=int(newer["time"].max()),
            known=StoredFeatures.of(bundle, newer[:0], newer, now_ms),
        )
    state = system.layout.decode(profile.interests)
    newer = profile.recent[len(profile.recent) - (profile.version.count - state.count) :]
    covered = sequence.behaviors[: len(sequence.behaviors) - len(newer)]
    return StoredUser(
        tensors=state.tensors,
        recent=state.recent,
        history=state.history,
        newer=newer["item"].copy(),
        newer_times=newer["time"].copy(),
        count=profile.version.count,
        last_time_ms=max([state.last_time_ms, *newer["time"].tolist()]),
        known=StoredFeatures.of(bundle, covered, newer),
    )


def _latencies(live: LiveResult) -> dict[str, float]:
    return {
        f"rank_p{p}_ms_{size}": round(1000 * _percentile(seconds, p), 3)
        for size, seconds in sorted(live.seconds.items())
        for p in (50, 99)
    }


def _labels(ctrs: F32, targets: Sequence[int]) -> Bools:
    """bool[R, B]: what was bought."""
    labels = np.zeros(ctrs.shape, np.bool_)
    labels[np.arange(len(ctrs)), targets] = True
    return labels


def _quality_figures(qualities: dict[str, Quality]) -> dict[str, float]:
    figures = {f"auc_{name}": round(quality.auc, 5) for name, quality in qualities.items()}
    hits = {f"hit10_{name}": round(quality.hit10, 5) for name, quality in qualities.items()}
    return figures | hits


def _percentile(values: Sequence[float], p: float) -> float:
    return round(float(np.percentile(values, p)), 4) if values else 0.0


def _wait_for_interrupt(console: Console, demo: Demo) -> None:
    from lifelong.demo.report import show_addresses

    show_addresses(console, demo.addresses())
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
