"""The scorer's HTTP interface, composed in one place.

POST /v1/rank                  scorer.http.rank_v1
POST /v2/models/{name}/infer   scorer.http.kserve
GET  /v2/models/{name}[/ready], /v2, /v2/health/live, /v2/health/ready, /metrics
GET  /problems/{kind}          scorer.http.problems, as are the answers to what is wrong
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from infra.errors import RequestError
from infra.metrics import ScorerMetrics, exposition
from infra.settings import ScorerSettings
from scorer.http.admission import Admission
from scorer.http.body import Body
from scorer.http.identity import RequestIdentity
from scorer.http.kserve import HEADER_LENGTH, KServe
from scorer.http.middleware import RequestMetrics
from scorer.http.problems import JSON, KINDS, error_handlers, json_response
from scorer.http.rank_v1 import RankV1
from scorer.inference import check_model, metadata
from scorer.limits import SHOWN_CHARS, Refused
from scorer.ranking import Ranker
from scorer.service import Service
from scorer.turns import Turns

BINARY: Final = "application/octet-stream"
DEGRADED: Final = {"lifelong-degraded": "store"}
"""The header of an answer that was made without the store."""

T = TypeVar("T")


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
        turns: shared with whatever else asks the service; None: nothing does.
    """
    endpoints = Endpoints(service, settings, registry)
    handlers = error_handlers(metrics)
    rank = Route("/v1/rank", endpoints.rank, methods=["POST"])
    infer = Route("/v2/models/{name}/infer", endpoints.infer, methods=["POST"])
    admission = Middleware(
        Admission,
        turns=turns or Turns(settings.max_waiting, settings.deadline_s),
        scored={"/v1/rank": rank, "/infer": infer},
        body=Body(settings.max_body_bytes),
        refuse=handlers[RequestError],
        metrics=metrics,
    )
    app = Starlette(
        routes=[
            rank,
            Route("/v2", endpoints.server, methods=["GET"]),
            Route("/v2/health/live", endpoints.live, methods=["GET"]),
            Route("/v2/health/ready", endpoints.ready, methods=["GET"]),
            Route("/v2/models/{name}", endpoints.model, methods=["GET"]),
            Route("/v2/models/{name}/ready", endpoints.model_ready, methods=["GET"]),
            infer,
            Route("/metrics", endpoints.metrics, methods=["GET"]),
            Route("/problems/{kind}", endpoints.problem, methods=["GET"]),
        ],
        middleware=[
            Middleware(RequestIdentity),
            Middleware(RequestMetrics, metrics=metrics),
            admission,
        ],
        exception_handlers=handlers,
    )
    # It would lead to whatever Host the request named.
    app.router.redirect_slashes = False
    return app


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
        answer, degraded = await self._service.run(
            with_context(lambda ranker: self._v1.answer(ranker, body))
        )
        return Response(answer, media_type=JSON, headers=DEGRADED if degraded else None)

    async def infer(self, request: Request) -> Response:
        self._named(request)
        length = request.headers.get(HEADER_LENGTH)
        check_content_type(request, *(JSON,) if length is None else (BINARY, JSON))
        body = await request.body()
        answer = await self._service.run(
            with_context(lambda ranker: self._kserve.answer(ranker, body, length))
        )
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

    async def problem(self, request: Request) -> Response:
        kind: str = request.path_params["kind"]
        told = KINDS.get(kind.replace("-", "_"))
        if told is None or "_" in kind:
            raise HTTPException(404)
        return PlainTextResponse(f"{told.title}.\n\n{told.advice}\n")

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


def with_context(job: Callable[[Ranker], T]) -> Callable[[Ranker], T]:
    """A job for another thread, whose log lines there name the request all the same."""
    context = contextvars.copy_context()
    return lambda ranker: context.run(job, ranker)


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


def own_version() -> str:
    """The version of Lifelong as installed."""
    try:
        return version("lifelong")
    except PackageNotFoundError:
        return "unknown"
