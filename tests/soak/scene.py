"""The scene of a soak: a scorer of several processes, two bundles, two stores, and the ledger."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from infra.errors import LifelongError
from infra.processes import end_guard, start_guard
from infra.settings import BundleSettings, LogSettings, ScorerSettings, Settings, StoreSettings
from infra.stores import open_store
from lifelong.demo.processes import free_port
from tests.bundles import tiny_bundle
from tests.configuration import toml
from tests.scorer.running import ROOT, children, get
from tests.soak.checking import DEADLINE_S
from tests.soak.ledger import Ledger, Told
from tests.soak.oracle import Model, fill, load, settings_of
from tests.soak.places import PLACES, LmdbPlace, ServerPlace

READY_S: Final = 300.0
"""Longest wait for anything to come about, on a busy machine."""

LAME_DUCK_S: Final = 1.0

STORE_S: Final = 1.5
"""Time in which a store that is a server is to answer a read: on a busy machine it may take its
time, and nobody could tell whether an answer is degraded for that or for nothing.
"""

STORES: Final = ("one", "other")
MODES: Final = ("degrade", "refuse")


class NotInTime(LifelongError):
    """Something took far longer than it should."""


class Ended(LifelongError):
    """The scorer ended by itself."""


class Scene:
    """All parts of a run, ended when it is left.

    Args:
        directory: takes bundles, stores and logs.
        processes: of the scorer.
        seed: draws what is in the stores, and in which mode the scorer begins.
        store: kind of the store that the scorer reads; what is right is always read from LMDB.
    """

    def __init__(self, directory: Path, processes: int, seed: int, store: str) -> None:
        self.ledger = Ledger()
        self.processes = processes
        self.found: list[str] = []
        """What was wrong with the scorer as a whole."""
        self.directory = directory
        self.models = [_made(directory / "bundles" / str(number), number) for number in range(2)]
        self.stores = {name: directory / "stores" / name for name in STORES}
        for name, path in self.stores.items():
            with closing(open_store(settings_of(path))) as filled:
                fill(filled, self.models, f"{seed} {name}")
        self._seed = seed
        self._place = PLACES[store](directory)
        self._mode = random.Random(seed).choice(MODES)
        self._lives = 0
        self._bundle = directory / "bundle"
        self.ports = free_port(), free_port()
        self.admin_port = free_port()
        self.pid = 0
        """The supervisor's."""
        self._guard: subprocess.Popen[bytes]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        now = time.monotonic()
        self._stack.callback(self._place.close)
        self.ledger.stores.append(Told(now, STORES[0]))
        self.link(self.models[0].path)
        self.ledger.versions.append(Told(now, self.models[0].bundle.version))
        filled = partial(fill, models=self.models, seed=f"{self._seed} {STORES[0]}")
        try:
            self._place.open(self.stores[STORES[0]], filled)
            self.start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def settings(self) -> Settings:
        """The scorer's."""
        return Settings(
            store=StoreSettings(url=self._place.url),
            bundle=BundleSettings(path=self._bundle, poll_s=2.0),
            log=LogSettings(format="json"),
            scorer=ScorerSettings.model_validate(
                {
                    "port": self.ports[0],
                    "grpc_port": self.ports[1],
                    "admin_port": self.admin_port,
                    "processes": self.processes,
                    "lame_duck_s": LAME_DUCK_S,
                    "deadline_s": DEADLINE_S,
                    "store_timeout_s": STORE_S,
                    "without_store": self._mode,
                    "sampled": 0.05,
                }
            ),
        )

    @property
    def lmdb(self) -> LmdbPlace:
        """The place of the store that the scorer reads, of a soak on LMDB."""
        assert isinstance(self._place, LmdbPlace)
        return self._place

    @property
    def server(self) -> ServerPlace:
        """The same of a soak on a server."""
        assert isinstance(self._place, ServerPlace)
        return self._place

    @property
    def connections(self) -> int:
        """Connections to the store that a process may keep, beside those that it always has."""
        return self._place.connections

    @property
    def current(self) -> Model:
        """The bundle that is in its place."""
        version = self.ledger.versions[-1].what
        return next(model for model in self.models if model.bundle.version == version)

    @property
    def other(self) -> Model:
        """The bundle that is not."""
        return next(model for model in self.models if model is not self.current)

    def start(self) -> None:
        """Start the scorer in the other mode than before, and wait until all of it is ready."""
        self._mode = MODES[1 - MODES.index(self._mode)]
        self.ledger.refuses.append(Told(time.monotonic(), self._mode))
        config = self.directory / "lifelong.toml"
        config.write_text(toml(self.settings))
        self._lives += 1
        command = [sys.executable, "-m", "lifelong", "scorer", f"--config={config}"]
        with (self.directory / f"scorer-{self._lives:02}.log").open("wb") as log:
            # A fork of this process would take gRPC's threads for its own.
            self._guard = start_guard(ROOT, command, log.fileno())
        self._stack.callback(end_guard, self._guard)
        assert self._guard.stdout is not None
        self.pid = int(self._guard.stdout.readline())
        self.wait_until(lambda: self.readiness()[0] == 200, "the scorer is ready")
        self.wait_until(lambda: len(self.ready_pids()) == self.processes, "all processes are ready")

    def stop(self) -> None:
        """End the scorer as an operator would, and wait for it."""
        os.kill(self.pid, signal.SIGTERM)
        self.wait_until(lambda: self._guard.poll() is not None, "the scorer ends", ends=True)
        if self._guard.returncode != 0:
            self.found.append(f"the scorer ended with {self._guard.returncode}")

    def link(self, bundle: Path) -> None:
        """Have another bundle in its place, all at once."""
        fresh = self._bundle.with_name("fresh")
        fresh.symlink_to(bundle)
        fresh.rename(self._bundle)

    def replace_store(self) -> None:
        """Have the store in its place that is not there now."""
        now = self.ledger.stores[-1].what
        name = STORES[1 - STORES.index(now)]
        with self.ledger.noting(self.ledger.away):
            self.ledger.stores.append(Told(time.monotonic(), name))
            self.lmdb.replace(self.stores[name])

    def pids(self) -> list[int]:
        """The serving processes that there are, the oldest first."""
        born = {pid: _started(pid) for pid in children(self.pid)}
        return sorted(born, key=born.__getitem__)

    def ready_pids(self) -> set[int]:
        """Those of them that have said that they are ready."""
        told = {line["pid"] for line in self.said(life=self._lives) if _is_ready(line)}
        return told & set(self.pids())

    def readiness(self) -> tuple[int, str]:
        """Status and body of the answer to a probe."""
        return get(self.settings, "/v2/health/ready")

    def said(self, life: int | None = None) -> list[dict[str, Any]]:
        """What the scorer has logged, line by line; what is no JSON is an event alone."""
        pattern = "scorer-*.log" if life is None else f"scorer-{life:02}.log"
        lines = []
        for log in sorted(self.directory.glob(pattern)):
            for line in log.read_text(errors="replace").splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    lines.append({"event": line, "level": "unstructured"})
        return lines

    def wait_until(
        self,
        done: Callable[[], object],
        what: str,
        timeout_s: float = READY_S,
        *,
        ends: bool = False,
    ) -> float:
        """Wait for a condition; returns the seconds waited. A connection that fails is no answer.

        Raises:
            NotInTime: it did not come about.
            Ended: the scorer has ended, and was not to.
        """
        began = time.monotonic()
        while True:
            try:
                if done():
                    return time.monotonic() - began
            except (OSError, http.client.HTTPException):
                pass
            if time.monotonic() - began > timeout_s:
                raise NotInTime(f"waited {timeout_s:.0f} s until {what}")
            if not ends and self._guard.poll() is not None:
                raise Ended(f"the scorer ended with {self._guard.returncode}, before {what}")
            time.sleep(0.1)


def _made(path: Path, seed: int) -> Model:
    """A bundle; one that was kept is used again, since exporting one takes a while."""
    return load(path if path.exists() else tiny_bundle(path, seed=seed))


def _is_ready(line: dict[str, Any]) -> bool:
    return line.get("event") == "scorer ready"


def _started(pid: int) -> int:
    """When a process was started, in the system's ticks; 0: it is no more."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0
