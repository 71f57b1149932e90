from __future__ import annotations

import struct
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from scorer.ids import item_keys
from tests.scorer.conftest import NOW_MS, World

INFER = "/v2/models/tiny/infer"
CANDIDATES = [f"item-{i}" for i in range(1, 21)]


def tensor(name: str, datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data}


def request(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs), **more}


USER = tensor("user", "BYTES", ["u"])
ITEMS = tensor("candidates", "BYTES", CANDIDATES)


def binary(inputs: list[tuple[str, str, int, bytes]], **more: Any) -> tuple[bytes, dict[str, str]]:
    """A request with all its tensors as bytes: name, datatype, length, bytes."""
    tensors = [
        {"name": n, "shape": [c], "datatype": t, "parameters": {"binary_data_size": len(raw)}}
        for n, t, c, raw in inputs
    ]
    head = msgspec.json.encode({"inputs": tensors, **more})
    headers = {
        "inference-header-content-length": str(len(head)),
        "content-type": "application/octet-stream",
    }
    return head + b"".join(raw for *_, raw in inputs), headers


def strings(values: list[str]) -> bytes:
    return b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)


async def test_ctrs_come_in_the_order_of_the_candidates(
    http: httpx.AsyncClient, world: World
) -> None:
    response = await http.post(INFER, json=request(USER, ITEMS, id="42"))
    assert response.status_code == 200
    answer = response.json()
    assert answer["id"] == "42"
    assert answer["model_name"] == "tiny"
    assert answer["model_version"] == world.bundle.version
    ctr = answer["outputs"][0]
    assert (ctr["name"], ctr["datatype"], ctr["shape"]) == ("ctr", "FP32", [20])
    expected = world.ranker.rank("u", CANDIDATES).ctrs
    np.testing.assert_allclose(ctr["data"], expected, rtol=0, atol=1e-8)
    assert answer["parameters"]["history"] == "interests"
    assert answer["parameters"]["as_of_count"] == 30


async def test_time_is_an_input(http: httpx.AsyncClient, world: World) -> None:
    later = NOW_MS + 40 * 86_400_000
    time = tensor("time", "INT64", [later])
    answer = (await http.post(INFER, json=request(USER, ITEMS, time))).json()
    expected = world.ranker.rank("u", CANDIDATES, later).ctrs
    np.testing.assert_allclose(answer["outputs"][0]["data"], expected, rtol=0, atol=1e-8)


async def test_candidates_may_be_keys(http: httpx.AsyncClient, world: World) -> None:
    keys = tensor("candidates", "UINT64", item_keys(CANDIDATES).tolist())
    answer = (await http.post(INFER, json=request(USER, keys))).json()
    expected = world.ranker.rank("u", CANDIDATES).ctrs
    np.testing.assert_allclose(answer["outputs"][0]["data"], expected, rtol=0, atol=1e-8)


SOME_UNKNOWN = tensor("candidates", "BYTES", ["item-1", "x"])


async def test_unknown_candidates_are_counted_and_told(http: httpx.AsyncClient) -> None:
    answer = (await http.post(INFER, json=request(USER, SOME_UNKNOWN))).json()
    assert answer["parameters"]["unknown_items"] == 1
    assert [(output["name"], output["datatype"]) for output in answer["outputs"]] == [
        ("ctr", "FP32"),
        ("unknown", "BOOL"),
    ]
    assert answer["outputs"][1]["data"] == [False, True]


@pytest.mark.parametrize("names", [["ctr"], ["unknown"], ["unknown", "ctr"]])
async def test_outputs_that_are_named_come_alone(http: httpx.AsyncClient, names: list[str]) -> None:
    body = request(USER, SOME_UNKNOWN, outputs=[{"name": name} for name in names])
    answer = (await http.post(INFER, json=body)).json()
    assert [output["name"] for output in answer["outputs"]] == names


async def test_a_request_says_what_becomes_of_unknown_candidates(http: httpx.AsyncClient) -> None:
    for wanted, status in {"score": 200, "last": 200, "refuse": 422}.items():
        body = request(USER, SOME_UNKNOWN, parameters={"unknown_items": wanted})
        response = await http.post(INFER, json=body)
        assert response.status_code == status
        if wanted == "refuse":
            assert "'x'" in response.json()["error"]
        else:
            assert (response.json()["outputs"][0]["data"][1] == 0) == (wanted == "last")


async def test_unknown_keys_are_refused_by_their_numbers(http: httpx.AsyncClient) -> None:
    keys = tensor("candidates", "UINT64", [7, *item_keys(["item-1"]).tolist(), 2**63])
    body = request(USER, keys, parameters={"unknown_items": "refuse"})
    message = (await http.post(INFER, json=body)).json()["error"]
    assert "0000000000000007, 8000000000000000;" in message


@pytest.mark.parametrize("wanted", ["lasst", 1, True])
async def test_another_wish_for_unknown_candidates_is_refused(
    http: httpx.AsyncClient, wanted: object
) -> None:
    response = await http.post(
        INFER, json=request(USER, ITEMS, parameters={"unknown_items": wanted})
    )
    assert response.status_code == 400
    said = f"parameters.unknown_items is {str(wanted)!r}, expected score, last, refuse"
    assert response.json() == {"error": said}


@pytest.mark.parametrize("as_keys", [True, False])
async def test_tensors_may_be_bytes(http: httpx.AsyncClient, world: World, as_keys: bool) -> None:
    items = (
        ("candidates", "UINT64", 20, item_keys(CANDIDATES).tobytes())
        if as_keys
        else ("candidates", "BYTES", 20, strings(CANDIDATES))
    )
    body, headers = binary(
        [
            ("user", "BYTES", 1, strings(["u"])),
            items,
            ("time", "INT64", 1, struct.pack("<q", NOW_MS)),
        ],
        parameters={"binary_data_output": True},
    )
    response = await http.post(INFER, content=body, headers=headers)
    assert response.status_code == 200
    length = int(response.headers["inference-header-content-length"])
    head = msgspec.json.decode(response.content[:length])
    assert [output["parameters"] for output in head["outputs"]] == [
        {"binary_data_size": 80},
        {"binary_data_size": 20},
    ]
    ctrs = np.frombuffer(response.content[length : length + 80], "<f4")
    assert response.content[length + 80 :] == bytes(20)
    np.testing.assert_array_equal(ctrs, world.ranker.rank("u", CANDIDATES, NOW_MS).ctrs)


async def test_bytes_go_out_only_when_asked_for(http: httpx.AsyncClient) -> None:
    body, headers = binary([("user", "BYTES", 1, strings(["u"]))])
    head = msgspec.json.decode(body[: int(headers["inference-header-content-length"])])
    head["inputs"].append(ITEMS)
    encoded = msgspec.json.encode(head)
    headers["inference-header-content-length"] = str(len(encoded))
    response = await http.post(INFER, content=encoded + strings(["u"]), headers=headers)
    assert response.headers["content-type"] == "application/json"
    assert len(response.json()["outputs"][0]["data"]) == 20


@pytest.mark.parametrize(
    ("body", "field", "word"),
    [
        (request(USER), "candidates", "missing"),
        (request(ITEMS), "user", "missing"),
        (request(USER, USER, ITEMS), "user", "twice"),
        (request(tensor("user", "BYTES", ["a", "b"]), ITEMS), "candidates", "2 users"),
        (request(USER, tensor("candidates", "BYTES", [])), "candidates", "empty"),
        (request(USER, tensor("candidates", "BYTES", ["a"] * 201)), "candidates", "200"),
        (request(USER, tensor("candidates", "BYTES", ["a", 1])), "candidates[1]", "str"),
        (request(USER, tensor("candidates", "FP32", [1.0])), "candidates", "BYTES"),
        (request(USER, tensor("candidates", "UINT64", [-1])), "candidates[0]", "0"),
        (request(USER, tensor("candidates", "UINT64", [2**64])), "candidates", ""),
        (request(USER, {**ITEMS, "shape": [19]}), "candidates", "20 values"),
        (request(USER, {**ITEMS, "shape": [20, 1]}), "candidates", "1 users"),
        (request(USER, {**ITEMS, "shape": []}), "candidates", "dimensions"),
        (request(USER, {**ITEMS, "shape": [-20]}), "candidates", "negative"),
        (
            request(USER, {"name": "candidates", "shape": [1], "datatype": "BYTES"}),
            "candidates",
            "",
        ),
        (request(USER, ITEMS, tensor("time", "INT64", [-1])), "time[0]", "0"),
        (request(USER, ITEMS, tensor("tme", "INT64", [1])), "inputs.tme", "did you mean time"),
        (request(USER, ITEMS, outputs=[{"name": "ctrs"}]), "outputs.ctrs", "did you mean ctr"),
        ({"id": "42"}, "inputs", "missing"),
    ],
)
async def test_a_bad_request_names_its_tensor(
    http: httpx.AsyncClient, body: dict[str, Any], field: str, word: str
) -> None:
    response = await http.post(INFER, json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error.startswith(f"{field} "), error
    assert word in error


@pytest.mark.parametrize(
    ("items", "word"),
    [
        (struct.pack("<I", 9) + b"item-1", "cut off"),
        (b"\x01\x00", "cut off"),
        (struct.pack("<I", 0), "empty"),
        (struct.pack("<I", 2) + b"\xff\xff", "UTF-8"),
        (strings(["x" * 257]), "longer"),
        (strings(["a", "b"]), "2 values"),
    ],
)
async def test_bad_bytes_name_their_tensor(
    http: httpx.AsyncClient, items: bytes, word: str
) -> None:
    body, headers = binary(
        [("user", "BYTES", 1, strings(["u"])), ("candidates", "BYTES", 1, items)]
    )
    response = await http.post(INFER, content=body, headers=headers)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error.startswith("candidates")
    assert word in error


@pytest.mark.parametrize("length", ["x", "-1", "100000", ""])
async def test_a_bad_header_length_is_named(http: httpx.AsyncClient, length: str) -> None:
    headers = {"inference-header-content-length": length}
    response = await http.post(INFER, content=b"{}", headers=headers)
    assert response.status_code == 400
    assert response.json()["error"].startswith("Inference-Header-Content-Length ")


async def test_bytes_that_belong_to_no_tensor_are_refused(http: httpx.AsyncClient) -> None:
    head = msgspec.json.encode(request(USER, ITEMS))
    headers = {"inference-header-content-length": str(len(head))}
    response = await http.post(INFER, content=head + b"more", headers=headers)
    assert response.status_code == 400
    assert "after the last tensor" in response.json()["error"]


async def test_a_degraded_answer_says_so_in_parameter_and_header(
    http: httpx.AsyncClient, world: World
) -> None:
    world.store.away = True
    inputs = [
        {"name": "user", "shape": [1], "datatype": "BYTES", "data": ["u"]},
        {"name": "candidates", "shape": [1], "datatype": "BYTES", "data": ["item-1"]},
    ]
    response = await http.post(INFER, json={"inputs": inputs})
    assert response.headers["lifelong-degraded"] == "store"
    assert response.json()["parameters"]["degraded"] is True
