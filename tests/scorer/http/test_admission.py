from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from starlette.types import Message, Scope

from infra.settings import ScorerSettings
from scorer.ranking import Ranker, Ranking
from tests.scorer.conftest import World, app_of, client_of

REQUEST = {"user": "u", "candidates": ["item-1"]}


class Gate(Ranker):
    """A ranker that ranks only while its gate is open."""

    open: threading.Event
    knocked: threading.Event
    asked = 0

    def rank(self, *args: Any, **more: Any) -> Ranking:
        self.asked += 1
        self.knocked.set()
        assert self.open.wait(10)
        return super().rank(*args, **more)


@pytest.fixture
def gate(world: World) -> Iterator[Gate]:
    gate = Gate(world.store, world.bundle, world.system, world.metrics)
    gate.open = threading.Event()
    gate.knocked = threading.Event()
    world.service.serve(gate, lambda: None)
    yield gate
    gate.open.set()


async def until_asked(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.knocked.wait, 10)


async def test_requests_beyond_the_bound_are_refused_at_once(world: World, gate: Gate) -> None:
    world.settings = ScorerSettings(max_waiting=2)
    async with client_of(world) as http:
        scored = [asyncio.create_task(http.post("/v1/rank", json=REQUEST)) for _ in range(3)]
        await until_asked(gate)
        refused = await http.post("/v1/rank", json=REQUEST)
        assert refused.status_code == 429
        assert "more was to be ranked than can be" in refused.json()["detail"]
        assert refused.headers["retry-after"] == "1"
        gate.open.set()
        assert [(await task).status_code for task in scored] == [200, 200, 200]
        assert (await http.post("/v1/rank", json=REQUEST)).status_code == 200


async def test_a_request_past_its_deadline_is_given_up(world: World, gate: Gate) -> None:
    world.settings = ScorerSettings(deadline_s=0.05)
    async with client_of(world) as http:
        response = await http.post("/v1/rank", json=REQUEST)
        assert response.status_code == 503
        assert "was not scored within 0.05 s" in response.json()["detail"]
        gate.open.set()


async def test_a_request_given_up_while_waiting_is_never_scored(world: World, gate: Gate) -> None:
    short = {"x-request-timeout-ms": "50"}
    async with client_of(world) as http:
        await asyncio.gather(
            *(http.post("/v1/rank", json=REQUEST, headers=short) for _ in range(3))
        )
        gate.open.set()
        assert (await http.post("/v1/rank", json=REQUEST)).status_code == 200
    assert gate.asked == 2


async def test_probes_are_answered_while_a_ranking_is_stuck(world: World, gate: Gate) -> None:
    async with client_of(world) as http:
        stuck = asyncio.create_task(http.post("/v1/rank", json=REQUEST))
        await until_asked(gate)
        assert (await http.get("/v2/health/live")).status_code == 200
        assert (await http.get("/metrics")).status_code == 200
        gate.open.set()
        assert (await stuck).status_code == 200


async def test_both_ways_to_ask_share_the_bound(world: World, gate: Gate) -> None:
    world.settings = ScorerSettings(max_waiting=1)
    async with client_of(world) as http:
        scored = [asyncio.create_task(http.post("/v1/rank", json=REQUEST)) for _ in range(2)]
        await until_asked(gate)
        response = await http.post("/v2/models/tiny/infer", content=b"{}")
        assert response.status_code == 429
        gate.open.set()
        await asyncio.gather(*scored)


async def test_refusals_are_counted_by_reason(world: World, gate: Gate) -> None:
    world.settings = ScorerSettings(deadline_s=0.05)
    async with client_of(world) as http:
        await http.post("/v1/rank", json=REQUEST)
    value = world.registry.get_sample_value(
        "lifelong_scorer_rejected_total", {"reason": "deadline"}
    )
    assert value == 1
    gate.open.set()


async def test_a_refusal_is_counted_each_time(world: World, gate: Gate) -> None:
    world.settings = ScorerSettings(max_waiting=1)
    async with client_of(world) as http:
        scored = [asyncio.create_task(http.post("/v1/rank", json=REQUEST)) for _ in range(2)]
        await until_asked(gate)
        refused = [await http.post("/v1/rank", json=REQUEST) for _ in range(3)]
        gate.open.set()
        await asyncio.gather(*scored)
    assert [answer.status_code for answer in refused] == [429, 429, 429]
    assert world.registry.get_sample_value(
        "lifelong_scorer_rejected_total", {"reason": "overload"}
    ) == len(refused)
    labels = {"route": "/v1/rank", "status": "429"}
    assert world.registry.get_sample_value("lifelong_scorer_requests_total", labels) == len(refused)


@pytest.mark.parametrize(
    "header",
    [
        {"x-envoy-expected-rq-timeout-ms": "50"},
        {"x-request-timeout-ms": "50"},
        {"grpc-timeout": "50m"},
        {"x-request-timeout-ms": "9000", "grpc-timeout": "50000u"},
    ],
)
async def test_a_sender_s_own_deadline_counts(
    world: World, gate: Gate, header: dict[str, str]
) -> None:
    async with client_of(world) as http:
        response = await http.post("/v1/rank", json=REQUEST, headers=header)
        assert response.status_code == 503
        assert "within 0.05 s" in response.text
        gate.open.set()


async def test_a_deadline_that_is_none_is_not_heeded(world: World) -> None:
    headers = {"x-request-timeout-ms": "soon", "grpc-timeout": "1 day", "priority": "urgent"}
    async with client_of(world) as http:
        response = await http.post("/v1/rank", json=REQUEST, headers=headers)
        assert response.status_code == 200


async def test_the_most_urgent_is_ranked_first(world: World, gate: Gate) -> None:
    order: list[str] = []

    async def ask(http: httpx.AsyncClient, urgency: str) -> None:
        headers = {"priority": f"u={urgency}", "x-client-id": urgency}
        assert (await http.post("/v1/rank", json=REQUEST, headers=headers)).status_code == 200
        order.append(urgency)

    async with client_of(world) as http:
        stuck = asyncio.create_task(http.post("/v1/rank", json=REQUEST))
        await until_asked(gate)
        asked = [asyncio.create_task(ask(http, urgency)) for urgency in "730"]
        for _ in range(50):  # all have come before the gate opens
            await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(stuck, *asked)
    assert order == ["0", "3", "7"]


async def test_a_body_that_dribbles_in_is_given_up_at_the_deadline(world: World) -> None:
    world.settings = ScorerSettings(deadline_s=0.1)

    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    await app_of(world)(scope(), receive, send)
    assert sent[0]["status"] == 408


async def test_an_announced_giant_that_waits_for_a_word_is_refused_unread(world: World) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        pytest.fail("nothing is to be read")

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-length", b"20001"), (b"expect", b"100-continue")]
    await app_of(world)(scope(headers), receive, send)
    assert sent[0]["status"] == 413


async def test_a_refused_sender_that_waits_for_a_word_is_hung_up_on(
    world: World, gate: Gate
) -> None:
    world.settings = ScorerSettings(max_waiting=1)
    async with client_of(world) as http:
        scored = [asyncio.create_task(http.post("/v1/rank", json=REQUEST)) for _ in range(2)]
        await until_asked(gate)
        refused = await http.post("/v1/rank", json=REQUEST, headers={"expect": "100-continue"})
        assert refused.status_code == 429
        assert refused.headers["connection"] == "close"
        gate.open.set()
        await asyncio.gather(*scored)


def scope(headers: Sequence[tuple[bytes, bytes]] = ()) -> Scope:
    """Of a ranking request."""
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/rank",
        "query_string": b"",
        "headers": list(headers),
    }
