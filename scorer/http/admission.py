"""Admission: ranking requests are taken on or refused by their heads, before any of them is read.

A refusal must cost next to nothing, or a scorer that is offered too much spends its time on saying
so. Hence it is decided here, in front of all routing, and its bytes are made once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.errors import RequestError
from infra.metrics import ScorerMetrics
from scorer.callers import this_caller
from scorer.http.body import Body, beginning_with
from scorer.limits import Refused
from scorer.traces import this_trace
from scorer.turns import LEVELS, NORMAL, Head, Reason, Turn, Turns, overdue, this_turn

TIMEOUTS: Final = {
    b"x-envoy-expected-rq-timeout-ms": "m",
    b"x-request-timeout-ms": "m",
    b"grpc-timeout": "",
}
"""Headers in which a sender tells in how much time it wants the answer, and the unit of their
numbers: what Envoy (and so Istio) sends along with its own route timeout, the same for whoever has
no Envoy, and gRPC's, whose value ends in its unit."""

UNITS_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

CLIENT: Final = b"x-client-id"
"""Header that tells who sends a request; without it the peer's address does. Of a caller whose
credential is valid, its name does."""

CLIENT_BYTES: Final = 64
"""How much of that counts."""

PRIORITY: Final = b"priority"
"""RFC 9218: "u=0" (most urgent) to "u=7"; 3 if it does not say."""

Refuse = Callable[[Request, RequestError], Awaitable[Response]]
"""The answer to a request that is refused."""


class Admission:
    """ASGI middleware in front of all routes: the ranking requests among those are taken on, or
    refused with 429; those taken on are passed on with their bodies read, and given up with 503 at
    their deadlines.
    """

    def __init__(
        self,
        app: ASGIApp,
        turns: Turns,
        scored: Mapping[str, BaseRoute],
        body: Body,
        refuse: Refuse,
        metrics: ScorerMetrics,
    ) -> None:
        """Stand in front of the routes.

        Args:
            turns: what the routes share.
            scored: the routes of ranking requests, by the end of their path.
            body: how bodies are read.
            refuse: the answer to a request that is refused for another reason than its turn.
            metrics: where refusals are counted.
        """
        self._app = app
        self._turns = turns
        self._scored = tuple(scored.items())
        self._body = body
        self._refuse = refuse
        self._rejected = {
            reason: metrics.rejected.labels(reason=reason)
            for reason in ("overload", "deadline", "client")
        }
        self._ready: dict[tuple[str, Reason, int], list[Message]] = {}
        """Refusals, as they are sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        for end, route in self._scored:
            if path.endswith(end) and scope["method"] == "POST":
                scope["route"] = route
                await self._admit(end, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _admit(self, end: str, scope: Scope, receive: Receive, send: Send) -> None:
        turns = self._turns
        head, waits = read_head(scope, end)
        deadline = turns.deadline(head)
        reason = turns.refuses(head, deadline)
        if reason is not None:
            # Whoever waits for a word would send no body, and what came next was read as one.
            await self._refused(reason, end, scope, send, close=waits)
            return
        taken: Turn | None = None
        sent = False

        async def send_noting(message: Message) -> None:
            # The answer exists; that its reader is slow must cost neither a turn nor the answer.
            nonlocal sent
            if not sent:
                sent = True
                if taken is not None:
                    turns.give_back(taken)
                timeout.reschedule(None)
            await send(message)

        timeout = asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - turns.now())
        try:
            async with timeout:
                body = await self._body.read(head.size, receive, waits=waits)
                if body is None:
                    return  # the client has gone
                taken = turns.take(head, deadline)
                this_turn.set(taken)
                if (trace := this_trace.get()) is not None:
                    trace.passed("admission")
                await self._app(scope, beginning_with(body, receive), send_noting)
        except TimeoutError:
            if not timeout.expired():
                raise
            error = self._body.slow() if taken is None else overdue(taken)
            await self._answer(error, scope, receive, send)
        except Refused as error:
            await self._answer(error, scope, receive, send)
        finally:
            if taken is not None and not sent:
                turns.give_back(taken)

    async def _answer(self, error: Refused, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._refuse(Request(scope), error)
        await response(scope, receive, send)

    async def _refused(
        self, reason: Reason, end: str, scope: Scope, send: Send, *, close: bool
    ) -> None:
        """Send a refusal; a body that comes all the same is the server's to drop."""
        retry_after_s = self._turns.retry_after_s
        kind = (end, reason, retry_after_s)
        messages = self._ready.get(kind)
        if messages is None:
            messages = self._ready[kind] = await self._messages(reason, scope)
        else:
            self._rejected[reason].inc()
        start, body = messages
        if close:
            start = {**start, "headers": [*start["headers"], (b"connection", b"close")]}
        await send(start)
        await send(body)

    async def _messages(self, reason: Reason, scope: Scope) -> list[Message]:
        messages: list[Message] = []

        async def collect(message: Message) -> None:
            messages.append(message)

        # It is sent to others, too, so it is made of nothing but the path.
        anybody = {"type": "http", "path": scope["path"], "headers": []}
        await self._answer(self._turns.refusal(reason), anybody, _nothing, collect)
        return messages


def read_head(scope: Scope, route: str) -> tuple[Head, bool]:
    """What a request's head tells, and whether its sender waits for a word before the body.

    >>> head, _ = read_head({"headers": [(b"grpc-timeout", b"50m"), (b"priority", b"u=1")]}, "/v1")
    >>> head.timeout_s, head.level
    (0.05, 0)
    """
    size, timeout_s, level, waits = 0, None, NORMAL, False
    peer = scope.get("client")
    client = peer[0] if peer else ""
    caller = this_caller.get()
    for name, value in scope["headers"]:
        if name == b"content-length":
            size = int(value) if value.isdigit() else 0
        elif name in TIMEOUTS:
            told = timeout_of(value.decode("latin-1") + TIMEOUTS[name])
            if told is not None:
                timeout_s = told if timeout_s is None else min(told, timeout_s)
        elif name == PRIORITY:
            level = level_of(value)
        elif name == CLIENT:
            client = value[:CLIENT_BYTES].decode("latin-1")
        elif name == b"expect":
            waits = True
    if caller is not None:
        client = caller.name
    return Head(route, size, timeout_s, level, client), waits


def timeout_of(text: str) -> float | None:
    """Seconds of a number and its unit, as gRPC has them; None: it is neither.

    >>> timeout_of("2S"), timeout_of("soon")
    (2.0, None)
    """
    unit = UNITS_S.get(text[-1:])
    if unit is None or not (text[:-1].isascii() and text[:-1].isdigit()) or len(text) > 13:
        return None
    return int(text[:-1]) * unit


def level_of(priority: bytes) -> int:
    """The level of a Priority header.

    >>> [level_of(b"u=%d" % urgency) for urgency in range(8)]
    [0, 0, 0, 1, 2, 2, 2, 2]
    """
    at = priority.find(b"u=")
    urgency = priority[at + 2 : at + 3] if at >= 0 else b"3"
    if not b"0" <= urgency <= b"7":
        return NORMAL
    return 0 if urgency < b"3" else NORMAL if urgency == b"3" else LEVELS - 1


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
