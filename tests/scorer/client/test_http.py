from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from infra.errors import RequestError
from scorer.client import (
    NO_RETRIES,
    AsyncRankClient,
    RankClient,
    Retries,
    ScorerError,
    ScorerUnavailable,
)
from scorer.messages import RankAnswer
from tests.scorer.conftest import World, app_of, ask_callers

CANDIDATES = [f"item-{i}" for i in range(1, 51)]


@contextlib.contextmanager
def serving(world: World) -> Iterator[str]:
    """The application behind a real socket; its URL."""
    config = uvicorn.Config(
        app_of(world), ws="none", lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(10)


@pytest.fixture
def url(world: World) -> Iterator[str]:
    with serving(world) as url:
        yield url


@contextlib.contextmanager
def scripted(*connections: Sequence[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers each request on its n-th connection with the next of the n-th's bytes,
    then closes it. Gives its URL and the requests that came."""
    requests: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for answers in connections:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    for answer in answers:
                        requests.append(read_request(connection))
                        connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def read_request(connection: socket.socket) -> bytes:
    data = receive(connection)
    while b"\r\n\r\n" not in data:
        data += receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += receive(connection)
    return head + b"\r\n\r\n" + body


def receive(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    if not data:
        raise ConnectionResetError
    return data


BODY = (
    b'{"user":"u","model":"m","version":"v","history":"none","items":[{"item":"a","ctr":0.5}],'
    b'"unknown_items":[],"newer":0}'
)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)


def answer(status: int, body: bytes, *headers: bytes) -> bytes:
    head = b"".join(b"%b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), head, body)


def ask_blocking(
    url: str,
    *requests: dict[str, Any],
    timeout_s: float = 5,
    retries: Retries = NO_RETRIES,
) -> list[RankAnswer]:
    with RankClient(url, timeout_s, retries) as client:
        return [client.rank(**request) for request in requests]


def ask_async(
    url: str,
    *requests: dict[str, Any],
    timeout_s: float = 5,
    retries: Retries = NO_RETRIES,
) -> list[RankAnswer]:
    async def ask() -> list[RankAnswer]:
        async with AsyncRankClient(url, timeout_s, retries) as client:
            return [await client.rank(**request) for request in requests]

    return asyncio.run(ask())


BOTH = pytest.mark.parametrize("ask", [ask_blocking, ask_async])
REQUEST = {"user": "u", "candidates": ["a"]}


@BOTH
def test_a_ranking_comes_back(ask: Any, url: str, world: World) -> None:
    request = {"user": "u", "candidates": CANDIDATES, "top_k": 5, "time_ms": 1_700_000_000_000}
    (ranking,) = ask(url, request)
    assert ranking.user == "u"
    assert ranking.history == "interests"
    assert ranking.as_of.count == 30
    ctrs = world.ranker.rank("u", CANDIDATES).ctrs
    best = sorted(zip(-ctrs, CANDIDATES, strict=True))[:5]
    assert [line.item for line in ranking.items] == [item for _, item in best]
    assert ranking.items[0].ctr == pytest.approx(ctrs.max(), abs=1e-7)


@BOTH
def test_unknown_items_are_treated_as_asked(ask: Any, url: str) -> None:
    request = {"user": "u", "candidates": ["x", "item-1"]}
    (last,) = ask(url, {**request, "unknown_items": "last"})
    assert [line.item for line in last.items] == ["item-1", "x"]
    with pytest.raises(RequestError, match="does not know: 'x'"):
        ask(url, {**request, "unknown_items": "refuse"})


@BOTH
def test_a_ranking_is_explained_as_asked(ask: Any, url: str) -> None:
    plain, two = ask(url, REQUEST, {"user": "u", "candidates": CANDIDATES, "explain": 2})
    assert not plain.explained
    assert [one.item for one in two.explained.items] == [one.item for one in two.items[:2]]


@BOTH
def test_a_refusal_names_the_field(ask: Any, url: str) -> None:
    with pytest.raises(RequestError, match="candidates is empty") as refused:
        ask(url, {"user": "u", "candidates": []})
    assert refused.value.field == "candidates"


@BOTH
def test_a_body_far_beyond_the_limit_is_told_as_such(ask: Any, url: str) -> None:
    """The server takes it in and answers, instead of resetting the connection meanwhile."""
    with pytest.raises(RequestError, match="larger than"):
        ask(url, {"user": "u", "candidates": ["x" * 200] * 20_000})


@BOTH
def test_a_strict_scorer_without_its_store_is_unavailable(ask: Any, strict_world: World) -> None:
    strict_world.store.away = True
    with (
        serving(strict_world) as url,
        pytest.raises(ScorerUnavailable, match="cannot be reached") as unavailable,
    ):
        ask(url, {"user": "u", "candidates": ["a"]})
    assert unavailable.value.retry_after_s == 1


@BOTH
def test_connections_are_used_again(ask: Any) -> None:
    with scripted([OK, OK, OK]) as (url, requests):
        assert len(ask(url, REQUEST, REQUEST, REQUEST)) == 3
    assert len(requests) == 3


@BOTH
def test_a_dropped_idle_connection_is_opened_again(ask: Any) -> None:
    with scripted([OK], [OK]) as (url, requests):
        assert len(ask(url, REQUEST, REQUEST)) == 2
    assert len(requests) == 2


@BOTH
def test_a_fresh_connection_that_drops_is_no_reason_to_ask_again(ask: Any) -> None:
    with scripted([b""], [OK]) as (url, requests):
        with pytest.raises(ScorerUnavailable, match="closed before the answer"):
            ask(url, REQUEST)
        assert len(requests) == 1


@BOTH
def test_half_an_answer_is_no_reason_to_ask_again(ask: Any) -> None:
    with scripted([OK, OK[:40]], [OK]) as (url, requests):
        with pytest.raises(ScorerUnavailable, match="closed before the answer"):
            ask(url, REQUEST, REQUEST)
        assert len(requests) == 2


@BOTH
def test_connection_close_is_honored(ask: Any) -> None:
    closing = answer(200, BODY, b"connection: close")
    with scripted([closing], [closing]) as (url, requests):
        assert len(ask(url, REQUEST, REQUEST)) == 2
    assert len(requests) == 2


@BOTH
def test_a_chunked_answer_is_understood(ask: Any) -> None:
    """As some proxies send it."""
    chunks = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (10, BODY[:10], len(BODY) - 10, BODY[10:])
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    with scripted([head + chunks]) as (url, _):
        (ranking,) = ask(url, REQUEST)
    assert ranking.items[0].ctr == 0.5


@BOTH
@pytest.mark.parametrize(
    ("response", "kind", "word"),
    [
        (answer(200, b"<html>"), ScorerError, "no ranking"),
        (answer(200, b"{}"), ScorerError, "no ranking"),
        (answer(500, b"oops"), ScorerError, "500"),
        (answer(404, b"<html>"), RequestError, "404"),
        (answer(404, b'{"error": "x is not served"}'), RequestError, "x is not served"),
        (answer(503, b"busy", b"retry-after: 7"), ScorerUnavailable, "503"),
        (answer(429, b'{"detail": "too many", "status": 429}'), ScorerUnavailable, "too many"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ScorerUnavailable, "not HTTP"),
    ],
)
def test_what_is_no_ranking_is_an_error_of_its_kind(
    ask: Any, response: bytes, kind: type[Exception], word: str
) -> None:
    with scripted([response]) as (url, _), pytest.raises(kind, match=word):
        ask(url, REQUEST)


@BOTH
def test_nobody_there_is_unavailable(ask: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    with pytest.raises(ScorerUnavailable, match="is a scorer running"):
        ask(url, REQUEST)


@BOTH
def test_silence_is_unavailable(ask: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ScorerUnavailable, match=r"within 0\.1 s"):
            ask(url, REQUEST, timeout_s=0.1)
        assert time.monotonic() - started < 5


@BOTH
@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://host", "http://", "http://h:99999"])
def test_a_url_of_no_scorer_is_refused(ask: Any, url: str) -> None:
    with pytest.raises(ScorerError, match="http://HOST:PORT"):
        ask(url, REQUEST)


@BOTH
def test_text_that_is_no_unicode_is_refused(ask: Any) -> None:
    with pytest.raises(RequestError, match="Unicode"):
        ask("http://127.0.0.1:1", {"user": "\ud800", "candidates": ["a"]})


BUSY = answer(429, b'{"detail": "too many requests wait"}', b"retry-after: 0")


@BOTH
def test_a_scorer_that_is_busy_is_asked_again_if_wished(ask: Any) -> None:
    with scripted([BUSY, answer(503, b"", b"retry-after: 0"), OK]) as (url, requests):
        (ranking,) = ask(url, REQUEST, retries=Retries())
    assert ranking.items[0].ctr == 0.5
    assert len(requests) == 3


@BOTH
@pytest.mark.parametrize("most", [0, 1])
def test_a_busy_scorer_is_not_asked_without_end(ask: Any, most: int) -> None:
    with scripted([BUSY, BUSY, BUSY]) as (url, requests):
        with pytest.raises(ScorerUnavailable, match="too many requests wait") as unavailable:
            ask(url, REQUEST, retries=Retries(most))
        assert len(requests) == 1 + most
    assert unavailable.value.retry_after_s == 0


@BOTH
def test_a_client_does_not_wait_longer_than_its_time(ask: Any) -> None:
    with scripted([answer(429, b"", b"retry-after: 7"), OK]) as (url, requests):
        with pytest.raises(ScorerUnavailable) as unavailable:
            ask(url, REQUEST, retries=Retries())
        assert len(requests) == 1
    assert unavailable.value.retry_after_s == 7


@BOTH
def test_retries_of_all_requests_come_out_of_one_budget(ask: Any) -> None:
    """Of the first request both, of which the second leaves nothing to the next."""
    with scripted([BUSY, BUSY, OK, BUSY]) as (url, requests):
        with pytest.raises(ScorerUnavailable):
            ask(url, REQUEST, REQUEST, retries=Retries(saved=2.0, share=0.1))
        assert len(requests) == 4


@BOTH
def test_a_request_that_was_refused_is_not_asked_again(ask: Any) -> None:
    with scripted([answer(400, b"")]) as (url, requests):
        with pytest.raises(RequestError):
            ask(url, REQUEST, retries=Retries())
        assert len(requests) == 1


@BOTH
def test_a_request_says_how_much_time_is_left(ask: Any) -> None:
    with scripted([BUSY, OK]) as (url, requests):
        ask(url, REQUEST, retries=Retries())
    first, second = [
        int(one.split(b"x-envoy-expected-rq-timeout-ms: ")[1].split(b"\r\n")[0]) for one in requests
    ]
    assert 0 < second <= first <= 5000


def test_a_client_serves_several_threads(url: str) -> None:
    with RankClient(url) as client, ThreadPoolExecutor(8) as threads:
        users = [f"user-{i}" for i in range(100)]
        rankings = list(threads.map(lambda user: client.rank(user, ["item-1"]), users))
    assert [ranking.user for ranking in rankings] == users


async def test_an_asynchronous_client_serves_several_tasks(url: str) -> None:
    async with AsyncRankClient(url) as client:
        users = [f"user-{i}" for i in range(50)]
        rankings = await asyncio.gather(*(client.rank(user, ["item-1"]) for user in users))
    assert [ranking.user for ranking in rankings] == users


def test_a_client_shows_its_key(world: World, tmp_path: Path) -> None:
    ask_callers(world, tmp_path)
    with serving(world) as url:
        with RankClient(url, key="key of shop") as client:
            assert client.rank("u", ["item-1"]).items
        with RankClient(url) as client, pytest.raises(RequestError, match="is missing"):
            client.rank("u", ["item-1"])

        async def rank() -> RankAnswer:
            async with AsyncRankClient(url, key="key of shop") as client:
                return await client.rank("u", ["item-1"])

        assert asyncio.run(rank()).items


@pytest.mark.parametrize("key", ["a\r\nx: y", "ü", " a", "\x00"])
def test_a_key_that_is_no_header_is_refused(key: str) -> None:
    with pytest.raises(ScorerError, match="printable ASCII"):
        RankClient("http://127.0.0.1:1", key=key)
