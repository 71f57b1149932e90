"""What the tests of a running scorer share: a process, its answers, and patience with an end."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from infra.settings import Settings
from scorer.client import ScorerUnavailable

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
"""A scorer is ready in 2 s, but these machines may have much else to do."""

MAIN = """
import sys
from infra.errors import LifelongError
from infra.settings import Settings
from scorer.server import run_scorer
if __name__ == "__main__":
    try:
        run_scorer(Settings.model_validate_json(sys.argv[1]))
    except LifelongError as error:
        sys.exit(f"error: {error}")
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def with_processes(settings: Settings, processes: int) -> Settings:
    scorer = settings.scorer.model_copy(update={"processes": processes})
    return settings.model_copy(update={"scorer": scorer})


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, settings.model_dump_json()],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def get(settings: Settings, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", settings.scorer.port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException, ScorerUnavailable):
            if condition():
                return
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def until_ready(settings: Settings) -> None:
    until(lambda: get(settings, "/v2/health/ready")[0] == 200)


def until_refused(settings: Settings) -> None:
    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", settings.scorer.port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        return False

    until(refused)


def children(pid: int) -> list[int]:
    """The scorer processes of a supervisor (its other child is Python's resource tracker)."""
    found = []
    for task in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((task / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (task / "cmdline").read_bytes():
                found.append(int(task.name))
    return sorted(found)
