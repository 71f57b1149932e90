"""Traces over HTTP: a ranking is part of its sender's trace, and its answer names the span."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.tracing import TRACEPARENT, TRACESTATE, Attributes, Tracing
from scorer.http.identity import request_id, trace_id
from scorer.http.middleware import CLIENT_GONE
from scorer.traces import begin_trace, this_trace

PARENT: Final = TRACEPARENT.encode()
STATE: Final = TRACESTATE.encode()


class RequestTracing:
    """ASGI middleware in front of admission: begins the trace of a ranking request, ends it with
    the answer's status, and answers its ``traceparent``. Where nothing is traced it is not there.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing, scored: Collection[str]) -> None:
        """Stand in front of the routes.

        Args:
            tracing: makes the spans.
            scored: how the paths of ranking requests end.
        """
        self._app = app
        self._tracing = tracing
        self._scored = tuple(scored)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope.get("path", "").endswith(self._scored) or scope.get("method") != "POST":
            await self._app(scope, receive, send)
            return
        trace = begin_trace(self._tracing, _headers(scope))
        if trace is None:
            await self._app(scope, receive, send)
            return
        status, header = 500, (PARENT, trace.header.encode())

        async def send_traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        try:
            await self._app(scope, receive, send_traced)
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        finally:
            this_trace.set(None)
            route = getattr(scope.get("route"), "path", "unmatched")
            about: Attributes = {
                "http.request.method": "POST",
                "http.route": route,
                "http.response.status_code": status,
                "network.protocol.version": scope.get("http_version", ""),
                "lifelong.request_id": request_id(scope) or "",
            }
            trace.answered(f"POST {route}", about, failed=status >= 500)


def _headers(scope: Scope) -> dict[str, str]:
    """What names the sender's span; nothing where that is not valid."""
    parents = [value for name, value in scope["headers"] if name == PARENT]
    if trace_id(parents) is None:
        return {}
    states = [value.decode("latin-1") for name, value in scope["headers"] if name == STATE]
    return {TRACEPARENT: parents[0].decode("ascii"), TRACESTATE: ",".join(states)}
