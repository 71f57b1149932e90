"""gRPC and the admin port of serving processes, two of them, on ports that they share."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from infra.settings import Settings
from scorer.grpc import open_inference_pb2 as pb
from tests.scorer.grpc.conftest import typed
from tests.scorer.running import free_port, get, running, until_ready

KEY = "open sesame"


@pytest.fixture
def shared(settings: Settings, tmp_path: Path) -> Settings:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[shop]\nsha256 = "{digest}"\nscopes = ["rank"]\n')
    update = {
        "grpc_port": free_port(),
        "admin_port": free_port(),
        "keys": keys,
        "processes": 2,
    }
    scorer = settings.scorer.model_copy(update=update)
    return settings.model_copy(update={"scorer": scorer})


def test_processes_share_the_ports_and_end_with_them(shared: Settings) -> None:
    with running(shared) as process:
        until_ready(shared)
        with grpc.insecure_channel(f"127.0.0.1:{shared.scorer.grpc_port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
            infer = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                pb.ModelInferRequest.SerializeToString,
                pb.ModelInferResponse.FromString,
            )
            assert infer(typed(), timeout=30, metadata=(("x-api-key", KEY),)).outputs
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                infer(typed(), timeout=30)
            with urlopen(
                f"http://127.0.0.1:{shared.scorer.admin_port}/metrics", timeout=30
            ) as told:
                assert b'reason="unauthenticated"' in told.read()
            assert get(shared, "/v2/models/tiny")[0] == 401
            watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=60)
            assert next(watch).status == HealthCheckResponse.SERVING
            process.send_signal(signal.SIGTERM)
            assert next(watch).status == HealthCheckResponse.NOT_SERVING
            assert list(watch) == []
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
        assert "Traceback" not in said
