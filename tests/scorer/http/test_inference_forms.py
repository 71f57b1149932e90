"""The forms that the Open Inference Protocol leaves to clients, each as some client writes it."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from scorer.ids import item_keys
from tests.scorer.conftest import NOW_MS, World
from tests.scorer.http.test_kserve import CANDIDATES, INFER, ITEMS, USER, binary, request, tensor

OTHERS = [f"item-{i}" for i in range(21, 41)]


async def ctrs(http: httpx.AsyncClient, body: dict[str, Any]) -> list[float]:
    response = await http.post(INFER, json=body)
    assert response.status_code == 200, response.text
    values: list[float] = response.json()["outputs"][0]["data"]
    return values


async def refused(http: httpx.AsyncClient, body: Any, *words: str) -> None:
    response = await http.post(INFER, **body)
    assert response.status_code == 400, response.text
    for word in words:
        assert word in response.text


async def test_what_may_be_left_out_may_be_null(http: httpx.AsyncClient) -> None:
    inputs = [{**one, "parameters": None} for one in (USER, ITEMS)]
    response = await http.post(
        INFER, json={"inputs": inputs, "outputs": None, "id": None, "parameters": None}
    )
    assert response.status_code == 200
    assert "id" not in response.json()
    assert [output["name"] for output in response.json()["outputs"]] == ["ctr", "unknown"]


async def test_no_outputs_named_are_all(http: httpx.AsyncClient) -> None:
    answer = (await http.post(INFER, json=request(USER, ITEMS, outputs=[]))).json()
    assert [output["name"] for output in answer["outputs"]] == ["ctr", "unknown"]


async def test_data_may_be_null_beside_bytes(http: httpx.AsyncClient) -> None:
    keys = item_keys(CANDIDATES).tobytes()
    body, headers = binary([("candidates", "UINT64", 20, keys)])
    head = json.loads(body[: int(headers["inference-header-content-length"])])
    head["inputs"][0]["data"] = None
    head["inputs"].append(USER)
    encoded = json.dumps(head).encode()
    headers["inference-header-content-length"] = str(len(encoded))
    response = await http.post(INFER, content=encoded + keys, headers=headers)
    assert response.status_code == 200, response.text


async def test_fields_of_others_are_ignored(http: httpx.AsyncClient) -> None:
    given = [{**one, "layout": {"of": ["mine"]}} for one in (USER, ITEMS)]
    body = request(
        *given,
        outputs=[{"name": "ctr", "parameters": {"classification": 2}, "x": 1}],
        model_name="tiny",
        parameters={"headers": {"ce-id": "1"}, "priority": 1, "mine": None},
    )
    assert len(await ctrs(http, body)) == 20


async def test_a_batch_of_one_has_the_shape_of_a_batch(
    http: httpx.AsyncClient, world: World
) -> None:
    body = request({**USER, "shape": [1, 1]}, {**ITEMS, "shape": [1, 20]})
    answer = (await http.post(INFER, json=body)).json()
    assert [output["shape"] for output in answer["outputs"]] == [[1, 20], [1, 20]]
    expected = world.ranker.rank("u", CANDIDATES).ctrs
    np.testing.assert_allclose(answer["outputs"][0]["data"], expected, rtol=0, atol=1e-8)


async def test_rows_may_be_lists(http: httpx.AsyncClient) -> None:
    rows = {**ITEMS, "shape": [1, 20], "data": [CANDIDATES]}
    body = request({**USER, "shape": [1, 1], "data": [["u"]]}, rows)
    assert await ctrs(http, body) == await ctrs(http, request(USER, ITEMS))


@pytest.mark.parametrize("data", [[CANDIDATES[:10], CANDIDATES[10:]], [CANDIDATES[:-1]], [[]]])
async def test_rows_of_another_length_are_refused(http: httpx.AsyncClient, data: Any) -> None:
    rows = {**ITEMS, "shape": [1, 20], "data": data}
    await refused(http, {"json": request(USER, rows)}, "candidates", "rows of other lengths")


@pytest.mark.parametrize("shape", [[2], [2, 1]])
async def test_several_users_are_one_request(
    http: httpx.AsyncClient, world: World, shape: list[int]
) -> None:
    users = {**tensor("user", "BYTES", ["u", "who"]), "shape": shape}
    items = {**tensor("candidates", "BYTES", CANDIDATES + OTHERS), "shape": [2, 20]}
    answer = (await http.post(INFER, json=request(users, items))).json()
    ctr = answer["outputs"][0]
    assert ctr["shape"] == [2, 20]
    expected = [world.ranker.rank("u", CANDIDATES).ctrs, world.ranker.rank("who", OTHERS).ctrs]
    np.testing.assert_allclose(ctr["data"], np.concatenate(expected), rtol=0, atol=1e-8)
    assert "history" not in answer["parameters"]


async def test_each_user_may_have_a_time(http: httpx.AsyncClient, world: World) -> None:
    later = NOW_MS + 40 * 86_400_000
    users = tensor("user", "BYTES", ["u", "u"])
    items = {**tensor("candidates", "BYTES", CANDIDATES * 2), "shape": [2, 20]}
    values = await ctrs(http, request(users, items, tensor("time", "INT64", [NOW_MS, later])))
    expected = [world.ranker.rank("u", CANDIDATES, at).ctrs for at in (NOW_MS, later)]
    np.testing.assert_allclose(values, np.concatenate(expected), rtol=0, atol=1e-8)
    values = await ctrs(http, request(users, items, tensor("time", "UINT64", [later])))
    np.testing.assert_allclose(values, np.tile(expected[1], 2), rtol=0, atol=1e-8)


async def test_all_users_candidates_are_bounded_together(http: httpx.AsyncClient) -> None:
    users = tensor("user", "BYTES", ["u"] * 3)
    items = {"name": "candidates", "datatype": "UINT64", "shape": [3, 67], "data": []}
    await refused(http, {"json": request(users, items)}, "candidates", "201 ids, at most 200")
    many = {**users, "shape": [201]}
    await refused(http, {"json": request(many, items)}, "user", "at most 200")


async def test_keys_may_be_signed(http: httpx.AsyncClient) -> None:
    keys = item_keys(CANDIDATES)
    signed = tensor("candidates", "INT64", keys.view(np.int64).tolist())
    assert await ctrs(http, request(USER, signed)) == await ctrs(http, request(USER, ITEMS))


@pytest.mark.parametrize("users", [["dQ=="], [{"b64": "dQ=="}]])
async def test_ids_may_be_in_base64(http: httpx.AsyncClient, users: list[Any]) -> None:
    encoded = [base64.b64encode(item.encode()).decode() for item in CANDIDATES]
    marked = [{"b64": one} for one in encoded]
    user = tensor("user", "BYTES", users)
    if isinstance(users[0], str):
        user["parameters"] = {"content_type": "base64"}
    expected = await ctrs(http, request(USER, ITEMS))
    assert await ctrs(http, request(user, tensor("candidates", "BYTES", marked))) == expected
    mixed = tensor("candidates", "BYTES", [*marked[:3], *CANDIDATES[3:]])
    assert await ctrs(http, request(user, mixed)) == expected


async def test_what_is_not_base64_is_refused(http: httpx.AsyncClient) -> None:
    marked = tensor("candidates", "BYTES", ["item-1", {"b64": "=*"}])
    await refused(http, {"json": request(USER, marked)}, "candidates", "base64")
    given = {**ITEMS, "parameters": {"content_type": "base64"}}
    await refused(http, {"json": request(USER, given)}, "candidates", "base64")


async def test_braces_in_an_id_are_no_base64(http: httpx.AsyncClient) -> None:
    body = request(USER, tensor("candidates", "BYTES", ["{x}", "item-1"]))
    assert len(await ctrs(http, body)) == 2


DEEP = b"[" * 5_000 + b"]" * 5_000


@pytest.mark.parametrize(
    "content",
    [
        b'{"inputs": ' + DEEP + b"}",
        b'{"inputs": [], "extra": ' + DEEP + b"}",
        b'{"inputs": [], "parameters": {"a": ' + DEEP + b"}}",
        b'{"inputs": [{"name": "candidates", "shape": [1], "datatype": "BYTES", "data": '
        + DEEP
        + b'}, {"name": "user", "shape": [1], "datatype": "BYTES", "data": ["u"]}]}',
    ],
)
async def test_deep_json_is_refused(http: httpx.AsyncClient, content: bytes) -> None:
    await refused(http, {"content": content})


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        ([2**70], "at most 200"),
        ([2**62, 4], "at most 200"),
        ([1, -1], "negative"),
        ([-(2**70)], "negative"),
        ([0], "empty"),
        ([1, 0], "empty"),
        ([1, 1, 20], "dimensions"),
        ([1.5], "int"),
        (["20"], "int"),
        ([True], "int"),
        (None, "array"),
    ],
)
async def test_a_shape_that_cannot_be_is_refused(
    http: httpx.AsyncClient, shape: Any, word: str
) -> None:
    await refused(http, {"json": request(USER, {**ITEMS, "shape": shape})}, word)


@pytest.mark.parametrize(
    "numbers", [[2**64], [-1], [2**200], [1.5], ["1"], [None], [True], [10**400]]
)
async def test_a_number_that_is_no_key_is_refused(
    http: httpx.AsyncClient, numbers: list[Any]
) -> None:
    keys = tensor("candidates", "UINT64", numbers)
    await refused(http, {"json": request(USER, keys)}, "candidates")


@pytest.mark.parametrize("size", [-1, 2**70, 161, 159, "160", True, 1.5, [160]])
async def test_a_lying_size_is_refused(http: httpx.AsyncClient, size: Any) -> None:
    keys = {"name": "candidates", "datatype": "UINT64", "shape": [20]}
    head = json.dumps(request(USER, {**keys, "parameters": {"binary_data_size": size}})).encode()
    headers = {"inference-header-content-length": str(len(head))}
    content = head + item_keys(CANDIDATES).tobytes()
    await refused(http, {"content": content, "headers": headers})


async def test_a_long_name_is_not_repeated(http: httpx.AsyncClient) -> None:
    given = {**ITEMS, "name": "x" * 5_000, "parameters": {"binary_data_size": -1}}
    response = await http.post(INFER, json=request(USER, given))
    assert response.status_code == 400
    assert len(response.text) < 500
