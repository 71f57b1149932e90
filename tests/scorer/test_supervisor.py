"""Several processes behind one socket; each test starts them, so there are few."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Self

from infra.settings import BundleSettings, Settings
from scorer.client import RankClient
from tests.scorer.running import (
    WAIT_S,
    children,
    get,
    running,
    until,
    until_ready,
    with_processes,
)


def test_processes_share_a_port_and_the_dead_are_replaced(settings: Settings) -> None:
    settings = with_processes(settings, 2)
    url = f"http://127.0.0.1:{settings.scorer.port}"
    with running(settings) as process:
        until_ready(settings)
        until(lambda: len(children(process.pid)) == 2)
        victim = children(process.pid)[0]
        # The other one may be what answered.
        until(lambda: libraries(victim) == {"llvmlite", "onnxruntime"})
        assert libraries(process.pid) == set()
        for _ in range(20):
            with RankClient(url) as client:
                client.rank("u", ["item-1"])
        assert rankings_counted(settings) == 20

        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in children(process.pid) and len(children(process.pid)) == 2)
        until_ready(settings)
        # The dead process's counts stay in the sum.
        until(lambda: rankings_counted(settings) == 20)

        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in said
        assert '"exit_code": -9' in said or "exit_code=-9" in said or "died" in said


def test_clients_lose_nothing_by_an_exchange_and_by_a_death_their_own_requests_alone(
    settings: Settings,
) -> None:
    scorer = settings.scorer.model_copy(update={"processes": 2, "lame_duck_s": 5})
    settings = settings.model_copy(update={"scorer": scorer})
    with running(settings) as process, Said(process) as said:
        until(lambda: len(said.ready()) == 2)
        with Clients(settings, 4) as clients:
            clients.go_on()
            old = said.ready()[0]
            os.kill(old, signal.SIGTERM)
            until(lambda: old not in children(process.pid))
            until(lambda: len(said.ready()) == 3)
            clients.go_on()
            assert clients.lost == []

            os.kill(said.ready()[1], signal.SIGKILL)
            clients.go_on()
            assert len(clients.lost) <= 4
            del clients.lost[:]

            process.send_signal(signal.SIGTERM)
            clients.go_on()
            assert clients.lost == []
            assert get(settings, "/v2/health/ready")[0] == 503
        process.send_signal(signal.SIGTERM)  # nobody is there any more to wait for
        assert process.wait(timeout=WAIT_S) == 0
    assert "Traceback" not in said.text()


class Said:
    """What a scorer's processes log, read as they do."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._thread.join()

    def ready(self) -> list[int]:
        """The processes that have got ready, in order."""
        lines = [line for line in self._lines if '"scorer ready"' in line]
        return [json.loads(line)["pid"] for line in lines]

    def text(self) -> str:
        """All of it."""
        return "".join(self._lines)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line)


class Clients:
    """Threads that ask for rankings one after another, each in a connection that it keeps."""

    def __init__(self, settings: Settings, count: int) -> None:
        self.lost: list[str] = []
        self._port = settings.scorer.port
        self._answered = 0
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def go_on(self) -> None:
        """Wait for what shows that all of them are served."""
        enough = self._answered + 50 * len(self._threads)
        until(lambda: self._answered >= enough)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT_S)
        while not self._done.is_set():
            try:
                connection.request("POST", "/v1/rank", b'{"user": "u", "candidates": ["item-1"]}')
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.lost.append(str(answer.status))
                self._answered += 1
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                connection.close()
        connection.close()


def rankings_counted(settings: Settings) -> int:
    _, text = get(settings, "/metrics")
    lines = [
        line
        for line in text.splitlines()
        if line.startswith("lifelong_scorer_requests_total") and "/v1/rank" in line
    ]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines)


def test_processes_end_with_a_supervisor_that_is_killed(settings: Settings) -> None:
    with running(with_processes(settings, 2)) as process:
        until_ready(settings)
        until(lambda: len(children(process.pid)) == 2)
        orphans = children(process.pid)
        process.kill()
        process.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans))


def test_processes_that_cannot_load_end_the_supervisor(settings: Settings) -> None:
    nowhere = BundleSettings(path=Path("/nowhere"))
    broken = with_processes(settings, 2).model_copy(update={"bundle": nowhere})
    with running(broken) as process:
        _, said = process.communicate(timeout=WAIT_S)
        assert process.returncode == 1
        assert said.splitlines()[-1].startswith("error: there is no bundle at /nowhere")
        assert "Traceback" not in said


def libraries(pid: int) -> set[str]:
    """The libraries that rankings need, and a supervisor does not, in the memory of a process."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {name for name in ("llvmlite", "onnxruntime") if f"/{name}/" in maps}
