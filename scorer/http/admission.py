"""Admission: what the gate lets through has its body read and gets its turn, until its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scorer.callers import this_caller
from scorer.http.body import Body, beginning_with
from scorer.http.gate import Gate, Judged, Refusal, mark_of, send_refusal
from scorer.http.problems import Refuse
from scorer.limits import Refused
from scorer.traces import this_trace
from scorer.turns import Turn, overdue, this_turn


class Admission:
    """ASGI middleware in front of all routes: of the ranking requests among those, what the gate
    has not judged yet is judged, and refused with 429; the others are passed on with their bodies
    read, and given up with 503 at their deadlines.
    """

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        scored: Mapping[str, BaseRoute],
        body: Body,
        refuse: Refuse,
    ) -> None:
        """Stand in front of the routes.

        Args:
            gate: decides.
            scored: the routes of ranking requests, by the end of their path.
            body: how bodies are read.
            refuse: the answer to a request that is refused for another reason than its turn.
        """
        self._app = app
        self._gate = gate
        self._turns = gate.turns
        self._scored = scored
        self._body = body
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        end = self._gate.end_of(scope.get("path", ""))
        if end is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["route"] = self._scored[end]
        judged = mark_of(scope)
        if judged is None:
            caller = this_caller.get()
            peer = scope.get("client")
            found = self._gate.judge(end, scope["path"], scope["headers"], peer, caller)
            if isinstance(found, Refusal):
                await send_refusal(found, send)
                return
            judged = found
        await self._admit(judged, scope, receive, send)

    async def _admit(self, judged: Judged, scope: Scope, receive: Receive, send: Send) -> None:
        turns, (head, deadline, waits) = self._turns, judged
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
