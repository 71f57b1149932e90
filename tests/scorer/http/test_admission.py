from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from infra.settings import ScorerSettings
from scorer.ranking import Ranker, Ranking
from tests.scorer.conftest import World, client_of

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
        assert refused.status_code == 503
        assert "2 others were waiting" in refused.json()["detail"]
        assert refused.headers["retry-after"] == "1"
        gate.open.set()
        assert [(await task).status_code for task in scored] == [200, 200, 200]
        assert (await http.post("/v1/rank", json=REQUEST)).status_code == 200


async def test_a_request_past_its_deadline_is_given_up(world: World, gate: Gate) -> None:
    world.settings = ScorerSettings(deadline_s=0.05)
    async with client_of(world) as http:
        response = await http.post("/v1/rank", json=REQUEST)
        assert response.status_code == 503
        assert "0.05 s" in response.json()["detail"]
        gate.open.set()


async def test_a_request_given_up_while_waiting_is_never_scored(world: World, gate: Gate) -> None:
    world.settings = ScorerSettings(deadline_s=0.05)
    async with client_of(world) as http:
        await asyncio.gather(*(http.post("/v1/rank", json=REQUEST) for _ in range(3)))
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
        assert response.status_code == 503
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


async def test_a_body_that_dribbles_in_is_given_up() -> None:
    from scorer.http.middleware import BodyLimit
    from scorer.limits import Refused

    async def app(*_: Any) -> None:
        pytest.fail("the request never became whole")

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    limit = BodyLimit(app, max_bytes=100, timeout_s=0.1)
    with pytest.raises(Refused) as refused:
        await limit({"type": "http", "headers": []}, receive, app)
    assert refused.value.status == 408


async def test_an_announced_giant_that_waits_for_a_word_is_refused_unread() -> None:
    from scorer.http.middleware import BodyLimit
    from scorer.limits import Refused

    async def nothing(*_: Any) -> Any:
        pytest.fail("nothing is to be read")

    headers = [(b"content-length", b"101"), (b"expect", b"100-continue")]
    limit = BodyLimit(nothing, max_bytes=100)
    with pytest.raises(Refused) as refused:
        await limit({"type": "http", "headers": headers}, nothing, nothing)
    assert refused.value.status == 413
