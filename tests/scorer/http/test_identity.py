from __future__ import annotations

import json
import uuid
from io import StringIO
from typing import Any

import httpx
import pytest

from infra.telemetry import get_logger
from scorer.http.identity import MAX_ID_CHARS, trace_id
from scorer.ranking import Ranker, Ranking
from tests.scorer.conftest import World, client_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
REQUEST = {"user": "u", "candidates": ["item-1"]}


async def test_a_request_id_comes_back(http: httpx.AsyncClient) -> None:
    headers = {"x-request-id": "checkout-7/a.b_c~d+e="}
    for response in (
        await http.post("/v1/rank", json=REQUEST, headers=headers),
        await http.post("/v1/rank", content=b"{", headers=headers),
        await http.get("/v2/health/live", headers=headers),
        await http.get("/nowhere", headers=headers),
    ):
        assert response.headers["x-request-id"] == headers["x-request-id"]


async def test_a_request_without_an_id_is_given_one(http: httpx.AsyncClient) -> None:
    first, second = [
        uuid.UUID((await http.post("/v1/rank", json=REQUEST)).headers["x-request-id"])
        for _ in range(2)
    ]
    assert first != second


@pytest.mark.parametrize(
    "given", ["", "a b", 'a"b', "//host", "a:b", "é", "<script>", "x" * (MAX_ID_CHARS + 1)]
)
async def test_an_id_that_could_do_harm_is_replaced(http: httpx.AsyncClient, given: str) -> None:
    headers = [(b"x-request-id", given.encode())]
    response = await http.post("/v1/rank", content=b"{", headers=headers)
    uuid.UUID(response.headers["x-request-id"])
    assert response.json()["instance"] == response.headers["x-request-id"]


async def test_the_longest_id_is_taken_over(http: httpx.AsyncClient) -> None:
    response = await http.get("/v2", headers={"x-request-id": "x" * MAX_ID_CHARS})
    assert response.headers["x-request-id"] == "x" * MAX_ID_CHARS


async def test_an_answer_to_a_bug_carries_the_id(world: World) -> None:
    broken = Telling(world.store, world.bundle, world.system, world.metrics)
    broken.breaks = True
    world.service.serve(broken, lambda: None)
    async with client_of(world) as http:
        response = await http.post("/v1/rank", json=REQUEST, headers={"x-request-id": "seven"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == response.json()["instance"] == "seven"


class Telling(Ranker):
    """A ranker that logs each ranking."""

    breaks = False

    def rank(self, *args: Any, **more: Any) -> Ranking:
        get_logger("scorer.test").warning("ranking")
        if self.breaks:
            raise ZeroDivisionError
        return super().rank(*args, **more)


@pytest.mark.parametrize(
    ("traceparent", "trace"), [(f"00-{TRACE}-b7ad6b7169203331-01", TRACE), ("00-x", None)]
)
async def test_lines_of_the_ranking_thread_name_request_and_trace(
    world: World, logged: StringIO, traceparent: str, trace: str | None
) -> None:
    telling = Telling(world.store, world.bundle, world.system, world.metrics)
    world.service.serve(telling, lambda: None)
    headers = {"x-request-id": "seven", "traceparent": traceparent}
    async with client_of(world) as http:
        assert (await http.post("/v1/rank", json=REQUEST, headers=headers)).status_code == 200
    (line,) = [json.loads(line) for line in logged.getvalue().splitlines() if "ranking" in line]
    assert line["request_id"] == "seven"
    assert line.get("trace_id") == trace


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"00-" + TRACE.encode(),
        b"00-" + TRACE.upper().encode() + b"-b7ad6b7169203331-01",
        b"ff-" + TRACE.encode() + b"-b7ad6b7169203331-01",
        b"00-" + TRACE.encode() + b"-0000000000000000-01",
        b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01",
        b"00-" + TRACE.encode() + b"-b7ad6b7169203331-01-more",
        b"00-" + TRACE.encode() + b"-b7ad6b7169203331-01\n",
    ],
)
def test_a_traceparent_that_is_not_valid_is_left_aside(given: bytes) -> None:
    assert trace_id([given]) is None


def test_a_later_version_of_traceparent_may_say_more() -> None:
    assert trace_id([b"01-" + TRACE.encode() + b"-b7ad6b7169203331-01-more"]) == TRACE


def test_of_two_traceparents_none_is_believed() -> None:
    valid = b"00-" + TRACE.encode() + b"-b7ad6b7169203331-01"
    assert trace_id([valid, valid]) is None
