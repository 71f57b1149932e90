from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from infra.errors import SettingsError
from scorer.grpc.methods import SERVICE
from scorer.grpc.server import GrpcServer
from scorer.http.admission import Turns
from tests.scorer.conftest import World
from tests.scorer.grpc.conftest import Client, client_of, typed
from tests.scorer.running import ROOT


async def test_a_client_without_our_stubs_learns_them_by_reflection(world: World) -> None:
    async with client_of(world) as client:
        port = client.port
        services, names = await asyncio.to_thread(_reflected, port)
    assert {SERVICE.full_name, "grpc.health.v1.Health"} <= services
    assert names == ["ctr", "unknown"]


def _reflected(port: int) -> tuple[set[str], list[str]]:
    """The services there are, and the outputs of a ranking asked for by what they tell."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        told = ProtoReflectionDescriptorDatabase(channel)
        method = (
            DescriptorPool(told).FindServiceByName(SERVICE.full_name).FindMethodByName("ModelInfer")
        )
        asked, answered = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        infer = channel.unary_unary(
            f"/{SERVICE.full_name}/ModelInfer", asked.SerializeToString, answered.FromString
        )
        answer = infer(asked.FromString(typed().SerializeToString()), timeout=10)
        return set(told.get_services()), [output.name for output in answer.outputs]


async def test_a_call_under_way_is_answered_before_the_end(world: World) -> None:
    server = GrpcServer(
        world.service, world.settings, world.metrics, Turns(max_waiting=1, deadline_s=5)
    )
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = Client(channel, port)
        await client.call("ServerLive")
        answers = [client.call("ModelInfer", typed()) for _ in range(2)]
        await answers[0].initial_metadata()
        await server.stop(grace_s=60)
        assert (await answers[0]).outputs
        error = await client.refusal("ServerLive")
        assert error.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_port_that_is_taken_is_told_by_its_setting(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = world.settings.model_copy(update={"grpc_port": port})
        turns = Turns(max_waiting=1, deadline_s=5)
        server = GrpcServer(world.service, settings, world.metrics, turns)
        with pytest.raises(SettingsError, match=f"scorer.grpc_port = {port}: cannot listen there"):
            await server.start()


def test_what_protoc_wrote_is_of_the_protocol_as_it_is(tmp_path: Path) -> None:
    proto = "scorer/grpc/open_inference.proto"
    subprocess.run(
        [
            sys.executable,
            *("-m", "grpc_tools.protoc", "-I", "."),
            *(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", proto),
        ],
        cwd=ROOT,
        check=True,
    )
    for name in ("open_inference_pb2.py", "open_inference_pb2.pyi"):
        written = (tmp_path / "scorer/grpc" / name).read_text()
        assert written == (ROOT / "scorer/grpc" / name).read_text(), "run make protocol"
