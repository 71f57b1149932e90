"""Access over HTTP: who asks is looked at before a request gets a turn, or its body is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from scorer.access import API_KEY, AUTHORIZATION, Access, Need, credential_of
from scorer.callers import this_caller
from scorer.http.problems import Refuse
from scorer.limits import Refused

OPEN: Final = frozenset({"/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs"})
"""Paths that are for anybody: probes have no keys, and the document holds no data."""

OPEN_BELOW: Final = "/problems/"
"""So is what the type of a refusal leads to."""

METRICS: Final = "/metrics"


class CallerCheck:
    """ASGI middleware in front of admission and all routes: answers 401, 403 and 429 to those who
    may not, and tells the others' names to what comes behind.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        rank_routes: Mapping[str, BaseRoute],
        refuse: Refuse,
        *,
        open_paths: Collection[str] = OPEN,
        admin_paths: Collection[str] = (),
    ) -> None:
        """Stand in front of the routes.

        Args:
            access: what tells callers.
            rank_routes: routes for which the scope ``rank`` is needed, by the end of their path.
            refuse: the answer to a request that is refused.
            open_paths: paths for which nobody is asked.
            admin_paths: paths for which the scope ``admin`` is needed.
        """
        self._app = app
        self._access = access
        self._rank_routes = tuple(rank_routes.items())
        self._refuse = refuse
        self._open = frozenset(open_paths)
        self._admin = frozenset(admin_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        need = self._need(scope)
        # A connection's next request may run in the context of the one before.
        this_caller.set(None)
        if need is not Need.NOTHING:
            credential, waits = read_credential(scope["headers"])
            try:
                this_caller.set(await self._access.check(credential, need))
            except Refused as error:
                response = await self._refuse(Request(scope), error)
                if waits:  # its sender would send no body, and what came next was read as one
                    response.headers["connection"] = "close"
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _need(self, scope: Scope) -> Need:
        path: str = scope["path"]
        for end, route in self._rank_routes:
            if path.endswith(end):
                scope["route"] = route  # a refusal counts as one of it
                return Need.RANK
        if path in self._admin:
            return Need.ADMIN
        if path in self._open or path.startswith(OPEN_BELOW):
            return Need.NOTHING
        return Need.NAME


def read_credential(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, bool]:
    """The credential in a request's head, and whether its sender waits for a word before the body.

    >>> read_credential([(b"authorization", b"Bearer k")])
    ('k', False)
    """
    found, waits = {API_KEY: "", AUTHORIZATION: ""}, False
    for name, value in headers:
        if name == b"authorization":
            found[AUTHORIZATION] = value.decode("latin-1")
        elif name == b"x-api-key":
            found[API_KEY] = value.decode("latin-1")
        elif name == b"expect":
            waits = True
    return credential_of(found[AUTHORIZATION], found[API_KEY]), waits
