"""What an answer says when something is wrong, in the form that the asked route's clients expect.

Below /v2 it is the Open Inference Protocol's ``{"error": "..."}``, everywhere else problem details
(RFC 9457), whose ``type`` is the path under which this scorer tells about that kind of problem.
Answers name kinds and fields; addresses, paths and tracebacks are for the log alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from infra.errors import RequestError, StoreError, without_places
from infra.metrics import ScorerMetrics
from scorer.http.identity import REQUEST_ID, request_id
from scorer.limits import RETRY_AFTER_S, SHOWN_CHARS, Refused
from scorer.messages import Problem

JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"
CHALLENGE: Final = "Bearer"
"""What 401 asks for (RFC 6750)."""
PROBLEMS: Final = "/problems/"
"""Where the kinds of problems are told about."""


class Kind(NamedTuple):
    """One kind of problem, as people read of it."""

    title: str
    """What the kind is called, the same in all answers."""
    advice: str
    """What whoever asked can do."""


KINDS: Final[Mapping[str, Kind]] = {
    "malformed": Kind(
        "The request is malformed",
        "Correct the field that the answer names; the same request fails again.",
    ),
    "content_type": Kind(
        "The body is of another type",
        "Send JSON, uncompressed, with Content-Type: application/json.",
    ),
    "body_too_large": Kind(
        "The body is too large",
        "Send fewer candidates in one request, and text as UTF-8 without escapes; or raise "
        "scorer.max_body_bytes.",
    ),
    "slow_body": Kind("The body came too slowly", "Send the whole body at once."),
    "unknown_items": Kind(
        "Candidates are unknown",
        'Leave them out, or ask with unknown_items "score" or "last".',
    ),
    "unknown_model": Kind("Another model is served", "Ask for the model that the answer names."),
    "not_found": Kind("Nothing is there", "See /docs for what is served."),
    "method": Kind("The method is not allowed", "Use one of those in the header Allow."),
    "unauthenticated": Kind(
        "Who asks is not known",
        "Send a key that is in the scorer's file of keys, as Authorization: Bearer KEY or as "
        "x-api-key.",
    ),
    "forbidden": Kind(
        "The caller may not ask for that",
        "Ask with a key that has the scope that the answer names.",
    ),
    "rate": Kind(
        "The caller asks too often",
        "Ask again after Retry-After; the key has a limit of requests a second.",
    ),
    "loading": Kind(
        "The model is being loaded",
        "Ask again after Retry-After; /v2/health/ready says when it is there.",
    ),
    "overload": Kind(
        "Too many requests are waiting",
        "Ask again after Retry-After, or another scorer; if it lasts, add scorers.",
    ),
    "client": Kind(
        "One client asks too much",
        "Ask again after Retry-After; the client has as many requests waiting as one may have.",
    ),
    "deadline": Kind(
        "There was no time to score",
        "Ask again after Retry-After, with fewer candidates or more time; if it lasts, add "
        "scorers or look at the store.",
    ),
    "store": Kind(
        "The store did not answer",
        "Ask again after Retry-After; the scorer's log says what is the matter with the store. "
        'With scorer.without_store = "degrade" rankings go on without the users\' histories.',
    ),
    "internal": Kind(
        "The scorer failed",
        "Look for the request id in the scorer's log, which holds the cause.",
    ),
}
"""Kinds of problems by the reasons that `scorer.limits.Refused` and the metrics know."""

Handler = Callable[[Request, Any], Awaitable[Response]]

Refuse = Callable[[Request, RequestError], Awaitable[Response]]
"""Makes the answer to a request that is refused."""


def error_handlers(metrics: ScorerMetrics) -> Mapping[Any, Handler]:
    """Handlers by kind of error. Each answers with one JSON object, never with a traceback."""

    async def refused(request: Request, error: RequestError) -> Response:
        status, reason, retry_after_s = 400, "malformed", None
        if isinstance(error, Refused):
            status, reason, retry_after_s = error.status, error.reason, error.retry_after_s
        metrics.rejected.labels(reason=reason).inc()
        detail = f"{error.field} {error}"
        told = problem(request.scope, status, reason, detail, error.field, retry_after_s)
        if status == 401:
            told.headers["www-authenticate"] = CHALLENGE
        return told

    async def store_failed(request: Request, error: StoreError) -> Response:
        metrics.rejected.labels(reason="store").inc()  # the ranker has logged it
        return problem(
            request.scope, 503, "store", without_places(error), retry_after_s=RETRY_AFTER_S
        )

    async def http_error(request: Request, error: HTTPException) -> Response:
        reason, field, detail = None, None, error.detail
        if error.status_code == 404:
            path: str = request.scope["path"]  # request.url would be made of the Host that was sent
            reason, field, detail = "not_found", "path", f"{path[:SHOWN_CHARS]} is not served here"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another")
            method = request.method[:SHOWN_CHARS]
            reason, field = "method", "method"
            detail = f"{method} is not allowed here, {allowed} is"
        response = problem(request.scope, error.status_code, reason, detail, field)
        response.headers.update(error.headers or {})
        return response

    async def failed(request: Request, _error: Exception) -> Response:
        # Starlette raises it again once this is sent, so that the server logs the traceback.
        response = problem(
            request.scope, 500, "internal", "the request failed inside the scorer; its log says why"
        )
        # This answer is made outside of the middleware that gives the others their id.
        if (own := request_id(request.scope)) is not None:
            response.headers[REQUEST_ID] = own
        return response

    return {
        RequestError: refused,
        StoreError: store_failed,
        HTTPException: http_error,
        Exception: failed,
    }


def problem(
    scope: Scope,
    status: int,
    reason: str | None,
    detail: str,
    field: str | None = None,
    retry_after_s: int | None = None,
) -> Response:
    """The answer to a request that comes to nothing.

    Args:
        scope: the request's; its path says which form the answer takes.
        reason: one of `KINDS`; of another one its status says all that there is.
        detail: what is wrong, as one sentence.
        field: what of the request is wrong, as its sender wrote it; None: nothing.
        retry_after_s: when to come again; None: not without a change.
    """
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    path: str = scope["path"]
    if path == "/v2" or path.startswith("/v2/"):
        return json_response(status, {"error": detail}, headers)
    kind = None if reason is None else KINDS.get(reason)
    told = Problem(
        type=type_of(reason),
        title=HTTPStatus(status).phrase if kind is None else kind.title,
        status=status,
        detail=detail,
        instance=_or_unset(request_id(scope)),
        field=_or_unset(field),
        retry_after_s=_or_unset(retry_after_s),
    )
    return json_response(status, told, headers, PROBLEM_JSON)


def type_of(reason: str | None) -> str:
    """The URI reference that names a kind of problem.

    >>> type_of("unknown_items")
    '/problems/unknown-items'
    >>> type_of("something else")
    'about:blank'
    """
    if reason is None or reason not in KINDS:
        return "about:blank"
    return PROBLEMS + reason.replace("_", "-")


def json_response(
    status: int,
    content: object,
    headers: Mapping[str, str] | None = None,
    media_type: str = JSON,
) -> Response:
    """A small answer in JSON."""
    body = msgspec.json.encode(content)
    return Response(body, status_code=status, headers=headers, media_type=media_type)


def _or_unset(value: Any) -> Any:
    return msgspec.UNSET if value is None else value
