"""The scorer's gRPC server: the Open Inference Protocol, health and reflection on one port.

inference.GRPCInferenceService   scorer.grpc.methods
grpc.health.v1.Health            scorer.grpc.health
grpc.reflection.v1alpha          of grpcio
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import descriptor, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from infra.errors import SettingsError, typed_line
from infra.metrics import ScorerMetrics
from infra.settings import ScorerSettings
from infra.telemetry import get_logger
from infra.tracing import Tracing
from scorer.access import Access, Need
from scorer.grpc.access import OPEN, CallerCheck
from scorer.grpc.calls import Method, counted, reading
from scorer.grpc.health import Health
from scorer.grpc.methods import SERVICE, Methods
from scorer.http.connections import HEAD_TIMEOUT_S
from scorer.service import Service
from scorer.stopping import DRAIN_S
from scorer.tls import Pems, TlsFiles
from scorer.turns import Turns

RANKS: Final = "ModelInfer"
"""The method that ranks."""

MAX_STREAMS: Final = 256
"""Calls that one connection may have under way; a client keeps more of them back itself."""

CONNECTION_AGE_S: Final = 300
"""How long a connection lasts where there are several processes. The kernel spreads connections
over them by chance; whoever is unlucky gets another chance, and what is under way is finished."""

PING_AFTER_S: Final = 60
"""Silence of a client after which it is asked whether it is still there."""

PING_TIMEOUT_S: Final = 20
"""Time within which it must answer."""

PINGED_EACH_S: Final = 10
"""How often a client may ask the same of us; more often, and its connection is closed."""

LOOK_S: Final = 0.1
"""How often it is looked whether the server has ended by itself."""

RETRY_S: Final = 1.0
"""Pause between two tries to listen again."""

LOG_EVERY_S: Final = 60.0
"""How often that is logged, at most: a client can bring it about."""

NOT_SENT: Final = "ExecuteBatchError raised in core"
"""How the line begins by which grpcio logs, with a traceback, that an answer could not be sent."""

log = get_logger(__name__)


class GrpcServer:
    """The gRPC server of one process, in the event loop that starts it.

    grpcio's own server (1.85) ends at the first call whose path is no UTF-8, whoever sends it. What
    is under way is finished then, and another one is started in its place.
    """

    def __init__(
        self,
        service: Service,
        settings: ScorerSettings,
        metrics: ScorerMetrics,
        registry: CollectorRegistry,
        turns: Turns,
        access: Access | None = None,
        tls: TlsFiles | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._service = service
        self._tls = tls or TlsFiles(settings)
        self._access = access
        self._tracing = tracing
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._turns = turns
        self._health = Health(service.readiness, (SERVICE.full_name,))
        self._server: grpc.aio.Server | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        """Servers that have ended by themselves, while they finish what is under way."""
        self._times_ended = 0
        self._log_at = 0.0

    async def start(self) -> int:
        """Listen on ``scorer.grpc_port`` and answer from now on.

        Returns:
            The port, which is another where that is 0.

        Raises:
            SettingsError: it cannot be listened on.
        """
        for name in ("grpc._cython.cygrpc", "asyncio"):
            logging.getLogger(name).addFilter(_worth_a_line)
        self._server, port = await self._started(self._settings.grpc_port)
        self._keeping = asyncio.create_task(self._keep(self._server, port))
        return port

    async def _started(self, port: int) -> tuple[grpc.aio.Server, int]:
        checks = () if self._access is None else (self._check(self._access),)
        server = grpc.aio.server(interceptors=checks, options=_options(self._settings))
        most = self._settings.max_candidates
        methods = Methods(self._service, most, self._registry, self._turns)
        handlers = {
            name: _handler(
                SERVICE.methods_by_name[name],
                method,
                self._metrics,
                self._tracing if name == RANKS else None,
            )
            for name, method in methods.table().items()
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),)
        )
        by_name = _ByName(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, by_name)
        services = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"])
        names = [*(service.full_name for service in services), reflection.SERVICE_NAME]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(names), by_name
        )
        host = self._settings.host
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._tls.pems is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, _credentials(self._tls, self._tls.pems))
        except RuntimeError as error:
            raise SettingsError(
                f"scorer.host = {host!r}, scorer.grpc_port = {port}: cannot listen there; choose "
                "others, or stop what listens there"
            ) from error
        await server.start()
        return server, port

    async def _keep(self, server: grpc.aio.Server, port: int) -> None:
        """Start another server whenever one has ended by itself."""
        while True:
            try:
                await server.wait_for_termination(LOOK_S)
            except Exception as error:  # noqa: BLE001  # whatever has ended it
                self._tell_ended(error)
                ending = asyncio.create_task(server.stop(DRAIN_S))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)
                try:
                    server, _ = await self._started(port)
                except SettingsError as trouble:
                    self._tell_ended(trouble)
                    await asyncio.sleep(RETRY_S)
                else:
                    self._server = server

    def _tell_ended(self, error: Exception) -> None:
        self._times_ended += 1
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + LOG_EVERY_S
            log.warning(
                "grpc server has ended, another takes its place",
                error=typed_line(error),
                times=self._times_ended,
            )
            self._times_ended = 0

    def _check(self, access: Access) -> CallerCheck:
        needs = {f"/{SERVICE.full_name}/{name}": Need.NAME for name in SERVICE.methods_by_name}
        needs |= {f"/{SERVICE.full_name}/{name}": Need.NOTHING for name in OPEN}
        needs[f"/{SERVICE.full_name}/{RANKS}"] = Need.RANK
        health = health_pb2.DESCRIPTOR.services_by_name["Health"]
        needs |= {f"/{health.full_name}/{name}": Need.NOTHING for name in health.methods_by_name}
        return CallerCheck(access, needs, self._metrics)

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and wait for those under way, at most so long."""
        if self._server is None or self._keeping is None:
            return
        self._keeping.cancel()
        self._health.stop()
        await asyncio.gather(self._server.stop(grace_s), *self._ending)


class _ByName:
    """A server to which services are added by their names alone, as `_handler`'s are.

    What grpcio generates registers its methods with the core as well, which then writes into the
    next call of each. A server that ends by itself frees those calls before the core is done with
    them (1.85), and what it writes, two words of zeros, meets whatever has their memory by then.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, *_of_the_service: object) -> None:
        """Leave them to the generic handlers, which are asked for whatever is not registered."""


def _worth_a_line(record: logging.LogRecord) -> bool:
    """Whether a line of grpcio is to be logged; not what `GrpcServer` says in a line of its own,
    nor that an answer could not be sent, since its client has gone.
    """
    if str(record.msg).startswith(NOT_SENT):
        return False
    raised = record.exc_info[1] if record.exc_info else None
    return not isinstance(raised or record.msg, UnicodeDecodeError)


def _handler(
    method: descriptor.MethodDescriptor,
    answer: Method[Any, Any],
    metrics: ScorerMetrics,
    tracing: Tracing | None,
) -> grpc.RpcMethodHandler[Any, Any]:
    route = f"/{method.containing_service.full_name}/{method.name}"
    return grpc.unary_unary_rpc_method_handler(
        counted(route, reading(method.input_type, answer), metrics, tracing),
        response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
    )


def _credentials(tls: TlsFiles, shown: Pems) -> grpc.ServerCredentials:
    """The TLS of the HTTP port as gRPC has it, which asks for it at each handshake."""

    def configuration() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        if tls.pems is None or tls.pems is shown:
            return None  # as before
        shown = tls.pems
        return _configuration(shown)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(shown),
        configuration,  # type: ignore[arg-type]  # None is "as before", which its types leave out
        shown.client_ca is not None,
    )


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.client_ca)


def _options(settings: ScorerSettings) -> list[tuple[str, int]]:
    options = [
        # Several processes share the port; `scorer.listener.reserved` keeps it from others.
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.keepalive_time_ms", 1000 * PING_AFTER_S),
        ("grpc.keepalive_timeout_ms", 1000 * PING_TIMEOUT_S),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1000 * PINGED_EACH_S),
        ("grpc.server_handshake_timeout_ms", round(1000 * HEAD_TIMEOUT_S)),
        ("grpc.max_connection_idle_ms", round(1000 * settings.idle_timeout_s)),
    ]
    if settings.processes > 1:
        options.append(("grpc.max_connection_age_ms", 1000 * CONNECTION_AGE_S))
    return options
