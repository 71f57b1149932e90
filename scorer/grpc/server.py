"""The scorer's gRPC server: the Open Inference Protocol, health and reflection on one port.

inference.GRPCInferenceService   scorer.grpc.methods
grpc.health.v1.Health            scorer.grpc.health
grpc.reflection.v1alpha          of grpcio
"""

from __future__ import annotations

from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import descriptor, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from infra.errors import SettingsError
from infra.metrics import ScorerMetrics
from infra.settings import ScorerSettings
from infra.tracing import Tracing
from scorer.access import Access, Need
from scorer.grpc.access import OPEN, CallerCheck
from scorer.grpc.calls import Method, counted
from scorer.grpc.health import Health
from scorer.grpc.methods import SERVICE, Methods
from scorer.service import Service
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


class GrpcServer:
    """The gRPC server of one process, in the event loop that starts it."""

    def __init__(
        self,
        service: Service,
        settings: ScorerSettings,
        metrics: ScorerMetrics,
        registry: CollectorRegistry,
        turns: Turns,
        access: Access | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._service = service
        self._access = access
        self._tracing = tracing
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._turns = turns
        self._server: grpc.aio.Server | None = None
        self._health: Health | None = None

    async def start(self) -> int:
        """Listen on ``scorer.grpc_port`` and answer from now on.

        Returns:
            The port, which is another where that is 0.

        Raises:
            SettingsError: it cannot be listened on.
        """
        checks = () if self._access is None else (self._check(self._access),)
        server = self._server = grpc.aio.server(
            interceptors=checks, options=_options(self._settings)
        )
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
        self._health = Health(self._service.readiness, (SERVICE.full_name,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"])
        reflection.enable_server_reflection(
            (*(service.full_name for service in names), reflection.SERVICE_NAME), server
        )
        host, port = self._settings.host, self._settings.grpc_port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._settings.tls_cert is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, _credentials(self._settings))
        except RuntimeError as error:
            raise SettingsError(
                f"scorer.host = {host!r}, scorer.grpc_port = {port}: cannot listen there; choose "
                "others, or stop what listens there"
            ) from error
        await server.start()
        return port

    def _check(self, access: Access) -> CallerCheck:
        needs = {f"/{SERVICE.full_name}/{name}": Need.NAME for name in SERVICE.methods_by_name}
        needs |= {f"/{SERVICE.full_name}/{name}": Need.NOTHING for name in OPEN}
        needs[f"/{SERVICE.full_name}/{RANKS}"] = Need.RANK
        health = health_pb2.DESCRIPTOR.services_by_name["Health"]
        needs |= {f"/{health.full_name}/{name}": Need.NOTHING for name in health.methods_by_name}
        return CallerCheck(access, needs, self._metrics)

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and wait for those under way, at most so long."""
        if self._server is not None and self._health is not None:
            self._health.stop()
            await self._server.stop(grace_s)


def _handler(
    method: descriptor.MethodDescriptor,
    answer: Method[Any, Any],
    metrics: ScorerMetrics,
    tracing: Tracing | None,
) -> grpc.RpcMethodHandler[Any, Any]:
    route = f"/{method.containing_service.full_name}/{method.name}"
    return grpc.unary_unary_rpc_method_handler(
        counted(route, answer, metrics, tracing),
        request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
        response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
    )


def _credentials(settings: ScorerSettings) -> grpc.ServerCredentials:
    """The TLS of the HTTP port (`scorer.tls`, which has looked at the files), as gRPC has it."""
    assert settings.tls_cert is not None
    key, certificate = settings.tls_key or settings.tls_cert, settings.tls_cert
    authorities = settings.tls_client_ca
    return grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())],
        root_certificates=None if authorities is None else authorities.read_bytes(),
        require_client_auth=authorities is not None,
    )


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
    ]
    if settings.processes > 1:
        options.append(("grpc.max_connection_age_ms", 1000 * CONNECTION_AGE_S))
    return options
