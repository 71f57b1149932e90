"""Access over gRPC: who calls is looked at before a message is read or gets a turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
import grpc.aio

from infra.metrics import ScorerMetrics
from scorer.access import API_KEY, AUTHORIZATION, Access, Need, credential_of
from scorer.callers import this_caller
from scorer.grpc.calls import Context, counted
from scorer.limits import Refused

OPEN: Final = ("ServerLive", "ServerReady")
"""Methods of Open Inference that are for anybody, as its paths of health are."""

UNKNOWN: Final = "unmatched"
"""The route, for the metrics, of a refused call of a method that is none of ours."""


class CallerCheck(grpc.aio.ServerInterceptor):
    """Ends calls of those who may not with UNAUTHENTICATED, PERMISSION_DENIED or
    RESOURCE_EXHAUSTED, and tells the others' names to what comes behind.
    """

    def __init__(self, access: Access, needs: Mapping[str, Need], metrics: ScorerMetrics) -> None:
        """Stand in front of the methods.

        Args:
            access: what tells callers.
            needs: what methods need, by full name; others need a caller's name.
            metrics: where refusals are counted.
        """
        self._access = access
        self._needs = needs
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        need = self._needs.get(method, Need.NAME)
        if need is not Need.NOTHING:
            try:
                # The call's own task runs this and then the method.
                this_caller.set(await self._access.check(_credential(handler_call_details), need))
            except Refused as error:
                return self._refusing(method if method in self._needs else UNKNOWN, error)
        return await continuation(handler_call_details)

    def _refusing(self, route: str, error: Refused) -> grpc.RpcMethodHandler[Any, Any]:
        """A method that ends a call of any kind without reading a message of it."""

        async def refuse(_messages: object, _context: Context) -> None:
            raise error

        return grpc.stream_stream_rpc_method_handler(counted(route, refuse, self._metrics))


def _credential(details: grpc.HandlerCallDetails) -> str:
    found = {AUTHORIZATION: "", API_KEY: ""}
    for name, value in details.invocation_metadata or ():
        if name in found:
            found[name] = value if isinstance(value, str) else value.decode("latin-1")
    return credential_of(found[AUTHORIZATION], found[API_KEY])
