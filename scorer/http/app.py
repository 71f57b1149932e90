"""The scorer's HTTP interface, composed in one place.

POST /v1/rank                  scorer.http.rank_v1
POST /v2/models/{name}/infer   scorer.http.kserve
GET  /v2/models/{name}[/ready], /v2, /v2/health/live, /v2/health/ready, /metrics
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.errors import RequestError, StoreError
from infra.metrics import ScorerMetrics, exposition
from infra.settings import ScorerSettings
from scorer.http.admission import Admission, Turns
from scorer.http.kserve import HEADER_LENGTH, KServe
from scorer.http.middleware import BodyLimit, RequestMetrics
from scorer.http.rank_v1 import RankV1
from scorer.inference import check_model, metadata
from scorer.limits import RETRY_AFTER_S, SHOWN_CHARS, Refused
from scorer.ranking import Ranker
from scorer.service import Service

JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
DEGRADED: Final = {"lifelong-degraded": "store"}
"""The header of an answer that was made without the store."""


def create_app(
    service: Service,
    settings: ScorerSettings,
    metrics: ScorerMetrics,
    registry: CollectorRegistry,
    turns: Turns | None = None,
) -> Starlette:
    """The ASGI application of one process; nothing runs until a request comes.

    Args:
        service: what answers; it may still be waiting for its bundle.
        registry: where ``metrics`` are registered, shown on /metrics.
        turns: of the process, where rankings come over gRPC as well; None: of this application.
    """
    if turns is None:
        turns = Turns(settings.max_waiting, settings.deadline_s)
    endpoints = Endpoints(service, settings, registry)
    scored = [
        Middleware(BodyLimit, max_bytes=settings.max_body_bytes),
        Middleware(Admission, turns=turns),
    ]
    return Starlette(
        routes=[
            Route("/v1/rank", endpoints.rank, methods=["POST"], middleware=scored),
            Route("/v2", endpoints.server, methods=["GET"]),
            Route("/v2/health/live", endpoints.live, methods=["GET"]),
            Route("/v2/health/ready", endpoints.ready, methods=["GET"]),
            Route("/v2/models/{name}", endpoints.model, methods=["GET"]),
            Route("/v2/models/{name}/ready", endpoints.model_ready, methods=["GET"]),
            Route("/v2/models/{name}/infer", endpoints.infer, methods=["POST"], middleware=scored),
            Route("/metrics", endpoints.metrics, methods=["GET"]),
        ],
        middleware=[Middleware(RequestMetrics, metrics=metrics)],
        exception_handlers=error_handlers(metrics),
    )


class Endpoints:
    """The routes, one method each. What they raise becomes an answer in `error_handlers`."""

    def __init__(
        self, service: Service, settings: ScorerSettings, registry: CollectorRegistry
    ) -> None:
        self._service = service
        self._registry = registry
        self._v1 = RankV1(settings.max_candidates)
        self._kserve = KServe(settings.max_candidates)

    async def rank(self, request: Request) -> Response:
        check_content_type(request, JSON)
        body = await request.body()
        answer, degraded = await self._service.run(lambda ranker: self._v1.answer(ranker, body))
        return Response(answer, media_type=JSON, headers=DEGRADED if degraded else None)

    async def infer(self, request: Request) -> Response:
        self._named(request)
        length = request.headers.get(HEADER_LENGTH)
        check_content_type(request, *(JSON,) if length is None else (BINARY, JSON))
        body = await request.body()
        answer = await self._service.run(lambda ranker: self._kserve.answer(ranker, body, length))
        headers = dict(DEGRADED) if answer.degraded else {}
        if answer.header_length is None:
            return Response(answer.body, media_type=JSON, headers=headers)
        headers[HEADER_LENGTH] = str(answer.header_length)
        return Response(answer.body, media_type=BINARY, headers=headers)

    async def live(self, _request: Request) -> Response:
        return json_response(200, {"live": True})

    async def ready(self, _request: Request) -> Response:
        return await self._readiness({})

    async def server(self, _request: Request) -> Response:
        return json_response(
            200,
            {
                "name": "lifelong",
                "version": own_version(),
                "extensions": ["binary_tensor_data"],
            },
        )

    async def model(self, request: Request) -> Response:
        bundle = self._named(request).bundle
        return json_response(200, metadata(bundle.manifest, bundle.version))

    async def model_ready(self, request: Request) -> Response:
        return await self._readiness({"name": self._named(request).bundle.manifest.name})

    async def metrics(self, _request: Request) -> Response:
        body, content_type = exposition(self._registry)
        return Response(body, headers={"content-type": content_type})

    async def _readiness(self, about: dict[str, object]) -> Response:
        readiness = self._service.readiness
        reason = await readiness.reason()
        said: dict[str, object] = {**about, "ready": reason is None}
        if reason is not None:
            said["reason"] = reason
        if readiness.warnings:
            said["warnings"] = readiness.warnings
        return json_response(200 if reason is None else 503, said)

    def _named(self, request: Request) -> Ranker:
        """The ranker, if the path names its model."""
        ranker = self._service.ranker
        check_model(ranker, request.path_params["name"])
        return ranker


def check_content_type(request: Request, *accepted: str) -> None:
    """Refuse a body that says it is something else; one that says nothing is taken at its word."""
    given = request.headers.get("content-type", "")
    if given and given.partition(";")[0].strip().lower() not in accepted:
        raise Refused(
            415,
            "content_type",
            "Content-Type",
            f"is {given[:SHOWN_CHARS]}, expected {' or '.join(accepted)}",
        )
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise Refused(
            415,
            "content_type",
            "Content-Encoding",
            f"is {coding[:SHOWN_CHARS]}, expected none",
        )


Handler = Callable[[Request, Any], Awaitable[Response]]


def error_handlers(metrics: ScorerMetrics) -> Mapping[Any, Handler]:
    """Handlers by kind of error. Each answers with one JSON object, never with a traceback."""

    async def refused(_request: Request, error: RequestError) -> Response:
        status, reason, retry_after_s = 400, "malformed", None
        if isinstance(error, Refused):
            status, reason, retry_after_s = error.status, error.reason, error.retry_after_s
        metrics.rejected.labels(reason=reason).inc()
        return error_response(status, error.field, str(error), retry_after_s)

    async def store_failed(_request: Request, error: StoreError) -> Response:
        metrics.rejected.labels(reason="store").inc()  # the ranker has logged it
        return error_response(503, "store", str(error), RETRY_AFTER_S)

    async def http_error(request: Request, error: HTTPException) -> Response:
        field, message = "request", error.detail
        if error.status_code == 404:
            field, message = "path", f"{request.url.path[:SHOWN_CHARS]} is not served here"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another")
            field, message = "method", f"{request.method} is not allowed here, {allowed} is"
        response = error_response(error.status_code, field, message)
        response.headers.update(error.headers or {})
        return response

    async def failed(_request: Request, _error: Exception) -> Response:
        # Starlette raises it again once this is sent, so that the server logs the traceback.
        return error_response(500, "request", "failed inside the scorer; its log says why")

    return {
        RequestError: refused,
        StoreError: store_failed,
        HTTPException: http_error,
        Exception: failed,
    }


def error_response(
    status: int, field: str, message: str, retry_after_s: int | None = None
) -> Response:
    """An error as every route answers it: the field that is wrong, and what is wrong with it."""
    response = json_response(status, {"error": {"field": field, "message": message}})
    if retry_after_s is not None:
        response.headers["retry-after"] = str(retry_after_s)
    return response


def json_response(status: int, content: object) -> Response:
    """A small answer in JSON."""
    return Response(msgspec.json.encode(content), status_code=status, media_type=JSON)


def own_version() -> str:
    """The version of Lifelong as installed."""
    try:
        return version("lifelong")
    except PackageNotFoundError:
        return "unknown"
