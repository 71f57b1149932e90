"""What Triton's tools ask of a server; tests/scorer/clients asks it with their own client."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.scorer.conftest import World
from tests.scorer.http.test_kserve import INFER, ITEMS, USER, request, tensor


async def get(http: httpx.AsyncClient, path: str) -> Any:
    response = await http.get(path)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_version_is_part_of_a_path(http: httpx.AsyncClient, world: World) -> None:
    under = f"/v2/models/tiny/versions/{world.bundle.version}"
    for path in ("", "/ready", "/config", "/stats"):
        assert await get(http, under + path) == await get(http, f"/v2/models/tiny{path}")
    response = await http.post(f"{under}/infer", json=request(USER, ITEMS))
    assert response.json() == (await http.post(INFER, json=request(USER, ITEMS))).json()


@pytest.mark.parametrize("path", ["", "/ready", "/config", "/stats", "/infer"])
async def test_another_version_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    method = "POST" if path == "/infer" else "GET"
    response = await http.request(method, f"/v2/models/tiny/versions/other{path}", content=b"{}")
    assert response.status_code == 404
    assert "'other' is not served here" in response.text


async def test_the_configuration_agrees_with_the_metadata(
    http: httpx.AsyncClient, world: World
) -> None:
    config = await get(http, "/v2/models/tiny/config")
    about = await get(http, "/v2/models/tiny")
    assert (config["name"], config["platform"]) == ("tiny", about["platform"])
    for kind in ("input", "output"):
        given = {one["name"]: one["dims"] for one in config[kind]}
        assert given == {one["name"]: one["shape"] for one in about[f"{kind}s"]}
    assert config["parameters"]["bundle_version"] == {"string_value": world.bundle.version}


async def test_the_index_has_the_model(http: httpx.AsyncClient, world: World) -> None:
    for body in (b"", b"{}", b'{"ready": true}', b'{"ready": null, "x": 1}'):
        index = (await http.post("/v2/repository/index", content=body)).json()
        assert index == [
            {"name": "tiny", "version": world.bundle.version, "state": "READY", "reason": ""}
        ]


async def test_the_index_says_why_a_model_is_not_ready(
    http: httpx.AsyncClient, world: World
) -> None:
    world.service.readiness.stopping()
    (entry,) = (await http.post("/v2/repository/index")).json()
    assert entry["state"] == "UNAVAILABLE"
    assert "stopping" in entry["reason"]
    assert (await http.post("/v2/repository/index", json={"ready": True})).json() == []


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"ready": 1}'])
async def test_another_question_for_the_index_is_refused(
    http: httpx.AsyncClient, body: bytes
) -> None:
    assert (await http.post("/v2/repository/index", content=body)).status_code == 400


async def test_statistics_are_of_all_routes_that_score(http: httpx.AsyncClient) -> None:
    await http.post("/v1/rank", json={"user": "u", "candidates": ["item-1"]})
    users = tensor("user", "BYTES", ["u", "who"])
    items = {**tensor("candidates", "BYTES", ["item-1", "item-2"]), "shape": [2, 1]}
    await http.post(INFER, json=request(users, items))
    await http.post(INFER, json=request(users))
    (stats,) = (await get(http, "/v2/models/stats"))["model_stats"]
    assert stats["inference_count"] == stats["execution_count"] == 3
    durations = stats["inference_stats"]
    assert durations["success"]["count"] == 2
    assert durations["fail"]["count"] == 1
    assert durations["compute_infer"]["count"] == 3
    assert durations["success"]["ns"] > durations["compute_infer"]["ns"] > 0


async def test_statistics_are_there_before_the_first_request(http: httpx.AsyncClient) -> None:
    (stats,) = (await get(http, "/v2/models/tiny/stats"))["model_stats"]
    assert stats["inference_count"] == stats["last_inference"] == 0
