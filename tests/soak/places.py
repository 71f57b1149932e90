"""Where the scorer reads users: LMDB, or a server of the soak's own, which can be taken away, hung,
slowed and killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from infra.errors import LifelongError
from infra.processes import end_guard, start_guard
from infra.settings import StoreSettings
from infra.store import Store
from infra.stores import open_store
from lifelong.demo.processes import free_port
from scorer.service import READERS
from tests.scorer.running import ROOT

HOST: Final = "127.0.0.1"

START_S: Final = 60.0
"""Longest time in which a server is to start, or to end, on a busy machine."""

Fill = Callable[[Store], None]


class NoServer(LifelongError):
    """A store's server cannot be started here."""


class LmdbPlace:
    """A directory in which the store's own directory is exchanged for others."""

    connections = 0
    """Files and connections that a process has open only while many rank at once."""

    def __init__(self, directory: Path) -> None:
        self._store = directory / "store"
        self.url = f"lmdb://{self._store}"

    def open(self, store: Path, _fill: Fill) -> None:
        """Have a copy of a store in the place."""
        copy(store, self._store)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """A context in which nothing is there."""
        aside = self._store.with_name("aside")
        self._store.rename(aside)
        yield
        aside.rename(self._store)

    def replace(self, store: Path) -> None:
        """Have a copy of another store in the place, all at once."""
        coming = self._store.with_name("coming")
        copy(store, coming)
        self._store.rename(self._store.with_name(f"gone-{time.monotonic_ns()}"))
        coming.rename(self._store)

    def close(self) -> None:
        """Delete what was replaced."""
        for gone in self._store.parent.glob("gone-*"):
            shutil.rmtree(gone, ignore_errors=True)


class ServerPlace(ABC):
    """A server in a process of its own, which keeps what it has on disk.

    Args:
        directory: takes what it keeps, and its log.
    """

    connections = 2 * READERS

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "server"
        self._directory.mkdir(exist_ok=True)
        self._port = free_port()
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid = 0

    @property
    @abstractmethod
    def url(self) -> str:
        """Of the store, for settings."""

    @abstractmethod
    def _command(self) -> list[str]:
        """What starts the server."""

    def open(self, _store: Path, fill: Fill) -> None:
        """Start a server that is filled, and has it on disk."""
        self.start()
        store = open_store(StoreSettings(url=self.url))
        fill(store)
        store.close()
        os.kill(self._pid, signal.SIGTERM)
        assert self._guard is not None
        self._guard.wait(START_S)  # it writes what it has, and is not to be hurried
        self._end()
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        with (self._directory / "server.log").open("ab") as log:
            self._guard = start_guard(ROOT, self._command(), log.fileno())
        assert self._guard.stdout is not None
        self._pid = int(self._guard.stdout.readline())
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, self._port), timeout=START_S).close()
                return
            if time.monotonic() > deadline:
                raise NoServer(f"{' '.join(self._command())}: nothing listens on its port")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL: connections are cut, and refused until it is started again."""
        os.kill(self._pid, signal.SIGKILL)
        self._end()

    def hang(self) -> None:
        """From now on it accepts connections, as the kernel does for it, and answers nothing."""
        os.kill(self._pid, signal.SIGSTOP)
        # Who is at work when the signal comes may still answer; not once all of its threads stand.
        while not all(map(_stands, Path(f"/proc/{self._pid}/task").iterdir())):
            time.sleep(0.001)

    def go_on(self) -> None:
        """Answer again, what has come meanwhile first."""
        os.kill(self._pid, signal.SIGCONT)

    def close(self) -> None:
        """End the server."""
        if self._guard is not None:
            with contextlib.suppress(ProcessLookupError):
                self.go_on()  # a process that hangs does not hear that it is to end
            self._end()

    def _end(self) -> None:
        assert self._guard is not None
        end_guard(self._guard)
        self._guard = None


class AerospikePlace(ServerPlace):
    """The double of an Aerospike server."""

    @property
    def url(self) -> str:
        return f"aerospike://{HOST}:{self._port}/test"

    def _command(self) -> list[str]:
        kept = self._directory / "records"
        module = "tests.aerospike_double"
        return [sys.executable, "-m", module, f"--port={self._port}", f"--keep={kept}"]


class RedisPlace(ServerPlace):
    """A real Redis."""

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self._port}"

    def _command(self) -> list[str]:
        server = shutil.which("redis-server")
        if server is None:
            raise NoServer("redis-server is missing: apt install redis-server")
        options = ("--bind", HOST, "--appendonly", "yes", "--save", "")
        return [server, "--port", str(self._port), "--dir", str(self._directory), *options]


Place = LmdbPlace | ServerPlace

PLACES: Final[dict[str, Callable[[Path], Place]]] = {
    "lmdb": LmdbPlace,
    "aerospike": AerospikePlace,
    "redis": RedisPlace,
}


def _stands(thread: Path) -> bool:
    """Whether a thread is stopped by a signal, or there is none any more."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    return True


def copy(store: Path, place: Path) -> None:
    """A store that nobody has open, in another place."""
    shutil.copytree(store, place, ignore=shutil.ignore_patterns("lock.mdb"))
