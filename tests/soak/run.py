"""One run: a scene, a load, faults at moments that a seed draws, and what came of it."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, Self

from infra.errors import LifelongError, typed_line
from tests.soak.asking import draw
from tests.soak.checking import Check, Checked, Outcome
from tests.soak.clients import Client, Grpc, Http1, Http2
from tests.soak.faults import FAULTS, faults_of
from tests.soak.load import Load
from tests.soak.oracle import Oracle
from tests.soak.scene import NotInTime, Scene
from tests.soak.watching import GROWTH, Watch, descriptors

PAUSE_S: Final = (0.3, 3.0)
"""Time between two faults."""

RESTART: Final = "restarted"
RESTART_EVERY_S: Final = 120.0
"""Time from when all processes are ready until the whole is restarted again, the first time in a
part of that: they are to grow old."""

SETTLED_S: Final = 20.0
"""Longest time in which connections and descriptors are to be let go."""

EXPLAINED: Final = frozenset(
    {
        "scorer process died",  # as often as one was killed
        "scorer process did not end in time, killed",  # the machine is busy; it has answered all
    }
)
"""Errors in the log that are none of the scorer's."""

FEW: Final = 2
"""Descriptors that a process may have more than when it was started: the store's, a moment long."""


class Injected(NamedTuple):
    """A fault that was injected."""

    fault: str
    what: str
    at_s: float
    lasted_s: float


@dataclass
class Run:
    """What came of a run."""

    seed: int
    store: str = "lmdb"
    """Kind of the store that the scorer reads."""
    seconds: float = 0.0
    injected: list[Injected] = field(default_factory=list)
    checked: Checked = field(default_factory=Checked)
    hung_up: int = 0
    probes: int = 0
    unready: list[str] = field(default_factory=list)
    """What was wrong with answers to probes."""
    growth: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of processes that grew old: bytes resident when warm and at the end."""
    descriptors_before: int = 0
    """Files and connections that a process has open at most, before the load."""
    descriptors: dict[str, int] = field(default_factory=dict)
    """The same after it, of each process."""
    logged: Counter[str] = field(default_factory=Counter)
    """Lines of the log by event."""
    found: list[str] = field(default_factory=list)
    """What else was wrong."""

    @property
    def wrong(self) -> list[str]:
        """All that is not as it should be, in words."""
        words = [f"{what}: {count}" for what, count in self.checked.wrong.items()]
        return words + self.unready[:10] + self.found

    def row(self) -> dict[str, Any]:
        """The run for the report."""
        faults = Counter(one.fault for one in self.injected)
        return {
            "seed": self.seed,
            "store": self.store,
            "seconds": round(self.seconds, 1),
            "requests": sum(self.checked.outcomes.values()),
            "hung_up": self.hung_up,
            "outcomes": dict(sorted(self.checked.outcomes.items())),
            "answers": dict(self.checked.kinds),
            "ctrs": self.checked.compared,
            "largest_difference": self.checked.largest,
            "probes": self.probes,
            "faults": dict(sorted(faults.items())),
            "memory": {str(pid): list(grown) for pid, grown in self.growth.items()},
            "descriptors": {"before": self.descriptors_before, **self.descriptors},
            "logged": dict(self.logged.most_common()),
            "wrong": self.wrong,
            "examples": self.checked.examples,
            "injected": [one._asdict() for one in self.injected],
        }


class Judge:
    """Has outcomes judged in a thread of its own."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._queue: SimpleQueue[Outcome | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="judge")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def put(self, outcome: Outcome) -> None:
        self._queue.put(outcome)

    def waiting(self) -> int:
        return self._queue.qsize()

    def _run(self) -> None:
        while (outcome := self._queue.get()) is not None:
            if self._failure is None:
                try:
                    self._check.look(outcome)
                except BaseException as error:  # noqa: BLE001 - raised where the run ends
                    self._failure = error


def run_seed(
    seed: int,
    seconds: float,
    directory: Path,
    faults: Sequence[str] = (),
    *,
    store: str = "lmdb",
    rate: float = 100.0,
    processes: int = 2,
    told: Callable[[Injected], None] = lambda _: None,
) -> Run:
    """Load a scorer for so long, inject what the seed draws, and check what came of it.

    Nothing that was started here runs on.

    Args:
        directory: takes bundles, stores and logs.
        faults: those that are injected; none: all that go with the store.
        store: kind of the store that the scorer reads.
    """
    run = Run(seed, store)
    try:
        with Scene(directory, processes, seed, store) as scene:
            _play(scene, run, seconds, faults or faults_of(store), rate, told)
    except LifelongError as error:
        run.found.append(typed_line(error))
    return run


def _play(
    scene: Scene,
    run: Run,
    seconds: float,
    faults: Sequence[str],
    rate: float,
    told: Callable[[Injected], None],
) -> None:
    versions = [model.bundle.version for model in scene.models]
    oracle = Oracle(scene.models, scene.stores)
    check = Check(scene.ledger, oracle.rank)
    run.checked = check.checked
    began = time.monotonic()
    try:
        asyncio.run(_ask_all(scene, versions))
        run.descriptors_before = _most_descriptors(scene)
        with Judge(check) as judge, Watch(scene) as watch:
            with Load(scene.ports, rate, run.seed, versions, judge.put, judge.waiting) as load:
                _inject_all(scene, load, run, seconds, faults, told)
            run.hung_up, run.probes, run.unready = load.hung_up, watch.probes, watch.found
            run.growth = watch.growth()
    finally:
        oracle.close()
    _settle(scene, run)
    scene.stop()
    run.seconds = time.monotonic() - began
    for pid, (warm, last) in run.growth.items():
        if last - warm > GROWTH:
            run.found.append(f"process {pid} grew from {warm:,} to {last:,} bytes")
    run.found += scene.found
    _read_log(scene, run)


def draw_faults(chance: random.Random, faults: Sequence[str]) -> Iterator[str]:
    """Faults without end: every one before any comes again."""
    while True:
        yield from chance.sample(faults, len(faults))


def _inject_all(
    scene: Scene,
    load: Load,
    run: Run,
    seconds: float,
    faults: Sequence[str],
    told: Callable[[Injected], None],
) -> None:
    chance = random.Random(run.seed)
    began = time.monotonic()
    others = draw_faults(chance, [fault for fault in faults if fault != RESTART])
    restart_at_s = chance.uniform(0.1, 0.3) * min(seconds, RESTART_EVERY_S)
    if RESTART not in faults:
        restart_at_s = math.inf
    while True:
        time.sleep(chance.uniform(*PAUSE_S))
        at_s = time.monotonic() - began
        if at_s > seconds:
            return
        fault = RESTART if at_s >= restart_at_s else next(others)
        what = FAULTS[fault](scene, load, chance)
        lasted_s = time.monotonic() - began - at_s
        if fault == RESTART:
            restart_at_s = at_s + lasted_s + RESTART_EVERY_S
        run.injected.append(Injected(fault, what, round(at_s, 1), round(lasted_s, 1)))
        told(run.injected[-1])


async def _ask_all(scene: Scene, versions: Sequence[str]) -> None:
    """Have every process answer each protocol: some of what they open is opened once and kept."""
    chance = random.Random(0)
    http, grpc = scene.ports
    clients: list[Client] = [kind(http) for _ in range(8) for kind in (Http1, Http2)]
    clients += [Grpc(grpc) for _ in range(16)]
    for number, client in enumerate(clients):
        asked = draw(chance, number, versions)
        await client.ask(replace(asked, form="v1", timeout_s=None, version=None))
    for client in clients:
        await client.close()


def _most_descriptors(scene: Scene) -> int:
    time.sleep(1)  # closing a connection takes a moment
    return max(descriptors(pid) for pid in scene.pids())


def _settle(scene: Scene, run: Run) -> None:
    """Wait until no process has more open than before the load."""

    def settled() -> bool:
        run.descriptors = {str(pid): descriptors(pid) for pid in scene.pids()}
        few = FEW + scene.connections
        return max(run.descriptors.values()) <= run.descriptors_before + few

    try:
        scene.wait_until(settled, "descriptors are closed", SETTLED_S)
    except NotInTime:
        run.found.append(
            f"descriptors open without a connection: {run.descriptors}, {run.descriptors_before}"
            " before the load"
        )


def _read_log(scene: Scene, run: Run) -> None:
    """Look for what no fault explains."""
    lines = scene.said()
    run.logged = Counter(str(line["event"])[:100] for line in lines)
    died = run.logged["scorer process died"]
    if died != len(scene.ledger.kills):
        run.found.append(f"{died} processes died, {len(scene.ledger.kills)} were killed")
    for line in lines:
        level, event = line.get("level"), line["event"]
        if "exception" in line or "Traceback" in event or level == "unstructured":
            run.found.append(f"in the log: {str(line)[:2000]}")
        elif level in {"error", "critical"} and event not in EXPLAINED:
            run.found.append(f"in the log: {str(line)[:500]}")
