"""Which request is this: its id and its place in a trace, in the answer and on every log line.

``x-request-id`` is taken from whoever asks, or made, and answered. Of ``traceparent`` (W3C Trace
Context) the trace's id goes to the log; one is answered where the request has a span of its own
(`scorer.http.tracing`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from random import getrandbits
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

REQUEST_ID: Final = "x-request-id"

MAX_ID_CHARS: Final = 128
"""Longest request id that is taken over; ids in use are UUIDs or little more."""

_KEY: Final = "lifelong.request_id"
_HEADER: Final = REQUEST_ID.encode()

# A relative reference (RFC 3986) as it stands, and nothing that could break a line of a log.
_ID: Final = re.compile(rb"[A-Za-z0-9._~=+-][A-Za-z0-9._~=+/-]{0,%d}" % (MAX_ID_CHARS - 1))

# Version, trace id, parent id, flags; later versions than 00 may say more after that.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)


class RequestIdentity:
    """ASGI middleware: gives each request an id, binds it to the log, and answers it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given, traces = None, []
        for name, value in scope["headers"]:
            if name == _HEADER:
                given = value
            elif name == b"traceparent":
                traces.append(value)
        own = own_id(given)
        scope[_KEY] = own
        # A connection's next request may run in the context of the one before.
        clear_contextvars()
        trace = trace_id(traces)
        if trace is None:
            bind_contextvars(request_id=own)
        else:
            bind_contextvars(request_id=own, trace_id=trace)
        header = (_HEADER, own.encode("ascii"))

        async def send_identified(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self._app(scope, receive, send_identified)


def request_id(scope: Scope) -> str | None:
    """The id of a request; None: it has none yet."""
    return scope.get(_KEY)


def identity_of(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """The header that names a request with these, in its answer."""
    given = None
    for name, value in headers:
        if name == _HEADER:
            given = value
    return _HEADER, own_id(given).encode("ascii")


def own_id(given: bytes | None) -> str:
    """The id of a request: the one that it came with, if it is one, or another."""
    if given is not None and _ID.fullmatch(given):
        return given.decode("ascii")
    return f"{getrandbits(128):032x}"  # the system's own random numbers take ten times as long


def trace_id(traceparents: list[bytes]) -> str | None:
    """The id of the trace that a request is part of, if its header is valid and the only one.

    >>> trace_id([b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"])
    '0af7651916cd43dd8448eb211c80319c'
    >>> trace_id([b"00-00000000000000000000000000000000-b7ad6b7169203331-01"]) is None
    True
    """
    if len(traceparents) != 1:
        return None
    found = _TRACEPARENT.fullmatch(traceparents[0])
    if found is None or (found[1] == b"00" and found[3] is not None):
        return None
    return found[2].decode("ascii")
