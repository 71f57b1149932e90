"""The standard health service (grpc.health.v1), as readiness has it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from scorer.grpc.calls import Context
from scorer.readiness import Readiness

LOOK_S: Final = 0.2
"""How often readiness is asked for those who watch; it asks the store more seldom than that."""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Tells whether the process can rank, under every name of ``services``.

    A process that stops is NOT_SERVING from the signal on, and then ends the streams of those who
    watch: they would keep it from stopping.
    """

    def __init__(self, readiness: Readiness, services: tuple[str, ...]) -> None:
        self._readiness = readiness
        self._services = {"", *services}
        self._stopped = asyncio.Event()

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: N802  # gRPC's name
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return health_pb2.HealthCheckResponse(status=await self._status())

    async def Watch(self, request: Any, _context: Context) -> AsyncIterator[Any]:  # noqa: N802
        last = None
        while True:
            status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if request.service in self._services:
                status = await self._status()
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            if self._stopped.is_set():
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), LOOK_S)

    def stop(self) -> None:
        """Let those who watch go; readiness says no by now."""
        self._stopped.set()

    async def _status(self) -> Any:
        ready = await self._readiness.reason() is None
        answer = health_pb2.HealthCheckResponse
        return answer.SERVING if ready else answer.NOT_SERVING
