from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from infra.settings import ScorerSettings
from scorer.http.gate import Gate
from scorer.limits import Refused
from scorer.turns import Head, Turns
from tests.scorer.conftest import KEYS, World, app_of, ask_callers, client_of

REQUEST = {"user": "u", "candidates": ["item-1"]}
INFER = {
    "inputs": [
        {"name": "user", "shape": [1], "datatype": "BYTES", "data": ["u"]},
        {"name": "candidates", "shape": [1], "datatype": "BYTES", "data": ["item-1"]},
    ]
}


@pytest.fixture
def asked(world: World, tmp_path: Path) -> World:
    ask_callers(world, tmp_path)
    return world


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer key of {name}"}


async def test_where_nothing_is_set_nobody_is_asked(http: httpx.AsyncClient) -> None:
    assert (await http.post("/v1/rank", json=REQUEST)).status_code == 200
    assert (await http.post("/v1/rank", json=REQUEST, headers=bearer("none"))).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        bearer("shop"),
        {"authorization": "bearer  key of shop "},
        {"x-api-key": "key of shop"},
        {"authorization": "Basic a2V5", "x-api-key": "key of shop"},
        bearer("tiny-only"),
    ],
)
async def test_a_caller_with_its_scope_ranks(asked: World, headers: dict[str, str]) -> None:
    async with client_of(asked) as http:
        assert (await http.post("/v1/rank", json=REQUEST, headers=headers)).status_code == 200
        answer = await http.post("/v2/models/tiny/infer", json=INFER, headers=headers)
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("nobody"),
        {"authorization": "key of shop"},
        {"authorization": "Basic key of shop"},
        {"x-api-key": ""},
        {"x-api-key": "x" * 10_000},
        {"x-api-key": "\xff"},
        {"authorization": "Bearer key of nobody", "x-api-key": "key of shop"},
    ],
)
async def test_who_is_not_known_is_refused(asked: World, headers: dict[str, Any]) -> None:
    sent = {name: value.encode("latin-1") for name, value in headers.items()}
    async with client_of(asked) as http:
        answer = await http.post("/v1/rank", json=REQUEST, headers=sent)
        below_v2 = await http.post("/v2/models/tiny/infer", json=INFER, headers=sent)
    assert answer.status_code == below_v2.status_code == 401
    assert answer.headers["www-authenticate"] == below_v2.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/unauthenticated"
    assert answer.headers["x-request-id"] == answer.json()["instance"]
    assert set(below_v2.json()) == {"error"}


@pytest.mark.parametrize("name", ["huge-only", "watcher", "chief"])
async def test_who_lacks_the_scope_may_not_rank(asked: World, name: str) -> None:
    async with client_of(asked) as http:
        answer = await http.post("/v1/rank", json=REQUEST, headers=bearer(name))
        below_v2 = await http.post("/v2/models/huge/infer", json=INFER, headers=bearer(name))
    assert answer.status_code == below_v2.status_code == 403
    assert answer.json()["type"] == "/problems/forbidden"
    assert answer.json()["detail"] == (f"credential of {name} lacks the scope rank or rank:tiny")
    assert "rank:tiny" in below_v2.json()["error"]


async def test_a_path_is_for_anybody_or_for_callers(asked: World) -> None:
    free = {
        "/v2/health/live",
        "/v2/health/ready",
        "/openapi.json",
        "/docs",
        "/problems/{kind}",
        "/metrics",
    }
    async with client_of(asked) as http:
        for route in app_of(asked).routes:
            assert isinstance(route, Route)
            for method in route.methods or ():
                path = route.path.replace("{kind}", "forbidden").replace("{name}", "tiny")
                answer = await http.request(method, path)
                assert (answer.status_code == 401) == (route.path not in free), path
        assert (await http.get("/nothing")).status_code == 401


@pytest.mark.parametrize("name", KEYS)
async def test_any_caller_may_look(asked: World, name: str) -> None:
    async with client_of(asked) as http:
        assert (await http.get("/v2/models/tiny", headers=bearer(name))).status_code == 200


async def test_metrics_may_be_for_the_admin_alone(asked: World) -> None:
    asked.settings = ScorerSettings(open_metrics=False)
    async with client_of(asked) as http:
        given = [
            (await http.get("/metrics", headers=headers)).status_code
            for headers in ({}, bearer("shop"), bearer("chief"))
        ]
    assert given == [401, 403, 200]


async def test_who_asks_too_often_is_told_when_to_come(world: World, tmp_path: Path) -> None:
    ask_callers(world, tmp_path, per_s=0.25, burst=2)
    async with client_of(world) as http:
        for _ in range(2):
            await http.post("/v1/rank", json=REQUEST, headers=bearer("shop"))
        answer = await http.post("/v1/rank", json=REQUEST, headers=bearer("shop"))
        other = await http.post("/v1/rank", json=REQUEST, headers=bearer("tiny-only"))
        world.clock.now += 4.0
        later = await http.post("/v1/rank", json=REQUEST, headers=bearer("shop"))
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "4"
    assert answer.json()["type"] == "/problems/rate"
    assert (other.status_code, later.status_code) == (200, 200)


async def test_a_refusal_counts_as_one_of_its_route(asked: World) -> None:
    async with client_of(asked) as http:
        await http.post("/v1/rank", json=REQUEST)
        text = (await http.get("/metrics")).text
    assert 'lifelong_scorer_requests_total{route="/v1/rank",status="401"} 1.0' in text
    assert 'lifelong_scorer_rejected_total{reason="unauthenticated"} 1.0' in text


async def test_nobody_unknown_gets_a_turn_or_their_body_read(asked: World) -> None:
    read = False

    async def receive() -> dict[str, Any]:
        nonlocal read
        read = True
        return {"type": "http.request", "body": b"", "more_body": False}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/rank",
        "headers": [(b"expect", b"100-continue"), (b"content-length", b"10")],
        "query_string": b"",
    }
    await app_of(asked)(scope, receive, send)
    assert sent[0]["status"] == 401
    assert (b"connection", b"close") in sent[0]["headers"]
    assert not read


async def test_turns_are_counted_by_the_callers_name(asked: World) -> None:
    clients: list[str] = []

    class Noting(Turns):
        def take(self, head: Head, deadline: float) -> Any:
            clients.append(head.client)
            return super().take(head, deadline)

    from scorer.http.app import create_app

    app = create_app(
        asked.service,
        asked.settings,
        asked.metrics,
        asked.registry,
        Gate(Noting(8, 5), asked.metrics, asked.access),
        asked.access,
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://scorer"
    ) as http:
        claimed = {**bearer("shop"), "x-client-id": "somebody else"}
        assert (await http.post("/v1/rank", json=REQUEST, headers=claimed)).status_code == 200
    assert clients == ["shop"]


async def test_a_scope_for_one_model_waits_for_the_model(asked: World) -> None:
    def loading() -> str:
        raise Refused(503, "loading", "model", "is being loaded; come again", 1)

    assert asked.access is not None
    asked.access._model = loading
    async with client_of(asked) as http:
        answers = await asyncio.gather(
            http.post("/v1/rank", json=REQUEST, headers=bearer("tiny-only")),
            http.post("/v1/rank", json=REQUEST, headers=bearer("shop")),
        )
    assert [answer.status_code for answer in answers] == [503, 200]
