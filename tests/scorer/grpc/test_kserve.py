from __future__ import annotations

import struct
from typing import Any

import grpc
import numpy as np
import pytest

from scorer.grpc import open_inference_pb2 as pb
from scorer.ids import item_keys
from tests.scorer.conftest import NOW_MS, World, client_of
from tests.scorer.grpc.conftest import CANDIDATES, Client, add_strings, typed


def raw(*inputs: tuple[str, str, int, bytes], **fields: Any) -> pb.ModelInferRequest:
    """A request with all its tensors as bytes: name, datatype, length, bytes."""
    request = pb.ModelInferRequest(**{"model_name": "tiny", **fields})
    for name, datatype, length, content in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=[length])
        request.raw_input_contents.append(content)
    return request


def strings(values: list[str]) -> bytes:
    return b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)


USER = ("user", "BYTES", 1, strings(["u"]))
ITEMS = ("candidates", "BYTES", 3, strings(CANDIDATES))
KEYS = ("candidates", "UINT64", 3, item_keys(CANDIDATES).tobytes())


@pytest.mark.parametrize("items", [ITEMS, KEYS])
async def test_bytes_are_answered_in_bytes(
    client: Client, world: World, items: tuple[str, str, int, bytes]
) -> None:
    answer = await client.call("ModelInfer", raw(USER, items, id="42"))
    assert (answer.model_name, answer.model_version) == ("tiny", world.bundle.version)
    assert answer.id == "42"
    assert [(t.name, t.datatype, list(t.shape)) for t in answer.outputs] == [
        ("ctr", "FP32", [3]),
        ("unknown", "BOOL", [3]),
    ]
    ctrs = np.frombuffer(answer.raw_output_contents[0], "<f4")
    np.testing.assert_array_equal(ctrs, world.ranker.rank("u", CANDIDATES).ctrs)
    assert answer.raw_output_contents[1] == bytes(3)
    assert not any(tensor.HasField("contents") for tensor in answer.outputs)


async def test_typed_contents_are_answered_in_kind(client: Client, world: World) -> None:
    answer = await client.call("ModelInfer", typed())
    assert not answer.raw_output_contents
    ctr, unknown = answer.outputs
    np.testing.assert_array_equal(
        np.array(ctr.contents.fp32_contents, "<f4"), world.ranker.rank("u", CANDIDATES).ctrs
    )
    assert list(unknown.contents.bool_contents) == [False] * 3


async def test_typed_contents_may_be_keys_and_a_time(client: Client, world: World) -> None:
    later = NOW_MS + 40 * 86_400_000
    request = pb.ModelInferRequest(model_name="tiny")
    add_strings(request, "user", ["u"])
    keys = request.inputs.add(name="candidates", datatype="UINT64", shape=[3])
    keys.contents.uint64_contents.extend(item_keys(CANDIDATES).tolist())
    time = request.inputs.add(name="time", datatype="INT64", shape=[1])
    time.contents.int64_contents.append(later)
    answer = await client.call("ModelInfer", request)
    np.testing.assert_array_equal(
        np.array(answer.outputs[0].contents.fp32_contents, "<f4"),
        world.ranker.rank("u", CANDIDATES, later).ctrs,
    )


async def test_several_users_have_a_row_of_candidates_each(client: Client, world: World) -> None:
    items = [["item-1", "item-2"], ["item-3", "item-4"]]
    keys = np.concatenate([item_keys(row) for row in items]).tobytes()
    request = raw(("user", "BYTES", 2, strings(["u", "v"])), ("candidates", "UINT64", 2, keys))
    request.inputs[1].shape.append(2)
    answer = await client.call("ModelInfer", request)
    assert list(answer.outputs[0].shape) == [2, 2]
    ctrs = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(2, 2)
    for user, row, given in zip("uv", items, ctrs, strict=True):
        np.testing.assert_array_equal(given, world.ranker.rank(user, row).ctrs)


async def test_parameters_say_what_the_answer_rests_on(client: Client) -> None:
    parameters = (await client.call("ModelInfer", typed())).parameters
    assert parameters["history"].string_param == "interests"
    assert parameters["as_of_count"].int64_param == 30
    assert "degraded" not in parameters


@pytest.mark.parametrize("names", [["ctr"], ["unknown"], ["unknown", "ctr"]])
async def test_outputs_that_are_named_come_alone(client: Client, names: list[str]) -> None:
    outputs = [{"name": name} for name in names]
    answer = await client.call("ModelInfer", raw(USER, ITEMS, outputs=outputs))
    assert [output.name for output in answer.outputs] == names
    assert len(answer.raw_output_contents) == len(names)


async def test_parameters_of_a_request_are_heeded(client: Client) -> None:
    request = typed(parameters={"unknown_items": pb.InferParameter(string_param="last")})
    request.inputs[1].contents.bytes_contents[0] = b"nobody-knows"
    answer = await client.call("ModelInfer", request)
    assert list(answer.outputs[1].contents.bool_contents) == [True, False, False]
    assert answer.outputs[0].contents.fp32_contents[0] == 0


async def test_parameters_that_mean_nothing_here_are_ignored(client: Client) -> None:
    parameters = {
        "timeout": pb.InferParameter(int64_param=5),
        "priority": pb.InferParameter(uint64_param=1),
        "sequence": pb.InferParameter(bool_param=True),
        "empty": pb.InferParameter(),
    }
    await client.call("ModelInfer", typed(parameters=parameters))


async def test_a_degraded_answer_says_so_in_parameter_and_trailer(
    client: Client, world: World
) -> None:
    world.store.away = True
    call = client.call("ModelInfer", typed())
    answer = await call
    assert answer.parameters["degraded"].bool_param
    assert ("lifelong-degraded", "store") in list(await call.trailing_metadata())


async def test_the_same_request_gets_the_same_ctrs_over_rest(client: Client, world: World) -> None:
    inputs = [
        {"name": "user", "shape": [1], "datatype": "BYTES", "data": ["u"]},
        {"name": "candidates", "shape": [3], "datatype": "BYTES", "data": CANDIDATES},
    ]
    async with client_of(world) as http:
        rest = (await http.post("/v2/models/tiny/infer", json={"inputs": inputs})).json()
    answer = await client.call("ModelInfer", typed())
    assert [output["name"] for output in rest["outputs"]] == [t.name for t in answer.outputs]
    np.testing.assert_allclose(
        answer.outputs[0].contents.fp32_contents, rest["outputs"][0]["data"], rtol=0, atol=1e-8
    )


def without(request: pb.ModelInferRequest, place: int) -> pb.ModelInferRequest:
    del request.inputs[place]
    return request


def both() -> pb.ModelInferRequest:
    request = raw(USER, ITEMS)
    request.inputs[1].contents.bytes_contents.append(b"item-1")
    return request


def one_raw_too_few() -> pb.ModelInferRequest:
    request = raw(USER, ITEMS)
    del request.raw_input_contents[1]
    return request


def shaped(*shape: int) -> pb.ModelInferRequest:
    request = typed()
    request.inputs[1].shape[:] = shape
    return request


def without_contents() -> pb.ModelInferRequest:
    request = typed()
    request.inputs[1].ClearField("contents")
    return request


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (without(typed(), 0), "user is missing"),
        (without(typed(), 1), "candidates is missing"),
        (typed(inputs=[{"name": "usr", "datatype": "BYTES"}]), "did you mean user"),
        (both(), "candidates has contents beside raw_input_contents"),
        (one_raw_too_few(), "raw_input_contents holds 1 tensors, expected 2"),
        (without_contents(), "candidates has shape [3] and 0 values"),
        (shaped(2), "candidates has shape [2] and 3 values"),
        (shaped(-3), "candidates has a negative dimension"),
        (shaped(3, 3, 3), "candidates has 3 dimensions"),
        (shaped(), "candidates has 0 dimensions"),
        (shaped(2**62), "at most 200 are ranked"),
        (shaped(2**62, 2**62), "at most 200 are ranked"),
        (raw(USER, ("candidates", "FP32", 1, bytes(4))), "candidates has datatype FP32"),
        (raw(USER, ("candidates", "UINT64", 3, bytes(23))), "has 23 bytes for 3 UINT64"),
        (raw(USER, ("candidates", "BYTES", 1, b"\xff\xff\xff\xff")), "candidates[0]"),
        (raw(USER, ("candidates", "BYTES", 1, b"\x02\0\0\0\xff\xff")), "is not UTF-8"),
        (raw(USER, ITEMS, outputs=[{"name": "ctrs"}]), "did you mean ctr"),
        (
            typed(parameters={"unknown_items": pb.InferParameter(bool_param=True)}),
            "parameters.unknown_items",
        ),
    ],
)
async def test_a_bad_request_names_its_tensor(
    client: Client, request_: pb.ModelInferRequest, words: str
) -> None:
    error = await client.refusal("ModelInfer", request_)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    detail = error.details() or ""
    assert words in detail
    assert "\n" not in detail


async def test_unknown_candidates_are_refused_where_a_request_says_so(client: Client) -> None:
    request = typed(parameters={"unknown_items": pb.InferParameter(string_param="refuse")})
    request.inputs[1].contents.bytes_contents[0] = b"nobody-knows"
    error = await client.refusal("ModelInfer", request)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "'nobody-knows'" in (error.details() or "")
