from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

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
from scorer.turns import Turns
from tests.fuzz.grpc import SERVICE as PATH
from tests.fuzz.grpc import call, message
from tests.fuzz.http2 import START, asked
from tests.scorer.conftest import World
from tests.scorer.grpc.conftest import Client, SlowRanker, begun, client_of, server_of, typed
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
        answer: Any = infer(asked.FromString(typed().SerializeToString()), timeout=10)
        return set(told.get_services()), [output.name for output in answer.outputs]


async def test_a_call_under_way_is_answered_before_the_end(world: World, slow: SlowRanker) -> None:
    server = server_of(world, Turns(max_waiting=1, deadline_s=5))
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = Client(channel, port)
        late = client.call("ModelInfer", typed())
        await begun(slow)
        stopping = asyncio.create_task(server.stop(grace_s=60))
        await asyncio.sleep(0)  # for it to begin
        slow.go_on.set()
        assert (await late).outputs
        await stopping
        error = await client.refusal("ServerLive")
        assert error.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_port_that_is_taken_is_told_by_its_setting(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = world.settings.model_copy(update={"grpc_port": port})
        turns = Turns(max_waiting=1, deadline_s=5)
        server = GrpcServer(world.service, settings, world.metrics, world.registry, turns)
        with pytest.raises(SettingsError, match=f"scorer.grpc_port = {port}: cannot listen there"):
            await server.start()


@pytest.fixture
def pem(tmp_path: Path) -> tuple[bytes, bytes]:
    """A certificate for this machine, which is its own authority, and its key."""
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", files[0], "-keyout", files[1]),
        ],
        check=True,
        capture_output=True,
    )
    return files[0].read_bytes(), files[1].read_bytes()


async def test_tls_is_that_of_the_http_port(
    world: World, pem: tuple[bytes, bytes], tmp_path: Path
) -> None:
    certificate, key = pem
    whole = tmp_path / "scorer.pem"
    whole.write_bytes(certificate + key)
    world.settings = world.settings.model_copy(update={"tls_cert": whole, "tls_client_ca": whole})
    async with client_of(world) as plain:
        for shown in ((key, certificate), (None, None)):
            credentials = grpc.ssl_channel_credentials(certificate, *shown)
            async with grpc.aio.secure_channel(f"127.0.0.1:{plain.port}", credentials) as channel:
                client = Client(channel, plain.port)
                if shown[0] is not None:
                    assert (await client.call("ServerLive")).live
                else:
                    error = await client.refusal("ServerLive")
                    assert error.code() == grpc.StatusCode.UNAVAILABLE


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


async def test_a_call_whose_path_is_no_text_costs_nobody_else_an_answer(
    world: World, slow: SlowRanker, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends grpcio's own server."""
    async with client_of(world) as client:
        under_way = client.call("ModelInfer", typed())
        await begun(slow)
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(START + asked(1, call(PATH + b"Model\xacInfer"), message(b"")))
        async with asyncio.timeout(30):
            while not caplog.records:  # noqa: ASYNC110  # the server's log is what tells
                await asyncio.sleep(0.01)
        slow.go_on.set()
        assert (await under_way).outputs
        assert (await client.call("ModelInfer", typed(), wait_for_ready=True, timeout=30)).outputs
        writer.close()
    (told,) = (line for line in caplog.records if line.levelname in {"WARNING", "ERROR"})
    assert "another takes its place" in told.getMessage()


async def test_a_server_that_has_ended_writes_into_no_memory_that_others_have_by_then(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """grpcio frees the calls that it awaits, and its core writes into some of them afterwards."""
    sizes = range(16, 512, 16)
    blocks: list[tuple[int, bytes]] = []
    async with client_of(world) as client:
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(START + asked(1, call(PATH + b"Model\xacInfer"), message(b"")))
        async with asyncio.timeout(30):
            while not caplog.records:
                # What has been freed is taken for one of the same size.
                blocks += [(size, b"\xaa" * size) for size in sizes]
                await asyncio.sleep(0)
        await client.call("ServerLive", wait_for_ready=True, timeout=30)
        writer.close()
    assert [size for size, block in blocks if block.count(0xAA) != size] == []


async def test_an_answer_whose_client_has_gone_is_no_line_of_the_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """grpcio says so where it tries to send before it knows, which no client can be had to do."""
    async with client_of(world):
        log = logging.getLogger("grpc._cython.cygrpc")
        log.error("ExecuteBatchError raised in core by servicer method [/a/b]")
        log.error("something else")
    assert [line.getMessage() for line in caplog.records] == ["something else"]


async def test_a_connection_without_a_call_is_closed_as_those_of_http_are(world: World) -> None:
    world.settings = world.settings.model_copy(update={"idle_timeout_s": 0.5})
    async with client_of(world) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(START)
        async with asyncio.timeout(30):
            while await reader.read(65_536):
                pass
        writer.close()
