"""The gate: rankings are taken on or refused by their heads, before there is a task for them.

A refusal must cost next to nothing, or a scorer that is offered too much spends its time on saying
so. Through middleware and tasks it costs as much as an empty answer, a fifth of a small ranking. So
a connection asks the gate as soon as a head has come, and what it is to send is bytes made before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from starlette.types import Scope, Send

from infra.metrics import ScorerMetrics
from scorer.access import Access
from scorer.callers import Caller
from scorer.http.access import read_credential
from scorer.http.identity import identity_of
from scorer.http.problems import problem
from scorer.turns import LEVELS, NORMAL, Head, Reason, Turns

SCORED: Final[Mapping[str, str]] = {
    "/v1/rank": "/v1/rank",
    "/infer": "/v2/models/{name}/infer",
}
"""The routes of ranking requests, by the end of their paths."""

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

_JUDGED: Final = "lifelong.judged"

Headers = list[tuple[bytes, bytes]]


class Refusal(NamedTuple):
    """An answer to a request that is not taken on."""

    status: int
    headers: Headers
    body: bytes
    closes: bool = False
    """Whether the connection is to end with it."""


class Judged(NamedTuple):
    """A request that the gate has let through."""

    head: Head
    deadline: float
    """Seconds of the turns' clock."""
    waits: bool
    """Whether its sender waits for a word before sending the body."""


class Gate:
    """Decides over the ranking requests of a process, each once. Used from its event loop only."""

    def __init__(
        self,
        turns: Turns,
        metrics: ScorerMetrics,
        access: Access | None = None,
        *,
        traced: bool = False,
    ) -> None:
        """Open the gate.

        Args:
            turns: what all routes and protocols of the process share.
            metrics: where refusals are counted.
            access: what tells callers; None: nobody is asked who they are.
            traced: whether there are traces, which hold requests that are refused, too, where their
                senders record them.
        """
        self.turns: Final = turns
        self._access = access
        self._traced = traced
        self._made: dict[tuple[bool, Reason, int], Refusal] = {}
        """Refusals, but for what names their requests."""
        self._ends = tuple(SCORED)
        self._counted = {
            end: (
                metrics.requests.labels(route=route, status="429"),
                metrics.request_seconds.labels(route=route),
            )
            for end, route in SCORED.items()
        }
        self._rejected = {
            reason: metrics.rejected.labels(reason=reason)
            for reason in ("overload", "deadline", "client")
        }

    def at_head(
        self, method: str, target: bytes, headers: Headers, peer: tuple[str, int] | None
    ) -> Judged | Refusal | None:
        """What becomes of a request, known by its head alone.

        Args:
            method, target: of its first line.
            headers: names in lower case.
            peer: the address that it came from.

        Returns:
            A refusal is complete and counted, and to be sent; what is judged is to be marked
            (`mark`), so that it is not judged again. None: the application finds out.
        """
        if method != "POST" or target[:1] != b"/":
            return None
        path = target.partition(b"?")[0].decode("latin-1")
        end = self.end_of(path)
        if end is None or (self._traced and _is_sampled(headers)):
            return None
        caller = None
        if self._access is not None:
            caller = self._access.known(read_credential(headers)[0])
            if caller is None:
                return None
        began = time.perf_counter()
        judged = self.judge(end, path, headers, peer, caller)
        if isinstance(judged, Judged):
            # Its task begins in this turn of the loop, and takes it on if its body is there.
            asyncio.get_running_loop().call_soon(self.turns.expect(judged.head))
            return judged
        requests, seconds = self._counted[end]
        requests.inc()
        seconds.observe(time.perf_counter() - began)
        return judged._replace(headers=[*judged.headers, identity_of(headers)])

    def end_of(self, path: str) -> str | None:
        """Which of `SCORED` a path has; None: it is none of a ranking."""
        for end in self._ends:
            if path.endswith(end):
                return end
        return None

    def judge(
        self,
        end: str,
        path: str,
        headers: Headers,
        peer: tuple[str, int] | None,
        caller: Caller | None,
    ) -> Judged | Refusal:
        """Take a ranking request on, or refuse it, which is counted by its reason."""
        head, waits = read_head(headers, end, peer, caller)
        deadline = self.turns.deadline(head)
        reason = self.turns.refuses(head, deadline)
        if reason is None:
            return Judged(head, deadline, waits)
        self._rejected[reason].inc()
        refusal = self._refusal(path, reason)
        # Whoever waits for a word would send no body, and what came next was read as one.
        return refusal._replace(closes=True) if waits else refusal

    def _refusal(self, path: str, reason: Reason) -> Refusal:
        below_v2 = path.startswith("/v2/")
        retry_after_s = self.turns.retry_after_s
        made = self._made.get((below_v2, reason, retry_after_s))
        if made is None:
            # It is sent to others, too, so it is made of nothing but the form of its path.
            told = self.turns.refusal(reason)
            response = problem(
                {"path": "/v2/" if below_v2 else "/"},
                told.status,
                told.reason,
                f"{told.field} {told}",
                told.field,
                told.retry_after_s,
            )
            made = Refusal(response.status_code, response.raw_headers, bytes(response.body))
            self._made[below_v2, reason, retry_after_s] = made
        return made


def mark(scope: Scope, judged: Judged) -> None:
    """Have the application know that a request has been judged."""
    scope[_JUDGED] = judged


def mark_of(scope: Scope) -> Judged | None:
    """What the gate said of a request at its head; None: nothing."""
    return scope.get(_JUDGED)


async def send_refusal(refusal: Refusal, send: Send) -> None:
    """Send what the gate has made; a body that comes all the same is the server's to drop."""
    headers = refusal.headers
    if refusal.closes:
        headers = [*headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": refusal.body})


def read_head(
    headers: Headers, route: str, peer: tuple[str, int] | None = None, caller: Caller | None = None
) -> tuple[Head, bool]:
    """What a request's head tells, and whether its sender waits for a word before the body.

    >>> head, _ = read_head([(b"grpc-timeout", b"50m"), (b"priority", b"u=1")], "/v1")
    >>> head.timeout_s, head.level
    (0.05, 0)
    """
    size, timeout_s, level, waits = 0, None, NORMAL, False
    client = peer[0] if peer else ""
    for name, value in headers:
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


def _is_sampled(headers: Headers) -> bool:
    """Whether a request is part of a trace that is recorded, so that its refusal is, too."""
    return any(name == b"traceparent" and value[-1:] in b"13579bdf" for name, value in headers)
