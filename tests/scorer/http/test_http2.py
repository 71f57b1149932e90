"""HTTP/2, with the client's half of h2: streams, windows, and clients that do not behave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Iterator
from typing import Self

import pytest
import uvicorn
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    StreamEnded,
    StreamReset,
)
from hyperframe.frame import GoAwayFrame, RstStreamFrame
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.settings import ScorerSettings
from scorer.http.connections import Connections, Patience
from scorer.http.http2 import LAST_STREAM, MAX_RESETS, PREFACE, Http2
from tests.fuzz.http2 import POST, START, head, packed
from tests.scorer.http.serving import Served, Stuck, echo, serving, until


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(echo) as served:
        yield served


class Client:
    """A connection, and what has come of it by stream."""

    def __init__(self, served: Served) -> None:
        self.socket = served.connect()
        self.h2 = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.bodies: dict[int, bytes] = {}
        self.events: list[Event] = []
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def request(
        self, method: str = "GET", path: str = "/", *more: tuple[str, str], end: bool = True
    ) -> int:
        stream = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "x")]
        self.h2.send_headers(stream, [*fields, *more], end_stream=end)
        self.flush()
        return stream

    def send(self, stream: int, body: bytes) -> None:
        """Send a body, waiting for room."""
        while body:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room:
                self.h2.send_data(stream, body[:room], end_stream=len(body) <= room)
                body = body[room:]
                self.flush()
            else:
                self.read()

    def read(self) -> bool:
        """Take in what has come; whether the connection is still open."""
        data = self.socket.recv(65_536)
        for event in self.h2.receive_data(data) if data else []:
            self.events.append(event)
            if isinstance(event, ConnectionTerminated):
                self.h2.state_machine.state = ConnectionState.CLIENT_OPEN  # answers come still
            if isinstance(event, DataReceived):
                assert event.data is not None
                assert event.stream_id is not None
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                self.h2.acknowledge_received_data(
                    event.flow_controlled_length or 0, event.stream_id
                )
        with contextlib.suppress(OSError):  # it may be closed behind the last of the answers
            self.flush()
        return bool(data)

    def until(self, kind: type[Event], stream: int | None = None) -> Event:
        while True:
            for event in self.events:
                if isinstance(event, kind) and stream in (None, getattr(event, "stream_id", 0)):
                    return event
            assert self.read(), self.events

    def until_farewells(self, count: int) -> None:
        while sum(isinstance(event, ConnectionTerminated) for event in self.events) < count:
            assert self.read()

    def answer(self, stream: int) -> bytes:
        self.until(StreamEnded, stream)
        return self.bodies.get(stream, b"")


def test_requests_share_a_connection(served: Served) -> None:
    with Client(served) as client:
        streams = [client.request(path=f"/{n}") for n in range(20)]
        assert [client.answer(stream) for stream in streams] == [
            b"2 GET /%d 0" % n for n in range(20)
        ]


def test_a_body_larger_than_all_windows_is_read(served: Served) -> None:
    with Client(served) as client:
        for _ in range(3):
            stream = client.request("POST", "/x", end=False)
            client.send(stream, bytes(3_000_000))
            assert client.answer(stream) == b"2 POST /x 3000000"


def test_an_answer_larger_than_the_client_s_window_waits_for_room() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(1_000_000)})

    with serving(app) as served, Client(served) as client:
        assert len(client.answer(client.request())) == 1_000_000


def test_an_answer_that_nobody_reads_ends_its_stream() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(1_000_000)})

    with serving(app, patience=Patience(unread_s=0.05)) as served, Client(served) as client:
        client.h2.acknowledge_received_data = lambda *_: None  # type: ignore[method-assign]
        client.until(StreamReset, client.request())


def test_head_has_no_body(served: Served) -> None:
    with Client(served) as client:
        assert client.answer(client.request("HEAD")) == b""


def test_a_client_that_waits_for_a_word_gets_it(served: Served) -> None:
    with Client(served) as client:
        stream = client.request("POST", "/x", ("expect", "100-continue"), end=False)
        client.until(InformationalResponseReceived, stream)
        client.send(stream, b"abc")
        assert client.answer(stream) == b"2 POST /x 3"


def test_a_body_that_nobody_wants_is_not_waited_for() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with serving(app) as served, Client(served) as client:
        for _ in range(20):  # more than the connection's window
            stream = client.request("POST", "/x", end=False)
            client.h2.send_data(stream, bytes(16_000))
            client.flush()
            client.answer(stream)
            client.until(StreamReset, stream)


def test_a_request_that_is_taken_back_costs_no_work_and_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Stuck()
    with caplog.at_level(logging.WARNING), serving(app) as served, Client(served) as client:
        stream = client.request()
        until(app.begun.is_set)
        client.h2.reset_stream(stream, ErrorCodes.CANCEL)
        client.flush()
        until(app.dropped.is_set)
    assert not caplog.records


def test_an_application_that_fails_ends_its_stream_alone() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/fails":
            raise ValueError("on purpose")
        await echo(scope, receive, send)

    with serving(app) as served, Client(served) as client:
        client.until(StreamReset, client.request(path="/fails"))
        assert client.answer(client.request()) == b"2 GET / 0"


def test_a_client_that_takes_back_all_it_asks_is_told_to_calm_down() -> None:
    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    with serving(app) as served, Client(served) as client:
        for _ in range(MAX_RESETS + 1):
            client.h2.reset_stream(client.request(end=False))
        client.flush()
        farewell = client.until(ConnectionTerminated)
        assert isinstance(farewell, ConnectionTerminated)
        assert farewell.error_code == ErrorCodes.ENHANCE_YOUR_CALM


def test_the_log_has_one_line_of_clients_that_break_rules_however_many_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    resets = [
        frame
        for stream in range(1, 4 * MAX_RESETS, 2)
        for frame in (head(stream, POST), RstStreamFrame(stream, 8))
    ]
    with serving(echo) as served:
        for _ in range(3):
            with served.connect() as client:
                client.sendall(START + packed(*resets))
                while client.recv(65_536):
                    pass
    (told,) = caplog.records
    assert "broke the rules" in told.getMessage()


def test_a_body_of_another_length_than_announced_ends_the_connection(served: Served) -> None:
    with Client(served) as client:
        stream = client.request("POST", "/x", ("content-length", "5"), end=False)
        client.h2.send_data(stream, b"abc", end_stream=True)
        client.flush()
        client.until(ConnectionTerminated)


def test_noise_ends_a_connection_and_not_the_server(served: Served) -> None:
    noise = random.Random(7)
    for _ in range(200):
        with served.connect() as connection:
            kind, stream = noise.randrange(12), noise.randrange(4)
            payload = noise.randbytes(noise.randrange(60))
            head = len(payload).to_bytes(3) + bytes([kind, noise.randrange(256)])
            connection.sendall(PREFACE + bytes(9) + head + stream.to_bytes(4) + payload)
    with Client(served) as client:
        assert client.answer(client.request()) == b"2 GET / 0"
    until(lambda: not served.connections)


async def test_who_does_not_read_is_not_read_from() -> None:
    transport = Unread()
    state = Connections(lambda _: None, Patience())
    connection = Http2(uvicorn.Config(echo), state, {})
    connection.connection_made(transport)
    connection.pause_writing()
    connection.resume_writing()
    assert transport.told == ["pause", "resume"]
    connection.connection_lost(None)


class Unread(asyncio.Transport):
    """A transport whose other end does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")


def test_an_idle_connection_is_closed_with_a_word() -> None:
    settings = ScorerSettings(lame_duck_s=0, idle_timeout_s=0.05)
    with serving(echo, settings) as served, Client(served) as client:
        assert client.answer(client.request()) == b"2 GET / 0"
        client.until(ConnectionTerminated)


def waits_for(go: threading.Event) -> ASGIApp:
    """`echo`, which answers /slow once it may."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while scope["path"] == "/slow" and not go.is_set():  # noqa: ASYNC110  # of a thread
            await asyncio.sleep(0.01)
        await echo(scope, receive, send)

    return app


def test_a_client_that_says_goodbye_gets_what_it_has_asked_for() -> None:
    go = threading.Event()
    with serving(waits_for(go)) as served, Client(served) as client:
        stream = client.request(path="/slow")
        until(lambda: served.server.server_state.tasks)
        client.socket.sendall(GoAwayFrame(0).serialize())
        go.set()
        assert client.answer(stream) == b"2 GET /slow 0"
        until(lambda: not served.connections)


def test_a_client_is_asked_to_go_and_answered_all_the_same_before_the_server_stops() -> None:
    go = threading.Event()
    settings = ScorerSettings(lame_duck_s=60)
    with serving(waits_for(go), settings) as served, Client(served) as client:
        slow = client.request(path="/slow")
        until(lambda: served.server.server_state.tasks)
        served.stop()
        farewell = client.until(ConnectionTerminated)
        assert isinstance(farewell, ConnectionTerminated)
        assert farewell.last_stream_id == LAST_STREAM
        late = client.request(path="/late")
        assert client.answer(late) == b"2 GET /late 0"

        served.stop()
        client.until_farewells(2)
        refused = client.request(path="/refused")
        client.until(StreamReset, refused)
        go.set()
        assert client.answer(slow) == b"2 GET /slow 0"
        assert not client.read()
        served.thread.join()
