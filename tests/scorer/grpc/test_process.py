"""gRPC of serving processes, two of them, on a port that they share."""

from __future__ import annotations

import signal

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from infra.settings import Settings
from scorer.grpc import open_inference_pb2 as pb
from tests.scorer.grpc.conftest import typed
from tests.scorer.running import free_port, running, until_ready


@pytest.fixture
def shared(settings: Settings) -> Settings:
    update = {"grpc_port": free_port(), "processes": 2}
    scorer = settings.scorer.model_copy(update=update)
    return settings.model_copy(update={"scorer": scorer})


def test_processes_share_the_port_and_end_with_it(shared: Settings) -> None:
    with running(shared) as process:
        until_ready(shared)
        with grpc.insecure_channel(f"127.0.0.1:{shared.scorer.grpc_port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
            infer = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                pb.ModelInferRequest.SerializeToString,
                pb.ModelInferResponse.FromString,
            )
            assert infer(typed(), timeout=30).outputs
            watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=60)
            assert next(watch).status == HealthCheckResponse.SERVING
            process.send_signal(signal.SIGTERM)
            assert next(watch).status == HealthCheckResponse.NOT_SERVING
            assert list(watch) == []
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
        assert "Traceback" not in said
