"""FuxiCTR beside us: fetched into a folder of its own, run as a process of its own.

FuxiCTR needs numpy < 2 and we do not, so its packages never mix with ours. They go into the cache,
pinned and hashed (``fuxictr.txt``), and stand before ours when its process imports; torch is ours,
so both are timed on the same one.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from infra.errors import LifelongError
from infra.program_cache import default_cache, fetch_once
from infra.telemetry import get_logger
from lifelong.bench.fuxictr_peer import Request

LOCK: Final = Path(__file__).with_name("fuxictr.txt")
PEER: Final = Path(__file__).with_name("fuxictr_peer.py")
NEWEST_PYTHON: Final = (3, 12)
"""The newest Python that numpy 1 was built for."""
FETCH_S: Final = 900.0
"""Longest that fetching may take (200 MB)."""
ANSWER_S: Final = 300.0
"""Longest that a start or one measurement may take."""


class PeerError(LifelongError):
    """FuxiCTR cannot be fetched, started or measured."""


def fetch(cache: Path | None = None, *, lock: Path = LOCK, python: str = sys.executable) -> Path:
    """The folder with FuxiCTR and what it needs, fetched with pip the first time.

    Processes that do this at the same time wait for one of them. What is there is complete: the
    folder appears in one step.

    Raises:
        PeerError: this Python is too new, pip is missing or failed, or the cache cannot be written.
    """
    if sys.version_info[:2] > NEWEST_PYTHON:
        newest = ".".join(map(str, NEWEST_PYTHON))
        raise PeerError(
            f"FuxiCTR needs numpy 1, which Python {newest} is the newest to have: run this with it,"
            " or name a Python that has FuxiCTR and torch (--peer-python)"
        )
    cache = cache or default_cache()
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    target = cache / f"fuxictr-{digest}-{sys.implementation.cache_tag}"

    def install(folder: Path) -> Path:
        get_logger(__name__).info("fetching FuxiCTR with pip, this once", folder=str(cache))
        _install(lock, folder, python)
        return folder

    try:
        return fetch_once(target, install)
    except OSError as error:
        raise PeerError(f"FuxiCTR cannot be kept in {cache}: {error.strerror}") from None


def _install(lock: Path, folder: Path, python: str) -> None:
    command = [
        *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-compile", "--only-binary", ":all:", "--no-deps", "--require-hashes"),
        *("--target", str(folder), "-r", str(lock)),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=False)
    except subprocess.TimeoutExpired:
        raise PeerError(f"pip has not fetched FuxiCTR in {FETCH_S:.0f} s: try again") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise PeerError(
            f"pip could not fetch FuxiCTR ({errors[-1]}): is there a network? or name a Python that"
            " has FuxiCTR and torch (--peer-python)"
        )


class FuxiCTR:
    """The running peer (context manager); it ends with the block, or when we are gone."""

    def __init__(self, directory: Path, threads: int, python: Path | None = None) -> None:
        """Start FuxiCTR on the data in ``directory``.

        Args:
            python: one that has FuxiCTR and torch; by default FuxiCTR is fetched for our own.

        Raises:
            PeerError: it does not start.
        """
        arguments = [str(directory), str(threads)]
        if python is None:
            arguments.append(str(fetch()))
        self._start([str(python or sys.executable), "-I", str(PEER), *arguments], directory)

    def _start(self, command: Sequence[str], directory: Path) -> None:
        self._log = directory / "fuxictr.log"
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                )
        except OSError as error:
            raise PeerError(f"{command[0]} cannot be run: {error.strerror}") from None
        try:
            self._answer()
        except BaseException:
            self.stop()
            raise

    def samples_per_second(self, request: Request) -> float:
        """Measure once: samples a second.

        Raises:
            PeerError: it failed.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps(request._asdict()), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._failed() from None
        return float(self._answer()["samples_per_second"])

    def stop(self) -> None:
        """End FuxiCTR's process."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # A read has no deadline of its own; without its process it ends.
        deadline = threading.Timer(ANSWER_S, self._process.kill)
        deadline.start()
        try:
            line = self._process.stdout.readline()
        finally:
            deadline.cancel()
        if not line:
            raise self._failed()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self) -> PeerError:
        self._process.wait()
        said = self._log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        return PeerError(f"FuxiCTR's process ended: {said[-1]}")
