"""The admin port: what is for operators and not for clients, on an address of its own.

GET  /metrics
POST /reload     where the process can take up another bundle
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from extractor.reloading import Outcome, Reloaded
from infra.errors import LifelongError, RequestError, SettingsError, one_line
from infra.metrics import ScorerMetrics, exposition
from infra.settings import ScorerSettings
from scorer.access import Access
from scorer.http.access import METRICS, CallerCheck
from scorer.http.identity import RequestIdentity
from scorer.http.problems import error_handlers, json_response
from scorer.limits import Refused

RELOAD: Final = "/reload"

MAX_CONNECTIONS: Final = 64
"""Connections of operators and their tools to a process; further ones are turned away with 503."""

RELOAD_STATUS: Final[Mapping[Outcome, int]] = {
    "reloaded": 200,
    "same": 200,
    "waiting": 202,
    "failed": 409,
}
"""HTTP status by what came of a reload; one that waits is looked for again by itself."""

Reload = Callable[[], Reloaded]
"""Takes up the bundle that is in the directory now; it may take seconds, in a thread of its own,
and raises a `LifelongError` where none can be taken up yet."""


def create_admin_app(
    settings: ScorerSettings,
    metrics: ScorerMetrics,
    registry: CollectorRegistry,
    *,
    access: Access | None = None,
    reload: Reload | None = None,
) -> Starlette:
    """The ASGI application of the admin port.

    Args:
        settings: of the scorer.
        metrics: where refusals are counted.
        registry: where ``metrics`` are registered, shown on /metrics.
        access: what tells callers; None: nobody is asked who they are.
        reload: what POST /reload does; None: there is no such path.
    """
    handlers = error_handlers(metrics)

    async def show_metrics(_request: Request) -> Response:
        body, content_type = exposition(registry)
        return Response(body, headers={"content-type": content_type})

    async def reload_bundle(request: Request) -> Response:
        assert reload is not None
        if "origin" in request.headers:  # a page in a browser of this machine, and no operator
            raise Refused(403, "forbidden", "origin", "is a web page, expected no such header")
        try:
            told = await asyncio.to_thread(reload)
        except LifelongError as error:
            return json_response(409, {"reloaded": False, "reason": one_line(error)})
        answer: dict[str, Any] = {
            "reloaded": told.outcome == "reloaded",
            "outcome": told.outcome,
            "version": told.version,
        }
        if told.reason is not None:
            answer["reason"] = told.reason
        return json_response(RELOAD_STATUS[told.outcome], answer)

    routes = [Route(METRICS, show_metrics, methods=["GET"])]
    if reload is not None:
        routes.append(Route(RELOAD, reload_bundle, methods=["POST"]))
    asked = []
    if access is not None:
        check = Middleware(
            CallerCheck,
            access=access,
            rank_routes={},
            refuse=handlers[RequestError],
            open_paths={METRICS} if settings.open_metrics else (),
            admin_paths={RELOAD} if settings.open_metrics else {RELOAD, METRICS},
        )
        asked.append(check)
    return Starlette(
        routes=routes,
        middleware=[Middleware(RequestIdentity), *asked],
        exception_handlers=handlers,
    )


class AdminServer:
    """The server of the admin port, in the event loop of the one that starts it."""

    def __init__(
        self, app: Starlette, settings: ScorerSettings, tls: ssl.SSLContext | None = None
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._state = ServerState()
        self._config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
        )
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Listen on ``scorer.admin_port`` and answer from now on.

        Returns:
            The port, which is another where that is 0.

        Raises:
            SettingsError: it cannot be listened on.
        """
        self._config.load()
        host, port = self._settings.admin_host, self._settings.admin_port
        try:
            # Several processes share the port; `scorer.listener.reserved` keeps it from others.
            self._server = await asyncio.get_running_loop().create_server(
                self._protocol, host, port, reuse_port=True, ssl=self._tls
            )
        except OSError as error:
            raise SettingsError(
                f"scorer.admin_host = {host!r}, scorer.admin_port = {port}: cannot listen there; "
                "choose others, or stop what listens there"
            ) from error
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, and wait for those under way, at most so long."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=grace_s)

    def _protocol(self) -> asyncio.Protocol:
        return HttpToolsProtocol(self._config, self._state, {})
