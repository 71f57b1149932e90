"""The scorer's HTTP interface, composed in one place.

POST /v1/rank                  scorer.http.rank_v1
POST /v1/outcomes              scorer.http.outcomes_v1
GET  /v2, /v2/health/live, /v2/health/ready
GET  /metrics                  unless it is on the admin port (scorer.http.admin)
GET  /v2/models/stats
POST /v2/repository/index
     /v2/models/{name}[/versions/{version}]
POST   /infer                  scorer.http.kserve
GET    , /ready, /config, /stats
GET  /problems/{kind}          scorer.http.problems, as are the answers to what is wrong
GET  /openapi.json, /docs      scorer.http.openapi, and docs.html, which shows it
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from infra.errors import RequestError
from infra.metrics import Figures, ScorerMetrics, exposition
from infra.settings import ScorerSettings
from infra.tracing import Tracing
from scorer.access import Access
from scorer.http.access import METRICS, OPEN, CallerCheck
from scorer.http.admission import Admission
from scorer.http.body import Body
from scorer.http.compression import Compression
from scorer.http.gate import SCORED, Gate
from scorer.http.identity import RequestIdentity
from scorer.http.kserve import HEADER_LENGTH, KServe
from scorer.http.middleware import RequestMetrics
from scorer.http.openapi import document
from scorer.http.outcomes_v1 import OutcomesV1
from scorer.http.problems import JSON, KINDS, error_handlers, json_response
from scorer.http.rank_v1 import RankV1
from scorer.http.tracing import RequestTracing
from scorer.inference import check_model, metadata
from scorer.limits import SHOWN_CHARS, Refused
from scorer.ranking import Ranker
from scorer.service import Service
from scorer.triton import (
    model_config,
    own_version,
    repository_index,
    server_metadata,
    statistics,
)
from scorer.turns import Turns

BINARY: Final = "application/octet-stream"
DEGRADED: Final = {"lifelong-degraded": "store"}
"""The header of an answer that was made without the store."""

PAGE: Final = Path(__file__).with_name("docs.html")
PAGE_MAY: Final = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline';"
    " style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""It holds all that it needs, and whatever it shows comes from this scorer, as text."""


def create_app(
    service: Service,
    settings: ScorerSettings,
    metrics: ScorerMetrics,
    registry: CollectorRegistry,
    gate: Gate | None = None,
    access: Access | None = None,
    tracing: Tracing | None = None,
) -> Starlette:
    """The ASGI application of one process; nothing runs until a request comes.

    Args:
        service: what answers; it may still be waiting for its bundle.
        registry: where ``metrics`` are registered, shown on /metrics.
        gate: of the process's connections, which ask it first; None: nothing else does.
        access: what tells callers; None: nobody is asked who they are.
        tracing: what makes spans of rankings; None: nothing does.
    """
    endpoints = Endpoints(service, settings, metrics, registry)
    handlers = error_handlers(metrics)
    unfolded = [
        Middleware(
            Compression, max_bytes=settings.max_body_bytes, least_bytes=settings.compress_bytes
        ),
    ]
    rank = Route("/v1/rank", endpoints.rank, methods=["POST"], middleware=unfolded)
    infer, *model = model_routes("/v2/models/{name}", endpoints, unfolded)
    outcomes = Route("/v1/outcomes", endpoints.outcomes, methods=["POST"])
    routes = {route.path: route for route in (rank, infer)}
    scored = {end: routes[path] for end, path in SCORED.items()}
    admission = Middleware(
        Admission,
        gate=gate
        or Gate(Turns(settings.max_waiting, settings.deadline_s, metrics=metrics), metrics),
        scored=scored,
        body=Body(settings.max_body_bytes),
        refuse=handlers[RequestError],
    )
    metrics_routes = [Route(METRICS, endpoints.metrics, methods=["GET"])]
    if settings.admin_port:
        metrics_routes = []  # they are there (`scorer.http.admin`)
    asked = []
    if access is not None:
        check = Middleware(
            CallerCheck,
            access=access,
            rank_routes={**scored, outcomes.path: outcomes},
            refuse=handlers[RequestError],
            open_paths={*OPEN, METRICS} if settings.open_metrics else OPEN,
            admin_paths=() if settings.open_metrics else {METRICS},
        )
        asked.append(check)
    if tracing is not None:  # behind the check: it is no business of strangers
        asked.append(Middleware(RequestTracing, tracing=tracing, scored=scored))
    app = Starlette(
        routes=[
            rank,  # those that are asked for most are looked at first
            infer,
            outcomes,
            Route("/v2", endpoints.server, methods=["GET"]),
            Route("/v2/models/stats", endpoints.statistics, methods=["GET"]),
            Route("/v2/repository/index", endpoints.index, methods=["POST"]),
            Route("/v2/health/live", endpoints.live, methods=["GET"]),
            Route("/v2/health/ready", endpoints.ready, methods=["GET"]),
            *model,
            *model_routes("/v2/models/{name}/versions/{version}", endpoints, unfolded),
            *metrics_routes,
            Route("/problems/{kind}", endpoints.problem, methods=["GET"]),
            Route("/openapi.json", endpoints.openapi, methods=["GET"]),
            Route("/docs", endpoints.docs, methods=["GET"]),
        ],
        middleware=[
            Middleware(RequestIdentity),
            Middleware(RequestMetrics, metrics=metrics),
            *asked,
            admission,
        ],
        exception_handlers=handlers,
    )
    # It would lead to whatever Host the request named.
    app.router.redirect_slashes = False
    return app


def model_routes(path: str, endpoints: Endpoints, unfolded: list[Middleware]) -> list[Route]:
    """The routes of a model, under its name or under one of its versions; first that to infer."""
    return [
        Route(f"{path}/infer", endpoints.infer, methods=["POST"], middleware=unfolded),
        Route(path, endpoints.model, methods=["GET"]),
        Route(f"{path}/ready", endpoints.model_ready, methods=["GET"]),
        Route(f"{path}/config", endpoints.config, methods=["GET"]),
        Route(f"{path}/stats", endpoints.model_statistics, methods=["GET"]),
    ]


class Endpoints:
    """The routes, one method each. What they raise becomes an answer in `error_handlers`."""

    def __init__(
        self,
        service: Service,
        settings: ScorerSettings,
        metrics: ScorerMetrics,
        registry: CollectorRegistry,
    ) -> None:
        self._service = service
        self._settings = settings
        self._registry = registry
        self._body = Body(settings.max_body_bytes)
        self._deadline_s = settings.deadline_s
        self._v1 = RankV1(settings.max_candidates)
        self._kserve = KServe(settings.max_candidates)
        self._outcomes_v1 = OutcomesV1(metrics)
        self._document: dict[str, object] | None = None
        """Of all routes; made once it is asked for, since that takes a tenth of a second."""

    async def rank(self, request: Request) -> Response:
        check_content_type(request, JSON)
        body = await request.body()
        answer, degraded = await self._service.run(lambda ranker: self._v1.answer(ranker, body))
        return Response(answer, media_type=JSON, headers=DEGRADED if degraded else None)

    async def infer(self, request: Request) -> Response:
        # A bundle may be exchanged while the body comes: whoever names a version gets its answer.
        named = self._named(request)
        length = request.headers.get(HEADER_LENGTH)
        check_content_type(request, *(JSON,) if length is None else (BINARY, JSON))
        body = await request.body()
        answer = await self._service.run(
            lambda ranker: self._kserve.answer(ranker, body, length), named
        )
        headers = dict(DEGRADED) if answer.degraded else {}
        if answer.header_length is None:
            return Response(answer.body, media_type=JSON, headers=headers)
        headers[HEADER_LENGTH] = str(answer.header_length)
        return Response(answer.body, media_type=BINARY, headers=headers)

    async def outcomes(self, request: Request) -> Response:
        check_content_type(request, JSON)
        # While there is no bundle, no version is known; refused by now, they can be told again.
        _ = self._service.ranker
        return Response(self._outcomes_v1.answer(await self._read(request)), media_type=JSON)

    async def live(self, _request: Request) -> Response:
        return json_response(200, {"live": True})

    async def ready(self, _request: Request) -> Response:
        return await self._readiness({})

    async def server(self, _request: Request) -> Response:
        return json_response(200, server_metadata())

    async def index(self, request: Request) -> Response:
        ready = self._kserve.wants_ready(await self._read(request))
        bundle = self._service.ranker.bundle
        reason = await self._service.readiness.reason()
        return json_response(200, repository_index(bundle, reason, ready=ready))

    async def statistics(self, _request: Request) -> Response:
        return json_response(200, self._statistics(self._service.ranker))

    async def model_statistics(self, request: Request) -> Response:
        return json_response(200, self._statistics(self._named(request)))

    async def config(self, request: Request) -> Response:
        return json_response(200, model_config(self._named(request).bundle))

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

    async def openapi(self, request: Request) -> Response:
        if self._document is None:
            self._document = document(request.app.routes, self._settings, own_version())
        return json_response(200, self._document)

    async def docs(self, _request: Request) -> Response:
        return HTMLResponse(PAGE.read_bytes(), headers={"content-security-policy": PAGE_MAY})

    async def _read(self, request: Request) -> bytes:
        """The body of a request that admission has not read."""
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._body.read(0, request.receive) or b""
        except TimeoutError:
            raise self._body.slow() from None

    def _statistics(self, ranker: Ranker) -> dict[str, object]:
        return statistics(ranker.bundle, Figures(self._registry))

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
        check_model(ranker, request.path_params["name"], request.path_params.get("version", ""))
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
