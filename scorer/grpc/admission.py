"""Admission of rankings over gRPC: they take the same turns as those over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

from scorer.limits import RETRY_AFTER_S, Refused


class Turns(Protocol):
    """The admitted requests of one process, over HTTP as well (`scorer.http.admission.Turns`)."""

    deadline_s: float

    def take(self) -> None:
        """Admit a request, or raise `Refused`."""

    def give_back(self) -> None:
        """Note that an admitted request has its answer, or never will."""


@contextlib.asynccontextmanager
async def turn(turns: Turns, left_s: float | None) -> AsyncIterator[None]:
    """A turn of one request, given back when the block is left.

    Args:
        turns: where it is taken.
        left_s: seconds in which the client wants its answer; None: it does not say. Once they have
            passed, gRPC itself cancels the call, and with it the ranking that still waits.

    Raises:
        Refused: too many requests wait, or this one waited too long.
    """
    if left_s is not None and left_s <= 0:
        raise Refused(503, "deadline", "request", "came after its own deadline")
    turns.take()
    timeout = asyncio.timeout(turns.deadline_s)
    try:
        async with timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise Refused(
            503,
            "deadline",
            "request",
            f"was not scored within {turns.deadline_s:g} s; the scorer is overloaded or its store "
            "is slow",
            RETRY_AFTER_S,
        ) from None
    finally:
        turns.give_back()
