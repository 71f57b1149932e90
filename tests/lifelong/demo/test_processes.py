from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lifelong.demo.processes import ServiceFailed, ServiceProcess, answers, free_port

NOBODY = "http://127.0.0.1:9/"
READY_S = 60.0


@pytest.fixture(scope="module")
def url() -> str:
    return f"http://127.0.0.1:{free_port()}/health/live"


@pytest.fixture(scope="module")
def worker(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A worker without a Kafka: alive, and never ready."""
    directory = tmp_path_factory.mktemp("worker")
    with ServiceProcess(
        "worker", worker_arguments(url, directory), directory / "log", url
    ) as service:
        yield service


def worker_arguments(url: str, directory: Path) -> list[str]:
    port = str(urlsplit(url).port)
    where = ["--bootstrap", "127.0.0.1:9", "--store", f"lmdb://{directory / 'store'}"]
    return ["worker", "--metrics-port", port, *where]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def test_a_service_is_ready_when_its_endpoint_says_so(worker: ServiceProcess, url: str) -> None:
    worker.wait_ready(READY_S)

    assert answers(url)
    worker.check()


def test_what_it_holds_in_memory_is_told(worker: ServiceProcess) -> None:
    worker.wait_ready(READY_S)

    assert 1_000_000 < worker.anonymous_memory() <= worker.peak_memory()


def test_a_service_that_ends_is_told_with_its_last_word(tmp_path: Path) -> None:
    free_port = ["--set", "worker.metrics_port=0"]
    arguments = ["worker", "--bundle", str(tmp_path / "nowhere"), *free_port]
    service = ServiceProcess("worker", arguments, tmp_path / "log", NOBODY)

    with service, pytest.raises(ServiceFailed, match=r"worker ended with code 1: .*nowhere"):
        service.wait_ready(READY_S)


def test_a_service_that_is_not_ready_in_time_is_told(tmp_path: Path) -> None:
    service = ServiceProcess("scorer", ["scorer", "--help"], tmp_path / "log", NOBODY)

    with service, pytest.raises(ServiceFailed, match="not ready within 0 s"):
        service.wait_ready(0)


def test_stop_ends_a_service_and_may_be_repeated(tmp_path: Path, url: str) -> None:
    arguments = ["broker", "--kind", "mock", "--port", "0", "--directory", str(tmp_path / "kafka")]
    service = ServiceProcess("broker", arguments, tmp_path / "log", NOBODY)

    service.stop()
    service.stop()

    assert not is_running(service.pid)


def test_stop_kills_a_service_that_does_not_listen(tmp_path: Path) -> None:
    service = ServiceProcess("worker", ["worker", "--help"], tmp_path / "log", NOBODY)
    os.kill(service.pid, signal.SIGSTOP)  # SIGTERM stays pending now

    service.stop(patience_s=0.2)

    assert not is_running(service.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' parent death signal")
def test_a_service_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/health/live"
    start = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from lifelong.demo.processes import ServiceProcess\n"
        "log, url, *arguments = sys.argv[1:]\n"
        "service = ServiceProcess('worker', arguments, Path(log), url)\n"
        f"service.wait_ready({READY_S})\n"
        "print(service.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", start, str(tmp_path / "log"), url]
    with subprocess.Popen(
        [*command, *worker_arguments(url, tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()

    assert wait_until_gone(child)


def test_nobody_answers_where_nothing_listens() -> None:
    assert not answers(NOBODY)


def test_a_preferred_port_is_taken_if_it_is_free() -> None:
    port = free_port()

    assert free_port(port) == port


def test_another_port_is_found_for_one_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        assert free_port(taken.getsockname()[1]) not in {0, taken.getsockname()[1]}
