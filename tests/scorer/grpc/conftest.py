"""A gRPC server over the tiny world, and calls of its methods by name."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message_factory import GetMessageClass

from scorer.grpc import open_inference_pb2 as pb
from scorer.grpc.methods import SERVICE
from scorer.grpc.server import GrpcServer
from scorer.ranking import Ranker, Ranking
from scorer.turns import Turns
from tests.scorer.conftest import World


class Client:
    """Calls methods of the protocol by their names."""

    def __init__(self, channel: grpc.aio.Channel, port: int) -> None:
        self.channel = channel
        self.port = port

    def call(self, name: str, request: Any = None, **more: Any) -> Any:
        """A call under way; its request is empty unless given."""
        method = SERVICE.methods_by_name[name]
        asked, answered = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        multicallable = self.channel.unary_unary(
            f"/{SERVICE.full_name}/{name}",
            request_serializer=asked.SerializeToString,
            response_deserializer=answered.FromString,
        )
        return multicallable(asked() if request is None else request, **more)

    async def refusal(self, name: str, request: Any = None, **more: Any) -> grpc.aio.AioRpcError:
        """The error that a call ends with."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(name, request, **more)
        return caught.value


@pytest.fixture
async def client(world: World) -> AsyncIterator[Client]:
    async with client_of(world) as client:
        yield client


@contextlib.asynccontextmanager
async def client_of(world: World, turns: Turns | None = None) -> AsyncIterator[Client]:
    server = server_of(world, turns or Turns(max_waiting=4, deadline_s=5))
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Client(channel, port)
    await server.stop(grace_s=0)


def server_of(world: World, turns: Turns) -> GrpcServer:
    return GrpcServer(
        world.service, world.settings, world.metrics, world.registry, turns, world.access
    )


class SlowRanker(Ranker):
    """A ranker that holds every request until it is let go."""

    def __init__(self, world: World) -> None:
        super().__init__(world.store, world.bundle, world.system, world.metrics)
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.ranked = 0

    def rank_keys(self, *args: Any, **more: Any) -> Ranking:
        self.ranked += 1
        self.begun.release()
        assert self.go_on.wait(10)
        return super().rank_keys(*args, **more)


@pytest.fixture
def slow(world: World) -> Iterator[SlowRanker]:
    ranker = SlowRanker(world)
    world.service.serve(ranker, lambda: None)
    yield ranker
    ranker.go_on.set()


async def begun(ranker: SlowRanker) -> None:
    assert await asyncio.to_thread(ranker.begun.acquire, timeout=10)


def typed(**fields: Any) -> pb.ModelInferRequest:
    """A request for three items of user "u", with typed contents, and fields of its own."""
    request = pb.ModelInferRequest(**{"model_name": "tiny", **fields})
    if not request.inputs:
        add_strings(request, "user", ["u"])
        add_strings(request, "candidates", CANDIDATES)
    return request


def add_strings(request: pb.ModelInferRequest, name: str, values: list[str]) -> None:
    tensor = request.inputs.add(name=name, datatype="BYTES", shape=[len(values)])
    tensor.contents.bytes_contents.extend(value.encode() for value in values)


CANDIDATES = ["item-1", "item-2", "item-3"]
