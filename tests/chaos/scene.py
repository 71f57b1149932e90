"""The scene of a run: a broker, workers, a store, and what is known of the events sent."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from infra.errors import LifelongError, StoreError, one_line
from infra.kafka.admin import create_topic
from infra.kafka.local import LocalKafka
from infra.settings import Settings
from infra.store import Store, StoredSequence
from infra.stores import open_store
from lifelong.shipped import BUNDLE
from models.bundle import states_of
from streaming.worker import GROUP_S
from tests.chaos.crew import Crew
from tests.chaos.ledger import EPOCH_MS, Ledger, Numbers
from tests.chaos.producing import NumberedProducer, name_of
from tests.configuration import toml
from tests.silent_proxy import SilentProxy, behind

SESSION_S: Final = 4.0
"""Silence after which a worker's partitions are given to others."""

CHECK_S: Final = 1.0
"""How often a worker asks how far the logs go."""

FETCH_MAX: Final = 400
"""Records of a batch: few, so that a worker does not hold all that is sent before a fault."""

HELD_MAX_S: Final = 3.0
"""Time for which an open transaction may hold a partition back before a worker says so."""

BUDGET_S: Final = 3 * GROUP_S
"""Longest that all workers may say that they are ready while something is stuck. The slowest of
their looks is for partitions that nobody reads, which are told when found twice in a row; half as
long again is for a busy machine."""

WORKERS: Final = 3
PARTITIONS: Final = 4

COMMAND_S: Final = 60.0
"""Longest that a command of the product may take."""

SPARE: Final = 1.6
"""Of the events planned, so many times as many can be sent: aborted ones, and bursts of faults."""


class NotInTime(LifelongError):
    """Something took far longer than it should."""


class CommandFailed(LifelongError):
    """A command of the product failed; the message has what it said."""


@dataclass(frozen=True)
class Size:
    """How much a run sends."""

    events: int
    users: int
    a_second: float
    """The producer's pace while faults are injected; 0: as fast as it goes."""


class Scene:
    """All parts of a run, ended when it is left.

    Args:
        directory: takes broker, store and logs.
        size: how much is sent.
        chance: draws the users of the events.
    """

    def __init__(self, directory: Path, size: Size, chance: np.random.Generator) -> None:
        self.size = size
        self.directory = directory
        users = _draw_users(size, chance)
        self.ledger = Ledger(users)
        self.kafka = LocalKafka(directory / "kafka", kind="apache")
        self.store_path = directory / "store"
        self.names = [name_of(user) for user in range(size.users)]
        digest = states_of(BUNDLE)
        assert digest is not None
        self.digest = digest
        # No behavior may leave a sequence: all of them are compared.
        self._length = int(np.bincount(users).max())
        self._config = directory / "lifelong.toml"
        self._reading = threading.Lock()
        self.restored = 0
        """How many times an older copy took the store's place."""
        self.told_s: list[float] = []
        """Of the present fault: what `hold_until_told` took."""
        self.silent: list[str] = []
        """Where something was stuck beyond `BUDGET_S`, and every worker said that it was ready."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        self._stack.enter_context(self.kafka)
        self.settings = Settings.model_validate(
            {
                "broker": {
                    "bootstrap": self.kafka.bootstrap,
                    "topic": "chaos",
                    "dead_letter_topic": "chaos.dead",
                    "group": "chaos",
                    "partitions": PARTITIONS,
                },
                "store": {"url": f"lmdb://{self.store_path}", "length": max(self._length, 1000)},
                "worker": {
                    "session_timeout_s": SESSION_S,
                    "retry_max_s": 1.0,
                    "check_s": CHECK_S,
                    "held_max_s": HELD_MAX_S,
                    "fetch_max": FETCH_MAX,
                },
                "bundle": {"path": str(BUNDLE)},
                "log": {"format": "json"},
            }
        )
        broker = self.settings.broker
        create_topic(broker, broker.topic, PARTITIONS)
        create_topic(broker, broker.dead_letter_topic, 1)
        self.producer = NumberedProducer(broker, self.ledger)
        self.proxy = self._stack.enter_context(SilentProxy(self.kafka.bootstrap))
        self._config.write_text(toml(behind(self.proxy, self.settings)))
        self.crew = self._stack.enter_context(Crew(self.directory, self._config, WORKERS))
        self.crew.start()
        self.crew.wait_ready()
        self._store = self._open()
        self._stack.callback(lambda: self._store.close())  # noqa: PLW0108 - another one by then

    @contextmanager
    def reading(self) -> Iterator[Store]:
        """The store, for reading; it stays open as long."""
        with self._reading:
            yield self._store

    def restore(self, copy: Path) -> None:
        """Put a copy in the store's place. No worker may run."""
        with self._reading:
            self._store.close()
            self.command("store", "restore", str(copy), "--replace")
            shutil.rmtree(self.store_path.with_name(f"{self.store_path.name}.before-restore"))
            self._store = self._open()
            self.restored += 1

    def command(self, *arguments: str) -> None:
        """Run one of the product's commands on this scene's settings.

        Raises:
            NotInTime: it does not end.
            CommandFailed: it failed.
        """
        command = [sys.executable, "-m", "lifelong", *arguments, f"--config={self._config}"]
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                timeout=COMMAND_S,
            )
        except subprocess.TimeoutExpired as error:
            raise NotInTime(f"{' '.join(arguments)} does not end") from error
        except subprocess.CalledProcessError as error:
            said = one_line(error.stderr.decode(errors="replace"))
            raise CommandFailed(f"{' '.join(arguments)}: {said}") from error

    def _open(self) -> Store:
        # LMDB may be opened once a process, so one handle has to do for all that read here.
        return open_store(self.settings.store, read_only=True)

    def drained(self) -> bool:
        """Whether the newest event that each partition holds is in the store.

        Partitions are read in order, so nothing that comes before it is on its way.
        """
        newest = self.ledger.newest()
        users = self.ledger.users[newest]
        try:
            with self.reading() as store:
                found = store.sequences([self.names[user] for user in users])
        except StoreError:
            return False
        return all(
            sequence is not None and number in numbers_of(sequence)
            for number, sequence in zip(newest, found, strict=True)
        )

    def hold_until_told(self, *parts: str) -> str:
        """Have a fault last until a worker says that it is not ready, for one of these parts (or
        several: ``partition`` is any). Returns when that was; that it was not is noted.
        """

        def told() -> bool:
            said = [part for why in self.crew.unready().values() for part in why]
            return any(part.startswith(parts) for part in said)

        try:
            seconds = self.wait_until(told, "a worker tells it", BUDGET_S)
        except NotInTime:
            self.silent.append(f"no worker said that it was not ready for its {' or '.join(parts)}")
            return "told by nobody"
        self.told_s.append(round(seconds, 2))
        return f"told after {seconds:.1f} s"

    def wait_until(self, done: Callable[[], bool], what: str, timeout_s: float) -> float:
        """Wait for a condition; returns the seconds waited.

        Raises:
            NotInTime: it did not come about.
        """
        began = looked = time.monotonic()
        while not done():
            now = time.monotonic()
            if now - began > timeout_s:
                raise NotInTime(f"waited {timeout_s:.0f} s until {what}")
            self.crew.check()
            # Between two looks as long as one takes: others work here too.
            time.sleep(max(0.05, now - looked))
            looked = time.monotonic()
        return time.monotonic() - began


def numbers_of(sequence: StoredSequence) -> Numbers:
    """The numbers of a user's stored events, in the order of the sequence."""
    numbers: Numbers = sequence.behaviors["time"] - EPOCH_MS
    return numbers


def _draw_users(size: Size, chance: np.random.Generator) -> npt.NDArray[np.int32]:
    """A user for each event: some send ten times as many as others."""
    weights = np.minimum(chance.lognormal(0, 0.8, size.users), 5)
    drawn = chance.choice(size.users, int(size.events * SPARE), p=weights / weights.sum())
    return drawn.astype(np.int32)
