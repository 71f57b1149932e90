"""The worker's health: whether it lives and is ready, and the HTTP endpoints that tell."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CollectorRegistry

from infra.errors import SettingsError
from infra.metrics import exposition
from infra.settings import Settings
from infra.telemetry import get_logger

log: Final = get_logger(__name__)


@dataclass(slots=True)
class Health:
    """Whether the worker lives and is ready, and why not. Written in the loop, read anywhere."""

    stall_s: float
    seen_at: float = field(default_factory=time.monotonic)
    """When the worker last moved, or had a good reason not to; monotonic seconds."""
    obstacles: dict[str, str] = field(default_factory=lambda: {"start": "starting"})
    """What keeps it from being ready, by part."""
    warnings: dict[str, str] = field(default_factory=dict)
    """What a person should know of a worker that is ready all the same, by part."""

    def warned(self, part: str, what: str | None) -> None:
        """Note what is odd about a part; None: nothing any more. For any one thread."""
        others = {name: said for name, said in self.warnings.items() if name != part}
        self.warnings = others if what is None else others | {part: what}

    def blocked(self, part: str, why: str) -> None:
        """Note that a part is away, and why; logged when it was not before."""
        if part not in self.obstacles:
            log.warning("away, waiting", part=part, reason=why)
        self.obstacles = self.obstacles | {part: why}

    def cleared(self, part: str) -> None:
        """Note that a part is there; logged when it was away."""
        if part in self.obstacles:
            self.obstacles = {name: why for name, why in self.obstacles.items() if name != part}
            if part != "start":
                log.info("back", part=part)

    def stopping(self) -> None:
        """Be not ready from now on: nothing is taken any more."""
        self.obstacles = self.obstacles | {"worker": "stopping"}

    def alive(self) -> bool:
        """False once nothing has moved for `stall_s` although it should have.

        Judged by the clock of whoever asks, so that a loop that is stuck is found out too.
        """
        return time.monotonic() - self.seen_at < self.stall_s

    def ready(self) -> bool:
        """Whether events are being taken and stored."""
        return not self.obstacles and self.alive()


@contextlib.contextmanager
def serve_health(settings: Settings, registry: CollectorRegistry, health: Health) -> Iterator[int]:
    """Answer /metrics, /health/live and /health/ready in a thread of its own.

    Not in the worker's loop: whether that is stuck is one of the things asked for. Yields the port.
    """
    host, port = settings.worker.metrics_host, settings.worker.metrics_port
    handler = type("Handler", (_Handler,), {"registry": registry, "health": health})
    try:
        server = _Server((host, port), handler)
    except OSError as error:
        raise SettingsError(
            f"worker.metrics_port = {port}: cannot listen on {host}:{port} ({error.strerror});"
            " choose another port, 0 for any free one"
        ) from None
    server.daemon_threads = True
    # The pause after which it looks whether to end: a worker's end need not wait half a second.
    serve = partial(server.serve_forever, poll_interval=0.1)
    thread = threading.Thread(target=serve, name="health", daemon=True)
    thread.start()
    log.info("worker listens", url=f"http://{host}:{server.server_port}")
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a probe that did not wait for its answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers the three paths; a subclass with its two attributes set serves one worker."""

    registry: CollectorRegistry
    health: Health

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/metrics":
                body, kind = exposition(self.registry)
                self._answer(200, body, kind)
            case "/health/live":
                self._answer_health(self.health.alive(), {"worker": "no progress"}, {})
            case "/health/ready":
                health = self.health
                self._answer_health(health.ready(), health.obstacles, health.warnings)
            case _:
                self._answer_json(404, {"error": "there are /metrics, /health/live, /health/ready"})

    def _answer_health(
        self, good: bool, obstacles: dict[str, str], warnings: dict[str, str]
    ) -> None:
        said: dict[str, Any] = {"status": "ok"}
        if not good:
            said = {"status": "unavailable", "because": obstacles}
        if warnings:
            said["warnings"] = warnings
        self._answer_json(200 if good else 503, said)

    def _answer_json(self, status: int, content: dict[str, Any]) -> None:
        self._answer(status, json.dumps(content).encode() + b"\n", "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        """Log nothing: probes come every few seconds."""
