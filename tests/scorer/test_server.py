"""The scorer as a process; each test starts one, so there are few and they test much."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.behaviors import Source, item_key, pack_behavior
from infra.errors import BundleCorrupt, BundleMissing, SettingsError
from infra.settings import BundleSettings, ScorerSettings, Settings, StoreSettings
from infra.store import Append
from infra.stores import open_store
from scorer.client import RankClient, ScorerUnavailable
from scorer.server import listen, run_scorer
from tests.scorer.conftest import NOW_MS, bundle_directory

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


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An LMDB store with user "u", a tiny bundle, and a port that is free."""
    settings = Settings(
        store=StoreSettings(url=f"lmdb://{tmp_path / 'store'}"),
        bundle=BundleSettings(path=bundle_directory(tmp_path)),
        scorer=ScorerSettings(port=free_port()),
    )
    store = open_store(settings.store)
    behavior = pack_behavior(item_key("item-1"), NOW_MS, 0, 0, 2)
    store.append(Source(1, 1), [Append("u", [behavior], [0], [0])], NOW_MS)
    store.close()
    return settings


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


def test_a_scorer_answers_and_finishes_what_is_under_way_at_sigterm(settings: Settings) -> None:
    with running(settings) as process:
        until_ready(settings)
        with RankClient(f"http://127.0.0.1:{settings.scorer.port}") as client:
            assert client.rank("u", ["item-1", "item-2"]).history == "sequence"

        body = b'{"user": "u", "candidates": ["item-1"]}'
        late = socket.create_connection(("127.0.0.1", settings.scorer.port), timeout=10)
        with late:
            late.sendall(
                b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body[:10])
            )
            time.sleep(0.2)  # for the first half to have arrived
            process.send_signal(signal.SIGTERM)
            until_refused(settings)
            late.sendall(body[10:])
            assert late.recv(65_536).startswith(b"HTTP/1.1 200")
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in said


def test_a_store_that_is_away_at_the_start_is_waited_for(settings: Settings) -> None:
    away = StoreSettings(url=f"aerospike://127.0.0.1:{free_port()}/lifelong")
    with running(settings.model_copy(update={"store": away})) as process:
        until(lambda: "the store does not answer" in get(settings, "/v2/health/ready")[1])
        assert get(settings, "/v2/health/ready")[0] == 503
        assert get(settings, "/v2/health/live")[0] == 200
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in said


def until_refused(settings: Settings) -> None:
    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", settings.scorer.port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        return False

    until(refused)


def test_processes_share_a_port_and_the_dead_are_replaced(settings: Settings) -> None:
    settings = with_processes(settings, 2)
    url = f"http://127.0.0.1:{settings.scorer.port}"
    with running(settings) as process:
        until_ready(settings)
        until(lambda: len(children(process.pid)) == 2)
        victim = children(process.pid)[0]
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


def rankings_counted(settings: Settings) -> int:
    _, text = get(settings, "/metrics")
    lines = [
        line
        for line in text.splitlines()
        if line.startswith("lifelong_scorer_requests_total") and "/v1/rank" in line
    ]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines)


def children(pid: int) -> list[int]:
    """The scorer processes of a supervisor (its other child is Python's resource tracker)."""
    found = []
    for task in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((task / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (task / "cmdline").read_bytes():
                found.append(int(task.name))
    return sorted(found)


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


def test_a_port_in_use_is_one_line(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", settings.scorer.port)):
        with pytest.raises(SettingsError, match=r"scorer\.port = \d+: cannot listen") as error:
            run_scorer(settings)
        assert "\n" not in str(error.value)


def test_an_address_of_another_machine_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"scorer\.host = '192\.0\.2\.1'"):
        listen(ScorerSettings(host="192.0.2.1", port=0))


def test_a_host_without_an_address_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"scorer\.host = 'no\.such\.host\.invalid'"):
        listen(ScorerSettings(host="no.such.host.invalid", port=0))


def test_a_missing_bundle_ends_the_scorer(settings: Settings) -> None:
    nowhere = BundleSettings(path=Path("/nowhere"))
    with pytest.raises(BundleMissing, match="/nowhere"):
        run_scorer(settings.model_copy(update={"bundle": nowhere}))


def test_a_damaged_bundle_ends_the_scorer(settings: Settings) -> None:
    assert settings.bundle.path is not None
    (settings.bundle.path / "scorer.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleCorrupt, match=r"scorer\.onnx"):
        run_scorer(settings)


def test_signal_handlers_are_put_back(settings: Settings) -> None:
    before = signal.getsignal(signal.SIGTERM)
    nowhere = BundleSettings(path=Path("/nowhere"))
    with pytest.raises(BundleMissing):
        run_scorer(settings.model_copy(update={"bundle": nowhere}))
    assert signal.getsignal(signal.SIGTERM) is before
    assert not [thread for thread in threading.enumerate() if thread.name == "loading"]
