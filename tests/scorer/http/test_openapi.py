from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from scorer.http.app import create_app
from scorer.http.openapi import document, field_docs
from scorer.messages import RankRequest
from tests.scorer.conftest import World, client_of
from tests.scorer.http.generating import bodies, check_answer


@pytest.fixture
async def about(http: httpx.AsyncClient) -> dict[str, Any]:
    response = await http.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    about: dict[str, Any] = response.json()
    return about


async def test_the_document_is_openapi_3_1(about: dict[str, Any]) -> None:
    assert about["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(about).validate()


def test_the_document_says_what_callers_must_show(world: World, tmp_path: Path) -> None:
    asked = world.settings.model_copy(update={"keys": tmp_path / "keys.toml"})
    about = document([], asked, "1")
    OpenAPIV31SpecValidator(about).validate()
    assert about["security"] == [{"bearer": []}, {"key": []}]
    assert document([], world.settings, "1")["security"] == [{}]


async def test_every_route_is_in_the_document(world: World, about: dict[str, Any]) -> None:
    app = create_app(world.service, world.settings, world.metrics, world.registry)
    for route in app.routes:
        assert isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}:
            assert about["paths"][route.path][method.lower()]["summary"]


def test_a_route_that_nobody_described_is_there_in_outline(world: World) -> None:
    async def own_thing(_request: object) -> None: ...

    added = [Route("/v2/own/{thing}", own_thing, methods=["POST"])]
    about = document(added, world.settings, "1")
    assert about["paths"]["/v2/own/{thing}"]["post"]["summary"] == "Own thing (in outline)"
    OpenAPIV31SpecValidator(about).validate()


async def test_the_document_tells_the_limits_of_the_settings(
    world: World, about: dict[str, Any]
) -> None:
    asked = about["components"]["schemas"]["RankRequest"]["properties"]
    assert asked["candidates"]["maxItems"] == world.settings.max_candidates
    assert asked["candidates"]["description"].startswith("B item ids")


def test_fields_are_described_by_their_docstrings() -> None:
    assert field_docs(RankRequest)["time"].startswith("The moment for which to score")


async def test_the_page_needs_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert not any(word in page.text for word in ("http:", "https:", " src=", "@import", "<link"))


def test_whatever_is_asked_the_answer_is_as_the_document_says(world: World) -> None:
    app = create_app(world.service, world.settings, world.metrics, world.registry)
    about = document(app.routes, world.settings, "1")
    every = [(path, method) for path, methods in about["paths"].items() for method in methods]
    # What takes a body can go wrong in more ways.
    asked = {one: requests(about, *one) for one in every}
    scored = [one for one in every if "requestBody" in about["paths"][one[0]][one[1]]]

    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.sampled_from(every + 4 * scored).flatmap(asked.__getitem__))
    def check(request: tuple[str, str, str, object]) -> None:
        path, method, url, body = request

        async def ask() -> httpx.Response:
            async with client_of(world) as http:
                return await http.request(method, url, json=body)

        response = asyncio.run(ask())
        assert response.status_code < 500, response.text
        check_answer(response, about["paths"][path][method], about)

    check()


def requests(
    about: dict[str, Any], path: str, method: str
) -> st.SearchStrategy[tuple[str, str, str, object]]:
    """Path, method, URL and body of requests for one operation."""
    operation = about["paths"][path][method]
    # A part with a slash in it, or a dot alone, would make another path.
    part = st.sampled_from(["tiny", "malformed"]) | st.text("aZ0é 中%?#", min_size=1, max_size=5)
    body: st.SearchStrategy[object] = st.none()
    if "requestBody" in operation:
        body = bodies(operation["requestBody"]["content"]["application/json"]["schema"], about)
    urls = part.map(lambda one: re.sub(r"{\w+}", lambda _: quote(one, safe=""), path))
    return st.tuples(st.just(path), st.just(method), urls, body)


async def test_what_the_document_gives_as_examples_is_answered(
    http: httpx.AsyncClient, about: dict[str, Any]
) -> None:
    (version,) = (await http.get("/v2/models/tiny")).json()["versions"]
    names = {"{name}": "tiny", "{version}": version, "{kind}": "malformed"}
    for path, operations in about["paths"].items():
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            asked = re.sub(r"{\w+}", lambda part: names[part[0]], path)
            response = await http.request(method, asked, json=body.get("example"))
            if not operation["summary"].endswith("(in outline)"):
                assert response.status_code == 200, response.text
            check_answer(response, operation, about)
