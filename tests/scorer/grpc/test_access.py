from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from scorer.grpc.calls import PUSHBACK
from scorer.grpc.methods import SERVICE
from scorer.turns import Head, Turns
from tests.scorer.conftest import World, ask_callers
from tests.scorer.grpc.conftest import client_of, typed


@pytest.fixture
def asked(world: World, tmp_path: Path) -> World:
    ask_callers(world, tmp_path)
    return world


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer key of {name}"),)


async def test_a_caller_with_its_scope_infers(asked: World) -> None:
    async with client_of(asked) as client:
        for metadata in (bearer("shop"), bearer("tiny-only"), (("x-api-key", "key of shop"),)):
            answer = await client.call("ModelInfer", typed(), metadata=metadata)
            assert answer.model_name == "tiny"


async def test_who_may_not_is_refused_by_status(asked: World) -> None:
    async with client_of(asked) as client:
        none = await client.refusal("ModelInfer", typed())
        unknown = await client.refusal("ModelInfer", typed(), metadata=bearer("nobody"))
        lacking = await client.refusal("ModelInfer", typed(), metadata=bearer("huge-only"))
    assert none.code() == unknown.code() == grpc.StatusCode.UNAUTHENTICATED
    assert (none.details() or "").startswith("credential is missing")
    assert lacking.code() == grpc.StatusCode.PERMISSION_DENIED
    labels = {"route": f"/{SERVICE.full_name}/ModelInfer", "status": "401"}
    assert asked.registry.get_sample_value("lifelong_scorer_requests_total", labels) == 2


async def test_who_asks_too_often_is_told_when_to_come(world: World, tmp_path: Path) -> None:
    ask_callers(world, tmp_path, per_s=0.25, burst=1)
    async with client_of(world) as client:
        await client.call("ModelInfer", typed(), metadata=bearer("shop"))
        refusal = await client.refusal("ModelInfer", typed(), metadata=bearer("shop"))
    assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(refusal.trailing_metadata())[PUSHBACK] == "4000"


async def test_health_is_for_anybody_and_the_rest_for_callers(asked: World) -> None:
    async with client_of(asked) as client:
        for name in SERVICE.methods_by_name:
            if name in {"ServerLive", "ServerReady"}:
                await client.call(name)
            else:
                refusal = await client.refusal(name)
                assert refusal.code() == grpc.StatusCode.UNAUTHENTICATED, name
        asked_health = client.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = await asked_health(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("metadata", [(), bearer("watcher")])
async def test_reflection_is_for_callers(asked: World, metadata: Any) -> None:
    service = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    method = service.methods_by_name["ServerReflectionInfo"]
    request = GetMessageClass(method.input_type)(list_services="")
    async with client_of(asked) as client:
        reflect: Any = client.channel.stream_stream(
            f"/{service.full_name}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        call = reflect(iter([request]), metadata=metadata)
        if metadata:
            assert (await call.read()).list_services_response.service
        else:
            assert await call.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_an_unknown_method_adds_no_label(asked: World) -> None:
    async with client_of(asked) as client:
        call: Any = client.channel.unary_unary("/made.Up/Name")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    labels = {"route": "unmatched", "status": "401"}
    assert asked.registry.get_sample_value("lifelong_scorer_requests_total", labels) == 1


async def test_turns_are_counted_by_the_callers_name(asked: World) -> None:
    clients: list[str] = []

    class Noting(Turns):
        def take(self, head: Head, deadline: float) -> Any:
            clients.append(head.client)
            return super().take(head, deadline)

    async with client_of(asked, Noting(8, 5)) as client:
        for name in ("shop", "tiny-only"):
            metadata = (*bearer(name), ("x-client-id", "somebody else"))
            await client.call("ModelInfer", typed(), metadata=metadata)
    assert clients == ["shop", "tiny-only"]
