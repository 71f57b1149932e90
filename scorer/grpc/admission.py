"""Admission of rankings over gRPC: they take the same turns as those over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from scorer.callers import this_caller
from scorer.grpc.calls import Context
from scorer.http.gate import CLIENT, CLIENT_BYTES, PRIORITY, level_of
from scorer.limits import Refused
from scorer.traces import this_trace
from scorer.turns import NORMAL, Head, Turns, overdue, this_turn

PRIORITY_KEY: Final = PRIORITY.decode()
CLIENT_KEY: Final = CLIENT.decode()


@contextlib.asynccontextmanager
async def turn(turns: Turns, head: Head) -> AsyncIterator[None]:
    """A turn of one request, given back when the block is left.

    Past the deadline of its client gRPC itself cancels the call, and with it the ranking that still
    waits; past the scorer's own it is given up here.

    Raises:
        Refused: too much waits for it to be answered in time, or it waited too long.
    """
    if head.timeout_s is not None and head.timeout_s <= 0:
        raise Refused(503, "deadline", "request", "came after its own deadline")
    taken = turns.admit(head)
    this_turn.set(taken)
    if (trace := this_trace.get()) is not None:
        trace.passed("admission")
    timeout = asyncio.timeout(taken.deadline - turns.now())
    try:
        async with timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise overdue(taken) from None
    finally:
        turns.give_back(taken)


def read_head(context: Context, route: str, size: int) -> Head:
    """What a call tells of itself besides its message of ``size`` bytes, as HTTP's headers do."""
    level, client = NORMAL, None
    for name, value in context.invocation_metadata() or ():
        if name == PRIORITY_KEY:
            level = level_of(value if isinstance(value, bytes) else value.encode("latin-1"))
        elif name == CLIENT_KEY:
            client = str(value)[:CLIENT_BYTES]
    caller = this_caller.get()
    if caller is not None:
        client = caller.name
    elif client is None:  # ipv4:127.0.0.1:34567
        client = context.peer().rpartition(":")[0].partition(":")[2]
    return Head(route, size, context.time_remaining(), level, client)
