"""Admission: how many rankings may wait, and for how long.

A scorer that queues without bound answers everybody too late. Here a request beyond the bound is
refused at once, while the client can still try another process.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scorer.limits import RETRY_AFTER_S, Refused


class Admission:
    """ASGI middleware: at most one request is scored and ``max_waiting`` wait, none of them past
    its deadline. Routes that share a scoring thread share one `Turns`.
    """

    def __init__(self, app: ASGIApp, turns: Turns) -> None:
        self._app = app
        self._turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        turns = self._turns
        turns.take()
        holding = True

        async def send_released(message: Message) -> None:
            # The answer exists; that its reader is slow must cost neither a turn nor the answer.
            nonlocal holding
            if holding:
                holding = False
                turns.give_back()
                timeout.reschedule(None)
            await send(message)

        timeout = asyncio.timeout(turns.deadline_s)
        try:
            async with timeout:
                await self._app(scope, receive, send_released)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise Refused(
                503,
                "deadline",
                "request",
                f"was not scored within {turns.deadline_s:g} s; the scorer is overloaded or its "
                "store is slow",
                RETRY_AFTER_S,
            ) from None
        finally:
            if holding:
                turns.give_back()


class Turns:
    """The count of admitted requests of one process. Used from its event loop only."""

    def __init__(self, max_waiting: int, deadline_s: float) -> None:
        self.max_waiting = max_waiting
        self.deadline_s = deadline_s
        self._taken = 0

    def take(self) -> None:
        """Admit a request, or raise `Refused` (503) when too many wait already."""
        if self._taken > self.max_waiting:
            raise Refused(
                503,
                "overload",
                "request",
                f"came while {self.max_waiting} others were waiting; add scorer processes or raise "
                "scorer.max_waiting",
                RETRY_AFTER_S,
            )
        self._taken += 1

    def give_back(self) -> None:
        """Note that an admitted request has its answer, or never will."""
        self._taken -= 1
