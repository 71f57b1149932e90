from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from scorer.grpc.methods import SERVICE
from scorer.readiness import Readiness
from scorer.service import Service
from scorer.turns import Turns
from tests.scorer.conftest import World
from tests.scorer.grpc.conftest import Client, client_of, server_of


@pytest.mark.parametrize("name", ["", SERVICE.full_name])
async def test_health_follows_readiness(client: Client, world: World, name: str) -> None:
    health = HealthStub(client.channel)
    request = HealthCheckRequest(service=name)
    assert (await health.Check(request)).status == HealthCheckResponse.SERVING
    world.service.readiness.stopping()
    assert (await health.Check(request)).status == HealthCheckResponse.NOT_SERVING


async def test_while_it_loads_a_scorer_serves_nothing(world: World) -> None:
    world.service = Service(Readiness(world.metrics))
    async with client_of(world) as client:
        answer = await HealthStub(client.channel).Check(HealthCheckRequest())
    world.service.close()
    assert answer.status == HealthCheckResponse.NOT_SERVING


async def test_another_service_is_not_found(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await HealthStub(client.channel).Check(HealthCheckRequest(service="other"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_whoever_watches_another_service_waits_for_it(client: Client) -> None:
    watch = HealthStub(client.channel).Watch(HealthCheckRequest(service="other"))
    assert (await watch.read()).status == HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_whoever_watches_is_told_of_the_end_and_let_go(world: World) -> None:
    server = server_of(world, Turns(max_waiting=1, deadline_s=5))
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest())
        assert (await watch.read()).status == HealthCheckResponse.SERVING
        world.service.readiness.stopping()
        stopping = asyncio.create_task(server.stop(grace_s=60))
        assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
        assert await watch.read() == grpc.aio.EOF
        await stopping
