"""HTTP/1.1, byte by byte: offers to upgrade, what arrives in pieces, and clients that leave."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator

import pytest
from starlette.types import Receive, Scope, Send

from infra.settings import ScorerSettings
from scorer.http.connections import Patience
from tests.scorer.http.serving import Served, Stuck, echo, serving, until

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(echo) as served:
        yield served


def said(served: Served, *parts: bytes, answers: int = 1) -> list[bytes]:
    """The bodies of the answers to what is sent in one connection, part by part."""
    with served.connect() as connection:
        for part in parts:
            connection.sendall(part)
        return [body_of(connection, buffer) for buffer in [bytearray()] for _ in range(answers)]


def body_of(connection: socket.socket, buffer: bytearray) -> bytes:
    while b"\r\n\r\n" not in buffer:
        chunk = connection.recv(65_536)
        assert chunk, bytes(buffer)
        buffer += chunk
    head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(rest) < length:
        rest += connection.recv(65_536)
    buffer[:] = rest[length:]
    return rest[:length]


def post(body: bytes, extra: bytes = b"") -> bytes:
    return b"POST /x HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (
        extra,
        len(body),
        body,
    )


def test_an_offer_to_upgrade_is_ignored_and_its_body_read(served: Served) -> None:
    assert said(served, post(b"x" * 26_000, OFFER)) == [b"1.1 POST /x 26000"]


def test_a_chunked_body_behind_an_offer_is_read(served: Served) -> None:
    head = b"POST /x HTTP/1.1\r\nHost: x\r\n" + OFFER + b"Transfer-Encoding: chunked\r\n\r\n"
    assert said(served, head + b"3\r\nabc\r\n4\r\nabcd\r\n0\r\n\r\n") == [b"1.1 POST /x 7"]


def test_an_offer_may_arrive_byte_by_byte(served: Served) -> None:
    whole = post(b"abc", OFFER)
    pieces = (whole[i : i + 1] for i in range(len(whole)))
    assert said(served, *pieces) == [b"1.1 POST /x 3"]


def test_requests_behind_an_offer_are_answered_in_turn(served: Served) -> None:
    requests = post(b"abc", OFFER) + post(b"") + post(b"ab", OFFER) + post(b"a")
    assert said(served, requests, answers=4) == [b"1.1 POST /x %d" % n for n in (3, 0, 2, 1)]


def test_hundreds_of_offers_at_once_are_no_recursion(served: Served) -> None:
    offer = b"GET / HTTP/1.1\r\nHost: x\r\n" + OFFER + b"\r\n"
    assert said(served, offer * 900, answers=900) == [b"1.1 GET / 0"] * 900


@pytest.mark.parametrize(
    "sent",
    [
        b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nwrong\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(
    served: Served, sent: bytes
) -> None:
    with served.connect() as connection:
        connection.sendall(sent)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_head_without_end_is_refused(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        answer = b""
        try:
            for _ in range(20):
                connection.sendall(b"a: %b\r\n" % (b"x" * 30_000))
            while chunk := connection.recv(65_536):
                answer += chunk
        except ConnectionError:
            return  # it is closed before we have read
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431")


def test_a_client_that_has_gone_costs_no_work_and_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Stuck()
    with caplog.at_level(logging.WARNING), serving(app) as served:
        connection = served.connect()
        connection.sendall(post(b"abc"))
        until(app.begun.is_set)
        connection.close()
        until(app.dropped.is_set)
        until(lambda: not served.connections)
    assert not caplog.records


@pytest.mark.parametrize("sent", [b"", b"GET / HT", post(b"") + b"GET / HT"])
def test_a_head_that_does_not_come_is_waited_for_no_longer_than_it_may(sent: bytes) -> None:
    with serving(echo, patience=Patience(head_s=0.05)) as served, served.connect() as connection:
        connection.sendall(sent)
        while connection.recv(65_536):
            pass
        until(lambda: not served.connections)


def test_an_answer_that_nobody_reads_ends_its_connection() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})

    with serving(app, patience=Patience(unread_s=0.05)) as served, served.connect() as connection:
        connection.sendall(post(b""))
        until(lambda: served.connections)
        until(lambda: not served.connections)


def test_an_idle_connection_is_closed() -> None:
    settings = ScorerSettings(lame_duck_s=0, idle_timeout_s=0.05)
    with serving(echo, settings) as served, served.connect() as connection:
        connection.sendall(post(b""))
        assert body_of(connection, bytearray()) == b"1.1 POST /x 0"
        assert connection.recv(65_536) == b""


def test_a_body_that_comes_drop_by_drop_behind_its_answer_is_not_taken_for_ever() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 429, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    settings = ScorerSettings(lame_duck_s=0, idle_timeout_s=0.5)
    with serving(app, settings) as served, served.connect() as connection:
        connection.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(65_536)

        def cut() -> bool:
            try:
                connection.sendall(b"x")
            except OSError:
                return True
            time.sleep(0.05)
            return False

        until(cut)
