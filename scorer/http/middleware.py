"""ASGI middleware of the scorer (admission has a file of its own)."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.metrics import ScorerMetrics

CLIENT_GONE: Final = 499
"""Counted as the status of a request whose client left before its answer, as nginx does."""


class RequestMetrics:
    """Counts and times every request by the route's template, never by the path as sent."""

    def __init__(self, app: ASGIApp, metrics: ScorerMetrics) -> None:
        self._app = app
        self._metrics = metrics
        # Found once: looking them up by their labels takes longer than counting.
        self._requests: dict[tuple[str, int], Counter] = {}
        self._seconds: dict[str, Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500  # of an answer that never begins

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.inflight.inc()
        try:
            await self._app(scope, receive, send_noting_status)
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        finally:
            self._metrics.inflight.dec()
            route = getattr(scope.get("route"), "path", "unmatched")
            self._observe(route, status, time.perf_counter() - started)

    def _observe(self, route: str, status: int, seconds: float) -> None:
        requests = self._requests.get((route, status))
        if requests is None:
            requests = self._metrics.requests.labels(route=route, status=str(status))
            self._requests[route, status] = requests
            self._seconds[route] = self._metrics.request_seconds.labels(route=route)
        requests.inc()
        self._seconds[route].observe(seconds)
