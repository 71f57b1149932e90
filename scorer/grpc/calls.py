"""What every call over gRPC goes through: it is named, counted, timed and traced, and its errors
get a status.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

import grpc
import grpc.aio
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from infra.errors import RequestError, StoreError, without_places
from infra.metrics import ScorerMetrics
from infra.telemetry import get_logger
from infra.tracing import TRACEPARENT, Attributes, Tracing
from scorer.grpc.identity import identify
from scorer.http.identity import REQUEST_ID
from scorer.limits import RETRY_AFTER_S, Refused
from scorer.traces import begin_trace

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")
Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Asked, Context], Awaitable[Answered]]

CODES: Final = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""HTTP's status of a refusal to gRPC's. All others say what is wrong with the request itself."""

CANCELLED: Final = 499
"""The status, for the metrics, of a call that its client has cancelled or whose deadline passed."""

PUSHBACK: Final = "grpc-retry-pushback-ms"
"""The trailer by which gRPC's own clients know when to try again, where their service config lets
them try at all."""

log = get_logger(__name__)


class _Failure(NamedTuple):
    status: int
    """As HTTP has it: the metrics count both protocols alike, and so do alerts."""
    code: grpc.StatusCode
    detail: str
    reason: str | None = None
    """For the metrics; None: it is our own fault."""
    retry_after_s: float | None = None

    @property
    def trailers(self) -> tuple[tuple[str, str], ...]:
        if self.retry_after_s is None:
            return ()
        return ((PUSHBACK, str(round(1000 * self.retry_after_s))),)


def reading(kind: Descriptor, method: Method[Asked, Answered]) -> Method[bytes, Answered]:
    """A method that reads its message itself. gRPC would answer one that is none with UNKNOWN, and
    log a traceback for it.
    """
    message = GetMessageClass(kind)

    async def read(data: bytes, context: Context) -> Answered:
        try:
            request = message.FromString(data)
        except DecodeError as error:
            told = str(error).rpartition(": ")[2]
            raise RequestError("message", f"is no {kind.full_name}: {told}") from None
        return await method(request, context)  # type: ignore[arg-type]  # of this kind

    return read


def counted(
    route: str,
    method: Method[Asked, Answered],
    metrics: ScorerMetrics,
    tracing: Tracing | None = None,
) -> Any:
    """A method as gRPC calls it: counted, timed, and with a status for whatever it raises.

    Args:
        route: the method's full name, the metrics' label.
        method: raises `RequestError`, `StoreError` or, by mistake, anything else.
        metrics: where it is counted.
        tracing: what makes a span of each call; None: nothing does.
    """
    seconds = metrics.request_seconds.labels(route=route)

    async def call(request: Asked, context: Context) -> Answered:
        started = time.perf_counter()
        status = CANCELLED
        metrics.inflight.inc()
        identity = identify(context.invocation_metadata() or ())
        own = [(REQUEST_ID, identity.request_id)]
        trace = None if tracing is None else begin_trace(tracing, identity.headers)
        if trace is not None:
            own.append((TRACEPARENT, trace.header))
        context.set_trailing_metadata(own)
        try:
            try:
                answer = await method(request, context)
            except Exception as error:  # whatever it is, as HTTP's last handler
                failure = _told(error)
                if failure.reason is None:
                    log.exception("grpc call failed", method=route)
            else:
                status = 200
                return answer
            status = failure.status
            if failure.reason is not None:
                metrics.rejected.labels(reason=failure.reason).inc()
            # Out of the handler: what is raised here would carry the error along, with all that its
            # frames hold, and grpcio keeps it until the next call comes.
            await context.abort(failure.code, failure.detail, (*own, *failure.trailers))
        finally:
            metrics.inflight.dec()
            metrics.requests.labels(route=route, status=str(status)).inc()
            seconds.observe(time.perf_counter() - started)
            if trace is not None:
                about: Attributes = {
                    "rpc.system": "grpc",
                    "rpc.method": route.removeprefix("/"),
                    # As HTTP has it, like the metrics.
                    "http.response.status_code": status,
                    "lifelong.request_id": identity.request_id,
                }
                trace.answered(route.removeprefix("/"), about, failed=status >= 500)

    return call


def _told(error: Exception) -> _Failure:
    """What a client is told of an error: which part of its request, and what of it, in one line."""
    if isinstance(error, Refused):
        code = CODES.get(error.status, grpc.StatusCode.INVALID_ARGUMENT)
        if (error.status, error.reason) == (503, "deadline"):  # HTTP has no word for that
            code = grpc.StatusCode.DEADLINE_EXCEEDED
        detail = f"{error.field} {error}"
        return _Failure(error.status, code, detail, error.reason, error.retry_after_s)
    if isinstance(error, RequestError):
        detail = f"{error.field} {error}"
        return _Failure(400, grpc.StatusCode.INVALID_ARGUMENT, detail, "malformed")
    if isinstance(error, StoreError):  # the ranker has logged it
        told = without_places(error)
        return _Failure(503, grpc.StatusCode.UNAVAILABLE, told, "store", RETRY_AFTER_S)
    detail = "the request failed inside the scorer; its log says why"
    return _Failure(500, grpc.StatusCode.INTERNAL, detail)
