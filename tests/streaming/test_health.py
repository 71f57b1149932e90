"""The worker's health: what it is judged by, and what the endpoints say of it."""

from __future__ import annotations

import json
import socket
import struct
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from infra.errors import SettingsError
from infra.metrics import WorkerMetrics
from infra.settings import Settings
from streaming.health import Health, serve_health


def healthy() -> Health:
    health = Health(stall_s=60)
    health.cleared("start")
    return health


def answer(port: int, path: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as found:
            return found.status, found.headers["Content-Type"], found.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_a_new_worker_lives_but_is_not_ready() -> None:
    health = Health(stall_s=60)

    assert health.alive()
    assert not health.ready()


def test_a_part_that_is_away_makes_the_worker_unready_until_it_is_back() -> None:
    health = healthy()
    health.blocked("store", "no room")
    assert not health.ready()

    health.cleared("store")
    assert health.ready()


def test_without_progress_the_worker_is_neither_live_nor_ready() -> None:
    health = healthy()
    health.seen_at = time.monotonic() - 61

    assert not health.alive()
    assert not health.ready()


def test_the_endpoints_tell_health_and_metrics() -> None:
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    health = healthy()
    settings = Settings.model_validate({"worker": {"metrics_port": 0}})

    with serve_health(settings, registry, health) as port:
        assert answer(port, "/health/live")[0] == 200
        assert answer(port, "/health/ready?verbose=1")[0] == 200
        health.blocked("store", "no room")
        status, kind, body = answer(port, "/health/ready")
        assert (status, kind) == (503, "application/json")
        assert json.loads(body)["because"] == {"store": "no room"}
        assert answer(port, "/health/live")[0] == 200
        status, kind, body = answer(port, "/metrics")
        assert status == 200
        assert kind.startswith("text/plain")
        assert "lifelong_worker_events_total" in body
        assert answer(port, "/")[0] == 404


def test_a_probe_that_does_not_wait_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    settings = Settings.model_validate({"worker": {"metrics_port": 0}})
    with serve_health(settings, CollectorRegistry(), healthy()) as port:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
                # Closed with a reset, before the answer is written.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                probe.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(port, "/health/live")[0] == 200

    assert "Traceback" not in capfd.readouterr().err


def test_a_port_in_use_is_an_error_of_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings.model_validate({"worker": {"metrics_port": port}})

        with (
            pytest.raises(SettingsError, match=rf"worker.metrics_port = {port}: cannot listen"),
            serve_health(settings, CollectorRegistry(), healthy()),
        ):
            pass
