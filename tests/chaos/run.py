"""One run: a scene, a plan, and what came of it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from infra.errors import typed_line
from infra.segments import SEGMENT
from tests.chaos.checking import Found, compare, destroyed_where
from tests.chaos.faults import FAULTS
from tests.chaos.ledger import Numbers
from tests.chaos.plan import Injection, draw_plan
from tests.chaos.reported import reported_lost
from tests.chaos.sampling import Sampler
from tests.chaos.scene import NotInTime, Scene, Size, numbers_of
from tests.chaos.watching import Watch

RECOVERY_S: Final = 60.0
"""Longest wait after a fault until all is in the store, and then until all workers are ready."""

CURRENT_S: Final = 60.0
"""Longest wait after the last event until every full segment is in its user's interests."""

SAMPLED: Final = 200
READ: Final = 1000


@dataclass
class Injected:
    """A fault as it was injected."""

    fault: str
    what: str
    at_s: float
    """Since the workers were ready."""
    at_event: int
    lasted_s: float
    told_s: float | None
    """Until a worker said that it was not ready, beyond the time that the fault lasts anyway; None:
    none had to, or none did."""
    recovery_s: float | None
    """From its end until the newest event of every partition was in the store; None: never."""
    ready_s: float | None
    """From its end until all workers were ready, too; None: never, or that was not waited for."""


@dataclass
class Run:
    """What came of a seed."""

    seed: int
    injected: list[Injected] = field(default_factory=list)
    found: Found | None = None
    committed: int = 0
    reported: dict[str, int] = field(default_factory=dict)
    """Events that the workers say Kafka destroyed before they were read, by cause."""
    destroyed_where: list[str] = field(default_factory=list)
    """Where those lay that it did destroy."""
    went_back: int = 0
    not_current: int = 0
    """Users with a full segment that their interests do not cover."""
    current_s: float = 0
    """From the last event until all users' interests were current."""
    silent: list[str] = field(default_factory=list)
    """As `Scene.silent`."""
    not_ready: list[str] = field(default_factory=list)
    """What workers said of themselves that were not ready again in time."""
    seconds: float = 0
    failure: str | None = None
    """Why the run did not come to its end."""

    @property
    def unreported(self) -> int:
        """Events that Kafka destroyed before they were read, and that no worker told of."""
        return sum(max(0, -count) for count in self._told_too_many())

    @property
    def wrong(self) -> list[str]:
        """What is not as it should be, in words."""
        found = self.found or Found(0, 0, 0, 0, {})
        wrong = {
            "lost": found.lost,
            "doubled": found.doubled,
            "foreign": found.foreign,
            "disordered": found.disordered,
            "unreported": self.unreported,
            "reported too many": sum(max(0, count) for count in self._told_too_many()),
            "interests went back": self.went_back,
            "interests not current": self.not_current,
            "never recovered": sum(one.recovery_s is None for one in self.injected),
            "healthy while stuck": len(self.silent),
            "not ready again": len(self.not_ready),
        }
        words = [f"{name}: {count:,}" for name, count in wrong.items() if count]
        return words + ([self.failure] if self.failure else [])

    def _told_too_many(self) -> list[int]:
        """Events reported less those destroyed, for each cause."""
        destroyed = self.found.destroyed if self.found else {}
        return [count - destroyed.get(cause, 0) for cause, count in self.reported.items()]

    def row(self) -> dict[str, Any]:
        """The run for the report."""
        found = asdict(self.found) if self.found else {"destroyed": {}}
        return {
            "seed": self.seed,
            "events": self.committed,
            **found,
            "destroyed": sum(found["destroyed"].values()),
            "destroyed_by": found["destroyed"],
            "destroyed_where": self.destroyed_where,
            "reported": sum(self.reported.values()),
            "reported_by": self.reported,
            "unreported": self.unreported,
            "went_back": self.went_back,
            "not_current": self.not_current,
            "current_s": round(self.current_s, 1),
            "healthy_while_stuck": len(self.silent),
            "stuck": self.silent,
            "not_ready_again": len(self.not_ready),
            "not_ready": self.not_ready,
            "seconds": round(self.seconds, 1),
            "wrong": self.wrong,
            "injected": [asdict(one) for one in self.injected],
        }


def run_seed(
    seed: int,
    size: Size,
    directory: Path,
    faults: Sequence[str] = tuple(FAULTS),
    *,
    extra: int = 0,
    told: Callable[[Injected], None] = lambda _: None,
) -> Run:
    """Inject what the seed draws, and check what came of it.

    Nothing that was started here runs on. ``directory`` takes broker, store and logs.
    """
    run = Run(seed)
    began = time.monotonic()
    try:
        with Scene(directory, size, np.random.default_rng(seed)) as scene:
            _play(scene, run, draw_plan(seed, faults, extra), told)
    except Exception as error:  # noqa: BLE001 - whatever it is, other seeds are run and reported
        run.failure = typed_line(error)
    run.seconds = time.monotonic() - began
    return run


def _play(scene: Scene, run: Run, plan: list[Injection], told: Callable[[Injected], None]) -> None:
    began = time.monotonic()
    chunk = scene.size.events // (len(plan) + 1)
    run.silent = scene.silent
    with Sampler(scene, scene.names[:SAMPLED]) as sampler, Watch(scene):
        for injection in plan:
            injected = _inject(scene, run, injection, chunk, began)
            run.injected.append(injected)
            told(injected)
            if injected.recovery_s is None:
                break  # what comes after it would say nothing
        scene.producer.send(chunk)
        ended = time.monotonic()
        try:
            scene.wait_until(scene.drained, "all is in the store", RECOVERY_S)
            scene.wait_until(lambda: not _not_current(scene), "interests are current", CURRENT_S)
        except NotInTime:
            run.not_current = _not_current(scene)
        run.current_s = time.monotonic() - ended
        _wait_ready(scene, run, "the last event")
        sampler.look()
    scene.crew.stop()
    run.went_back = sampler.went_back
    run.committed = int(scene.ledger.committed.sum())
    stored = _stored(scene)
    run.found = compare(scene.ledger, stored)
    run.destroyed_where = destroyed_where(scene.ledger, stored)
    run.reported = reported_lost(scene.crew.said())


def _inject(scene: Scene, run: Run, injection: Injection, chunk: int, began: float) -> Injected:
    """Inject a fault while events are sent, and wait until all is in the store."""
    fault = FAULTS[injection.fault]
    before = int(chunk * injection.share)
    scene.producer.send(before)
    pace = 0 if fault.alone else scene.size.a_second
    with _sending(scene, chunk - before, pace, at_once=not fault.alone) as sending:
        scene.told_s.clear()
        at, at_event = time.monotonic(), scene.ledger.sent
        what = fault.inject(scene, random.Random(injection.seed))
        ended = time.monotonic()
        sending()
    recovery = ready = None
    try:
        scene.wait_until(scene.drained, "all is in the store", RECOVERY_S)
        recovery = round(time.monotonic() - ended, 2)
        if (injection.awaited or fault.told) and _wait_ready(scene, run, injection.fault):
            ready = round(time.monotonic() - ended, 2)
    except NotInTime:
        what += f"; not ready: {scene.crew.unready()}"
    return Injected(
        injection.fault,
        what,
        at_s=round(at - began, 1),
        at_event=at_event,
        lasted_s=round(ended - at, 1),
        told_s=max(scene.told_s, default=None),
        recovery_s=recovery,
        ready_s=ready,
    )


def _wait_ready(scene: Scene, run: Run, after: str) -> bool:
    """Wait until all workers are ready; whether they are. Who is not is noted."""
    try:
        scene.wait_until(scene.crew.ready, "all workers are ready", RECOVERY_S)
    except NotInTime:
        run.not_ready.append(f"after {after}: {scene.crew.unready()}")
        return False
    return True


@contextmanager
def _sending(
    scene: Scene, count: int, pace: float, *, at_once: bool
) -> Iterator[Callable[[], None]]:
    """Send in a thread, at once or when the yielded function is called, which waits for the end."""
    failures: list[BaseException] = []

    def send() -> None:
        try:
            scene.producer.send(count, a_second=pace)
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=send, name="producer")

    def finish() -> None:
        if not at_once:
            thread.start()
        thread.join()
        if failures:
            raise failures[0]

    if at_once:
        thread.start()
    try:
        yield finish
    finally:
        if thread.ident is not None:
            thread.join()


def _stored(scene: Scene) -> list[Numbers]:
    """The numbers of every user's stored events."""
    stored: list[Numbers] = []
    with scene.reading() as store:
        for names in _pages(scene.names):
            stored += [
                np.empty(0, np.int64) if sequence is None else numbers_of(sequence)
                for sequence in store.sequences(names)
            ]
    return stored


def _not_current(scene: Scene) -> int:
    """How many users have a full segment that their interests do not cover."""
    behind = 0
    with scene.reading() as store:
        for names in _pages(scene.names):
            for profile in store.profiles(names, scene.digest):
                if profile is not None and (sealed := profile.version.count // SEGMENT):
                    version = profile.interests_version
                    behind += version is None or version.count < sealed * SEGMENT
    return behind


def _pages(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + READ] for start in range(0, len(names), READ))
