from __future__ import annotations

import grpc
import pytest

from scorer.grpc import open_inference_pb2 as pb
from scorer.grpc.methods import SERVICE
from scorer.triton import EXTENSIONS
from tests.scorer.conftest import World
from tests.scorer.grpc.conftest import Client, typed

NAMED = [
    ("ModelStatistics", pb.ModelStatisticsRequest),
    ("ModelReady", pb.ModelReadyRequest),
    ("ModelMetadata", pb.ModelMetadataRequest),
    ("ModelConfig", pb.ModelConfigRequest),
]


async def test_a_server_is_live_and_ready(client: Client) -> None:
    assert (await client.call("ServerLive")).live
    assert (await client.call("ServerReady")).ready
    assert (await client.call("ModelReady", pb.ModelReadyRequest(name="tiny"))).ready


async def test_a_stopping_server_is_live_but_not_ready(client: Client, world: World) -> None:
    world.service.readiness.stopping()
    assert (await client.call("ServerLive")).live
    assert not (await client.call("ServerReady")).ready
    assert not (await client.call("ModelReady", pb.ModelReadyRequest(name="tiny"))).ready


async def test_a_server_tells_its_extensions(client: Client) -> None:
    answer = await client.call("ServerMetadata")
    assert answer.name == "lifelong"
    assert answer.version
    assert list(answer.extensions) == list(EXTENSIONS)


async def test_a_model_tells_its_tensors(client: Client, world: World) -> None:
    answer = await client.call("ModelMetadata", pb.ModelMetadataRequest(name="tiny"))
    assert (answer.name, list(answer.versions)) == ("tiny", [world.bundle.version])
    assert [tensor.name for tensor in answer.inputs] == ["user", "candidates", "time"]
    assert [(t.name, t.datatype) for t in answer.outputs] == [("ctr", "FP32"), ("unknown", "BOOL")]


async def test_a_configuration_tells_the_same(client: Client) -> None:
    config = (await client.call("ModelConfig", pb.ModelConfigRequest(name="tiny"))).config
    assert config.name == "tiny"
    assert config.max_batch_size == 0
    assert config.version_policy.latest.num_versions == 1
    assert config.parameters["system"].string_value == "encode"
    assert [(t.name, t.data_type, t.optional) for t in config.input] == [
        ("user", pb.TYPE_STRING, False),
        ("candidates", pb.TYPE_STRING, False),
        ("time", pb.TYPE_INT64, True),
    ]
    assert [(t.name, t.data_type) for t in config.output] == [
        ("ctr", pb.TYPE_FP32),
        ("unknown", pb.TYPE_BOOL),
    ]


@pytest.mark.parametrize("name", ["", "tiny"])
async def test_statistics_are_of_what_was_ranked(client: Client, name: str) -> None:
    await client.call("ModelInfer", typed())
    await client.refusal("ModelInfer", typed(model_name="huge"))
    request = pb.ModelStatisticsRequest(name=name)
    (model,) = (await client.call("ModelStatistics", request)).model_stats
    assert model.name == "tiny"
    assert model.inference_count == 1
    assert model.inference_stats.fail.count == 1
    assert model.inference_stats.success.ns > 0


async def test_the_repository_has_one_model(client: Client, world: World) -> None:
    (model,) = (await client.call("RepositoryIndex")).models
    assert (model.name, model.version, model.state) == ("tiny", world.bundle.version, "READY")


async def test_a_repository_of_ready_models_leaves_out_a_stopping_one(
    client: Client, world: World
) -> None:
    world.service.readiness.stopping()
    (model,) = (await client.call("RepositoryIndex")).models
    assert (model.state, model.reason) == ("UNAVAILABLE", "the process is stopping")
    request = pb.RepositoryIndexRequest(ready=True)
    assert not (await client.call("RepositoryIndex", request)).models


@pytest.mark.parametrize(("name", "request_"), NAMED)
async def test_another_model_is_not_found(
    client: Client, name: str, request_: type[pb.ModelReadyRequest]
) -> None:
    error = await client.refusal(name, request_(name="huge"))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert "'huge' is not served here; tiny is" in (error.details() or "")


@pytest.mark.parametrize(("name", "request_"), NAMED)
async def test_another_version_is_not_found(
    client: Client, name: str, request_: type[pb.ModelReadyRequest]
) -> None:
    error = await client.refusal(name, request_(name="tiny", version="7"))
    assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_the_version_that_is_served_is_found(client: Client, world: World) -> None:
    answer = await client.call("ModelInfer", typed(model_version=world.bundle.version))
    assert answer.model_version == world.bundle.version


@pytest.mark.parametrize("fields", [{"model_name": "huge"}, {"model_version": "7"}])
async def test_another_model_is_not_asked(client: Client, fields: dict[str, str]) -> None:
    error = await client.refusal("ModelInfer", typed(**fields))
    assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_every_method_of_the_protocol_is_answered(client: Client) -> None:
    for method in SERVICE.methods:
        try:
            await client.call(method.name)
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND, method.name  # noqa: PT017
