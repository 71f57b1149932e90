"""Which call this is: its id and its place in a trace, in its trailers and on every log line.

The same names as HTTP's headers have (`scorer.http.identity`): ``x-request-id`` is taken from
whoever calls, or made, and comes back; ``traceparent`` comes back where the call is traced.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from structlog.contextvars import bind_contextvars, clear_contextvars

from infra.tracing import TRACEPARENT, TRACESTATE
from scorer.http.identity import REQUEST_ID, own_id, trace_id


class Identity(NamedTuple):
    """What a call is known by."""

    request_id: str
    headers: dict[str, str]
    """What names the caller's span; nothing where that is not valid."""


NAMES: Final = frozenset({REQUEST_ID, TRACEPARENT, TRACESTATE})


def identify(metadata: Iterable[tuple[str, str | bytes]]) -> Identity:
    """Give a call an id, by what its caller tells of it, and bind it to the log."""
    found: dict[str, list[bytes]] = {name: [] for name in NAMES}
    for name, value in metadata:
        if name in NAMES:
            given = value if isinstance(value, bytes) else value.encode("latin-1", "replace")
            found[name].append(given)
    ids, parents = found[REQUEST_ID], found[TRACEPARENT]
    own = own_id(ids[-1] if ids else None)
    trace = trace_id(parents)
    clear_contextvars()
    if trace is None:
        bind_contextvars(request_id=own)
        return Identity(own, {})
    bind_contextvars(request_id=own, trace_id=trace)
    states = ",".join(state.decode("latin-1") for state in found[TRACESTATE])
    return Identity(own, {TRACEPARENT: parents[0].decode("ascii"), TRACESTATE: states})
