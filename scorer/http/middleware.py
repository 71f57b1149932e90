"""ASGI middleware of the scorer, one job each (admission has a file of its own)."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.metrics import ScorerMetrics
from scorer.limits import Refused

BODY_TIMEOUT_S: Final = 10.0
"""Time a body may take to arrive. It only has to outlast slow networks; whoever dribbles bytes on
purpose holds no more than a socket."""

DISCARD_BYTES: Final = 16 * 1_048_576
"""How much of a body that is too large is read and dropped, so that its sender, who reads no
answer before having sent everything, gets the 413 instead of a reset connection."""


CLIENT_GONE: Final = 499
"""Counted as the status of a request whose client left before its answer, as nginx does."""


class BodyLimit:
    """Takes in the whole body before anything else is spent on the request.

    Raises `Refused`: 413 for a body beyond ``max_bytes``, whether announced or not; 408 for one
    that does not arrive in time.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self._max_bytes and "expect" in headers:
            raise self._too_large()  # the sender waits for a word before sending
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(receive)
        except TimeoutError:
            raise Refused(
                408, "slow_body", "body", f"did not arrive within {self._timeout_s:g} s"
            ) from None
        if body is None:
            return  # the client has gone

        async def receive_body() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message: Message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message

        await self._app(scope, receive_body, send)

    async def _read(self, receive: Receive) -> bytes | None:
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size <= self._max_bytes:
                chunks.append(chunk)
            elif size > self._max_bytes + DISCARD_BYTES:
                raise self._too_large()
            if not message.get("more_body", False):
                break
        if size > self._max_bytes:
            raise self._too_large()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self) -> Refused:
        return Refused(413, "body_too_large", "body", f"is larger than {self._max_bytes} bytes")


class RequestMetrics:
    """Counts and times every request by the route's template, never by the path as sent."""

    def __init__(self, app: ASGIApp, metrics: ScorerMetrics) -> None:
        self._app = app
        self._metrics = metrics

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
            self._metrics.requests.labels(route=route, status=str(status)).inc()
            self._metrics.request_seconds.labels(route=route).observe(time.perf_counter() - started)
