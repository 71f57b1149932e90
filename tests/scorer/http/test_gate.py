"""What is refused at its head: by real sockets, at a gate that refuses whoever has no time."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest
from h2.events import ResponseReceived
from h2.settings import SettingCodes
from prometheus_client import CollectorRegistry

from infra.metrics import Figures, ScorerMetrics
from scorer.access import Access
from scorer.http.connections import Connections
from scorer.http.gate import Gate, Headers, Judged, Refusal
from scorer.keys import KeyFile
from scorer.turns import Head, Turns
from tests.scorer.conftest import World, ask_callers
from tests.scorer.http.serving import Served, echo, serving
from tests.scorer.http.test_http2 import Client

NO_TIME = b"x-request-timeout-ms: 0\r\n"
SAMPLED = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def gate(registry: CollectorRegistry) -> Gate:
    return Gate(Turns(64, 5.0), ScorerMetrics(registry))


@pytest.fixture
def served(gate: Gate) -> Iterator[Served]:
    with serving(echo, gate=gate) as served:
        yield served


def post(extra: bytes = NO_TIME, body: bytes = b"x" * 100, path: bytes = b"/v1/rank") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n"
    return head % (path, extra, len(body)) + body


GET = b"GET /after HTTP/1.1\r\nHost: x\r\n\r\n"


class Conversation:
    """A connection, whose answers are read one after another."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def say(self, *parts: bytes) -> None:
        for part in parts:
            self._connection.sendall(part)

    def answer(self) -> tuple[HTTPResponse, bytes]:
        answer = HTTPResponse(self._connection)
        # Its reader would take in the beginning of the next answer.
        answer.fp.close()
        answer.fp = self._connection.makefile("rb", buffering=0)  # type: ignore[assignment]
        answer.begin()
        return answer, answer.read()

    @property
    def is_over(self) -> bool:
        return self._connection.recv(1) == b""


@pytest.fixture
def conversation(served: Served) -> Iterator[Conversation]:
    with served.connect() as connection:
        yield Conversation(connection)


def test_a_refusal_is_a_whole_answer(conversation: Conversation) -> None:
    conversation.say(post(NO_TIME + b"x-request-id: seven\r\n"))
    answer, body = conversation.answer()
    assert answer.status == 429
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "seven"
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["date"]
    told = json.loads(body)
    assert (told["type"], told["status"]) == ("/problems/deadline", 429)


def test_below_v2_a_refusal_is_what_its_clients_expect(conversation: Conversation) -> None:
    conversation.say(post(path=b"/v2/models/tiny/infer"))
    answer, body = conversation.answer()
    assert answer.status == 429
    assert "could not be answered by its deadline" in json.loads(body)["error"]


def test_the_body_of_what_is_refused_is_dropped(conversation: Conversation) -> None:
    whole = post(body=GET * 40)
    conversation.say(whole[:200], whole[200:700], whole[700:], GET)
    assert conversation.answer()[0].status == 429
    assert conversation.answer()[1] == b"1.1 GET /after 0"


def test_requests_behind_one_that_is_refused_are_answered_in_order(
    conversation: Conversation,
) -> None:
    conversation.say(post() + post() + GET + post())
    answers = [conversation.answer() for _ in range(4)]
    # Behind one that is being answered the application is asked: here it takes all.
    assert [answer.status for answer, _ in answers] == [429, 429, 200, 200]
    assert [body for _, body in answers[2:]] == [b"1.1 GET /after 0", b"1.1 POST /v1/rank 100"]


@pytest.mark.parametrize(
    "whole",
    [
        post(NO_TIME + b"Connection: close\r\n"),
        post().replace(b"HTTP/1.1", b"HTTP/1.0"),
        # It would send no body, and what it sent next was read as one.
        post(NO_TIME + b"Expect: 100-continue\r\n")[:-100],
    ],
    ids=["asked for", "HTTP/1.0", "waits for a word"],
)
def test_a_connection_ends_with_a_refusal(conversation: Conversation, whole: bytes) -> None:
    conversation.say(whole)
    answer, _ = conversation.answer()
    assert answer.status == 429
    assert answer.headers["connection"] == "close"
    assert conversation.is_over


def test_a_scorer_that_takes_leave_closes_with_a_refusal(
    served: Served, conversation: Conversation
) -> None:
    conversation.say(GET)
    conversation.answer()
    connections = served.server.server_state
    assert isinstance(connections, Connections)
    connections.drain()
    conversation.say(post())
    assert conversation.answer()[0].headers["connection"] == "close"


@pytest.mark.parametrize(
    "whole",
    [
        post(b""),
        post().replace(b"POST", b"PUT"),
        post(path=b"/v1/other"),
        post(path=b"http://x/v1/rank"),
    ],
    ids=["has time", "another method", "another path", "an absolute target"],
)
def test_the_application_answers_all_else(conversation: Conversation, whole: bytes) -> None:
    conversation.say(whole)
    assert conversation.answer()[0].status == 200


def test_refusals_are_counted(conversation: Conversation, registry: CollectorRegistry) -> None:
    conversation.say(post(), post())
    for _ in range(2):
        conversation.answer()
    figures = Figures(registry)
    asked = figures.sum("lifelong_scorer_requests_total", route="/v1/rank", status="429")
    timed = figures.sum("lifelong_scorer_request_seconds_count", route="/v1/rank")
    rejected = figures.sum("lifelong_scorer_rejected_total", reason="deadline")
    assert (asked, timed, rejected) == (2, 2, 2)


def test_a_stream_is_refused_and_the_next_one_answered(served: Served) -> None:
    with Client(served) as client:
        refused = client.request("POST", "/v1/rank", ("x-request-timeout-ms", "0"), end=False)
        answered = client.request("GET", "/after")
        told = client.until(ResponseReceived, refused)
        assert isinstance(told, ResponseReceived)
        assert "429" in {str(value) for _, value in told.headers}
        assert client.answer(answered) == b"2 GET /after 0"
        assert json.loads(client.answer(refused))["status"] == 429


def test_a_refusal_waits_until_its_client_has_room(served: Served) -> None:
    with Client(served) as client:
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        stream = client.request("POST", "/v1/rank", ("x-request-timeout-ms", "0"))
        client.until(ResponseReceived, stream)
        assert stream not in client.bodies
        client.h2.increment_flow_control_window(10_000, stream)
        client.flush()
        assert json.loads(client.answer(stream))["status"] == 429


def test_a_stream_that_is_taken_back_with_its_head_is_not_answered(served: Served) -> None:
    with Client(served) as client:
        stream = client.h2.get_next_available_stream_id()
        fields = [(":method", "POST"), (":path", "/v1/rank"), (":scheme", "http")]
        fields += [(":authority", "x"), ("x-request-timeout-ms", "0")]
        client.h2.send_headers(stream, fields)
        client.h2.reset_stream(stream)
        client.flush()  # both at once
        assert client.answer(client.request("GET", "/after")) == b"2 GET /after 0"


async def test_heads_that_come_at_once_count_each_other(registry: CollectorRegistry) -> None:
    gate = Gate(Turns(4, 5.0), ScorerMetrics(registry))

    def at_once() -> list[bool]:
        heads = (gate.at_head("POST", b"/v1/rank", [], None) for _ in range(10))
        return [isinstance(judged, Judged) for judged in heads]

    assert at_once() == [True] * 5 + [False] * 5
    await asyncio.sleep(0)
    assert at_once() == [True] * 5 + [False] * 5


def keyed(name: str) -> Headers:
    return [(b"x-api-key", f"key of {name}".encode()), (b"x-request-timeout-ms", b"0")]


@pytest.mark.parametrize(
    ("headers", "refused"),
    [(keyed("shop"), True), (keyed("tiny-only"), True), (keyed("watcher"), False), ([], False)],
)
async def test_the_application_tells_strangers_that_they_may_not(
    world: World, tmp_path: Path, headers: Headers, refused: bool
) -> None:
    ask_callers(world, tmp_path)
    gate = Gate(Turns(4, 5.0), world.metrics, world.access)
    judged = gate.at_head("POST", b"/v1/rank", headers, None)
    assert judged is None or refused
    assert isinstance(judged, Refusal) == refused


async def test_callers_with_a_rate_are_none_of_the_load_before_it_is_looked_at(
    world: World, tmp_path: Path
) -> None:
    ask_callers(world, tmp_path, per_s=1)
    gate = Gate(Turns(4, 5.0), world.metrics, world.access)
    assert gate.at_head("POST", b"/v1/rank", keyed("shop"), None) is None


async def test_callers_are_told_by_their_names(world: World, tmp_path: Path) -> None:
    ask_callers(world, tmp_path)
    gate = Gate(Turns(4, 5.0), world.metrics, world.access)
    headers = [*keyed("shop")[:1], (b"x-client-id", b"somebody else")]
    judged = gate.at_head("POST", b"/v1/rank", headers, ("127.0.0.1", 7))
    assert isinstance(judged, Judged)
    assert judged.head == Head("/v1/rank", 0, None, 1, "shop")


async def test_a_refusal_that_its_sender_traces_is_left_to_the_application(
    registry: CollectorRegistry,
) -> None:
    gate = Gate(Turns(4, 5.0), ScorerMetrics(registry), traced=True)
    no_time = (b"x-request-timeout-ms", b"0")
    traced = [no_time, (b"traceparent", SAMPLED)]
    assert gate.at_head("POST", b"/v1/rank", traced, None) is None
    unsampled = [no_time, (b"traceparent", SAMPLED[:-1] + b"0")]
    assert isinstance(gate.at_head("POST", b"/v1/rank", unsampled, None), Refusal)


def test_a_key_file_that_knows_nobody_leaves_all_to_the_check(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text("")
    access = Access(KeyFile(tmp_path / "keys.toml"), None, lambda: "tiny")
    assert access.known("") is None
    assert access.known("nobody's") is None
