"""The watch: whether a partition stands still while every worker says that it is ready."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

from infra.behaviors import partition_source
from infra.errors import BrokerError, StoreError
from infra.kafka.admin import topic_id
from streaming.lives import read_lives
from tests.chaos.scene import BUDGET_S, Scene

EVERY_S: Final = 1.0


class Standstill:
    """How long partitions have stood still though they hold more, with all workers ready."""

    def __init__(self) -> None:
        self._fed: dict[int, Hashable] = {}
        self._since: dict[int, float] = {}

    def told(self) -> None:
        """Some worker is not ready: whoever asks knows that something is wrong."""
        self._fed.clear()

    def look(self, now: float, partitions: Mapping[int, tuple[Hashable, bool]]) -> list[int]:
        """The partitions that have been stuck in silence for longer than the budget, once each
        time.

        Args:
            now: monotonic seconds.
            partitions: up to where each was applied, in whatever terms, and whether it holds more.
        """
        found = []
        for number, (fed, more) in partitions.items():
            stands = more and self._fed.get(number) == fed
            if stands and now - self._since[number] > BUDGET_S:
                found.append(number)
                stands = False
            if not stands:
                self._since[number] = now
            self._fed[number] = fed
        return found


class Watch:
    """Looks at store, ledger and readiness every now and then, in a thread of its own.

    What it finds goes to `Scene.silent`. How far partitions are applied it reads in the store: what
    workers say of that may be as wrong as their readiness.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._standstill = Standstill()
        self._topic = ""
        """The topic's id."""
        self._topic_number = -1
        """Which of its name that is, by the ledger."""
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(1, "watch")

    def __enter__(self) -> Self:
        self._running = self._pool.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pool.shutdown()
        self._running.result()  # a watch that failed has seen nothing

    def _run(self) -> None:
        while not self._ended.wait(EVERY_S):
            if not self._scene.crew.ready():
                self._standstill.told()
                continue
            try:
                partitions = self._partitions()
            except (BrokerError, StoreError):  # looked at later; it counts as standing until then
                continue
            for number in self._standstill.look(time.monotonic(), partitions):
                self._scene.silent.append(
                    f"partition {number} stood still for {BUDGET_S:.0f} s after"
                    f" {partitions[number][0]}, and all workers said that they were ready"
                )

    def _partitions(self) -> dict[int, tuple[Hashable, bool]]:
        """Up to where each partition is in the store, and whether it holds more."""
        ledger, topic = self._scene.ledger, self._scene.settings.broker.topic
        if self._topic_number != ledger.topic:
            self._learn_topic(ledger.topic)
        ends = {int(ledger.partitions[one]): int(ledger.offsets[one]) for one in ledger.newest()}
        with self._scene.reading() as store:
            lives = read_lives(store, self._topic, ends)
            sources = [partition_source(topic, self._topic, n, lives[n].number) for n in ends]
            reached = store.positions([source.key for source in sources])
        fed = {n: -1 if one is None else one for n, one in zip(ends, reached, strict=True)}
        return {n: ((lives[n].number, fed[n]), fed[n] < end) for n, end in ends.items()}

    def _learn_topic(self, number: int) -> None:
        """Ask for the id of the topic; raises `BrokerError` while it is not made anew."""
        broker = self._scene.settings.broker
        found = topic_id(broker, broker.topic)
        if found == self._topic:
            raise BrokerError("the broker still tells of the topic that was deleted")
        self._topic, self._topic_number = found, number
        self._standstill = Standstill()
