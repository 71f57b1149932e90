"""Services of ours as processes: started as a user would start them, watched, and surely ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from infra.errors import LifelongError
from infra.processes import die_with_parent

STOP_S: Final = 15.0
"""A worker finishes its batch and a scorer its requests within this; then they are killed."""


class ServiceFailed(LifelongError):
    """A service that we started ended, or did not get ready; the message has its last word."""


class ServiceProcess:
    """One ``lifelong`` command in a process of its own, which ends with ours, however that ends."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path, ready_url: str) -> None:
        """Start ``lifelong ARGUMENTS``; what it says goes to the file ``log``."""
        self.name = name
        self._log = log
        self._ready_url = ready_url
        with log.open("wb") as output:
            # A session of its own, so that the terminal's Ctrl-C reaches only us and we end the
            # services in order; the death signal covers the case that we are killed.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lifelong", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Safe here: the child only makes a system call before it becomes the command.
                preexec_fn=partial(die_with_parent, signal.SIGTERM),  # noqa: PLW1509
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def check(self) -> None:
        """Raise `ServiceFailed` if the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise ServiceFailed(f"the {self.name} ended with code {code}: {self._last_word()}")

    def wait_ready(self, timeout_s: float) -> None:
        """Return once its health endpoint says ready.

        Raises:
            ServiceFailed: it ended, or was not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.check()
            if answers(self._ready_url):
                return
            time.sleep(0.05)
        raise ServiceFailed(
            f"the {self.name} was not ready within {timeout_s:.0f} s: {self._last_word()}"
        )

    def peak_memory(self) -> int:
        """Most memory it ever held resident, in bytes; 0 where the system does not tell."""
        with contextlib.suppress(OSError, StopIteration, ValueError):
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            peak = next(line for line in lines if line.startswith("VmHWM"))
            return int(peak.split()[1]) * 1024
        return 0

    def anonymous_memory(self) -> int:
        """As the function of that name."""
        return anonymous_memory(self.pid)

    def written(self) -> int:
        """Bytes that it has handed to the system for writing; 0 where the system does not tell."""
        with contextlib.suppress(OSError, StopIteration, ValueError):
            lines = Path(f"/proc/{self.pid}/io").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("wchar")).split()[1])
        return 0

    def processor_s(self) -> float:
        """Processor time that all its threads have taken; 0 where the system does not tell."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            # Its name, which may hold anything, stands in parentheses.
            told = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def stop(self, patience_s: float = STOP_S) -> None:
        """End it: asked first, killed after ``patience_s``."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _last_word(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def anonymous_memory(pid: int) -> int:
    """Memory of a process's own, the mapped store's pages not counted, in bytes; 0 if not told."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        own = next(line for line in lines if line.startswith("RssAnon"))
        return int(own.split()[1]) * 1024
    return 0


def answers(url: str) -> bool:
    """Whether a GET of ``url`` gives 200 within a second."""
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310  # ours, http
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def free_port(preferred: int = 0) -> int:
    """``preferred`` if nothing listens there on 127.0.0.1, else any free port."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise ServiceFailed("no free port on 127.0.0.1: close some programs")
