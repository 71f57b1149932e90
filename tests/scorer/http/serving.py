"""A server in a thread of the test, over any application."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from infra.settings import ScorerSettings
from scorer.http.connections import Patience
from scorer.http.gate import Gate
from scorer.http.serving import HttpServer
from scorer.listener import listen
from scorer.siblings import Place, Siblings
from scorer.tls import TlsFiles

WAIT_S = 30.0


@dataclass
class Served:
    """A server that runs, and what it has said."""

    server: HttpServer
    thread: threading.Thread
    port: int
    stops: list[float]
    clients: contextlib.ExitStack
    """Closes what the test has opened."""

    def stop(self) -> None:
        """What a signal does."""
        self.server.handle_exit(signal.SIGTERM, None)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)

    def client(self, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
        """A client of HTTP/1.1, which connects when it asks, and anew when it was told to."""
        client = (
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
            if tls is None
            else http.client.HTTPSConnection("127.0.0.1", self.port, timeout=WAIT_S, context=tls)
        )
        self.clients.callback(client.close)
        return client

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)


async def each_second() -> None:
    pass


@contextlib.contextmanager
def serving(
    app: ASGIApp,
    settings: ScorerSettings | None = None,
    place: Place | None = None,
    patience: Patience | None = None,
    tls: TlsFiles | None = None,
    gate: Gate | None = None,
) -> Iterator[Served]:
    given = settings or ScorerSettings(lame_duck_s=0)
    settings = given.model_copy(update={"port": 0})
    stops: list[float] = []
    with listen(settings) as listener, contextlib.ExitStack() as clients:
        server = HttpServer(
            app,
            settings,
            place or Siblings(1).place(0),
            on_stop=lambda: stops.append(time.monotonic()),
            each_second=each_second,
            tls=(tls or TlsFiles(settings)).context(),
            patience=patience,
            gate=gate,
        )
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until(lambda: server.started)
            yield Served(server, thread, port, stops, clients)
        finally:
            server.should_exit = server.force_exit = True
            thread.join(WAIT_S)
        assert not thread.is_alive()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the version of the protocol and the length of the body."""
    length = 0
    while True:
        message = await receive()
        length += len(message.get("body", b""))
        if not message.get("more_body", False):
            break
    answer = f"{scope['http_version']} {scope['method']} {scope['path']} {length}".encode()
    headers = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


class Stuck:
    """An application that never answers, and notes when it is asked and when it is dropped."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.dropped = threading.Event()

    async def __call__(self, _scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.dropped.set()
