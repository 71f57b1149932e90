"""Ways over HTTP/1.1, blocking and with asyncio: a small codec on sockets that stay open.

Why none of a library's clients: docs/adr/0031-a-client-on-sockets.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final, TypeAlias

import httptools

from scorer.client.address import Address, Tls
from scorer.client.errors import unreachable
from scorer.client.exchange import Call, Reply, left
from scorer.client.kserve import HEADER_LENGTH

IDLE_CONNECTIONS: Final = 16
"""How many connections a client keeps open for later requests."""

TIME_LEFT: Final = "x-envoy-expected-rq-timeout-ms"
"""Header by which a request says for how many milliseconds its answer is of use, the one of a proxy
that puts it on, too."""

RECEIVE_BYTES: Final = 262_144
"""One read takes a whole answer of some thousand candidates."""


class HttpWay:
    """A way over HTTP/1.1, blocking. May be used from several threads."""

    def __init__(self, address: Address, shown: dict[str, str], tls: Tls, timeout_s: float) -> None:
        self._codec = _Codec(address, shown)
        self._address = address
        self._tls = tls.context() if address.secure else None
        self._timeout_s = timeout_s
        self._idle: list[socket.socket] = []

    def exchange(self, call: Call, deadline: float) -> Reply:
        try:
            while True:
                connection, reused = self._connection(deadline)
                response = _Response()
                try:
                    request = self._codec.request(call, left(deadline))
                    self._send_and_receive(connection, request, response, deadline)
                except TimeoutError:
                    connection.close()
                    raise
                except OSError:
                    connection.close()
                    # A server may close an idle connection just as it is used again. Ranking
                    # changes nothing, and outcomes that count twice leave calibration as it is,
                    # so asking twice does no harm.
                    if reused and not response.begun:
                        continue
                    raise
                except BaseException:
                    connection.close()
                    raise
                self._keep(connection, response)
                return response.reply()
        except OSError as error:
            raise unreachable(self._address.url, error, self._timeout_s) from error

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _connection(self, deadline: float) -> tuple[socket.socket, bool]:
        with contextlib.suppress(IndexError):  # another thread may take the last one
            return self._idle.pop(), True
        host, port = self._address.host, self._address.port
        connection = socket.create_connection((host, port), left(deadline))
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_hostname=host)
        except BaseException:
            connection.close()
            raise
        return connection, False

    def _send_and_receive(
        self, connection: socket.socket, request: bytes, response: _Response, deadline: float
    ) -> None:
        connection.settimeout(left(deadline))
        connection.sendall(request)
        while not response.complete:
            connection.settimeout(left(deadline))
            response.feed(connection.recv(RECEIVE_BYTES))

    def _keep(self, connection: socket.socket, response: _Response) -> None:
        if response.keep_alive and len(self._idle) < IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.close()


class AsyncHttpWay:
    """A way over HTTP/1.1 with asyncio; one event loop's."""

    def __init__(self, address: Address, shown: dict[str, str], tls: Tls, timeout_s: float) -> None:
        self._codec = _Codec(address, shown)
        self._address = address
        self._tls = tls.context() if address.secure else None
        self._timeout_s = timeout_s
        self._idle: list[_Streams] = []

    async def exchange(self, call: Call, deadline: float) -> Reply:
        try:
            async with asyncio.timeout(left(deadline)):
                return await self._tried(call, deadline)
        except OSError as error:  # of which TimeoutError is one
            raise unreachable(self._address.url, error, self._timeout_s) from error

    async def close(self) -> None:
        while self._idle:
            _, writer = self._idle.pop()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _tried(self, call: Call, deadline: float) -> Reply:
        while True:
            streams, reused = await self._connection()
            reader, writer = streams
            response = _Response()
            try:
                writer.write(self._codec.request(call, left(deadline)))
                while not response.complete:
                    response.feed(await reader.read(RECEIVE_BYTES))
            except OSError:
                writer.close()
                if reused and not response.begun:  # as in HttpWay
                    continue
                raise
            except BaseException:
                writer.close()
                raise
            if response.keep_alive and len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(streams)
            else:
                writer.close()
            return response.reply()

    async def _connection(self) -> tuple[_Streams, bool]:
        if self._idle:
            return self._idle.pop(), True
        host, port = self._address.host, self._address.port
        return await asyncio.open_connection(host, port, ssl=self._tls), False


_Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Codec:
    """Turns calls into the bytes of requests."""

    def __init__(self, address: Address, shown: dict[str, str]) -> None:
        self._path = address.path
        common = {"host": address.authority, **shown}
        self._common = "".join(f"{name}: {value}\r\n" for name, value in common.items())

    def request(self, call: Call, left_s: float) -> bytes:
        """A request whose answer is of use for so many seconds."""
        own = "".join(f"{name}: {value}\r\n" for name, value in call.headers.items())
        head = (
            f"POST {self._path}{call.path} HTTP/1.1\r\n{self._common}{own}"
            f"{TIME_LEFT}: {max(1, int(left_s * 1000))}\r\n"
            f"content-length: {len(call.body)}\r\n\r\n"
        )
        return head.encode() + call.body


class _Response:
    """One HTTP response as it comes in. The methods named on_* are called by the parser."""

    def __init__(self) -> None:
        self.begun = False
        self.complete = False
        self.keep_alive = False
        self._status = 0
        self._retry_after_s: float | None = None
        self._header_length: int | None = None
        self._chunks: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def reply(self) -> Reply:
        """What it holds, once it is complete."""
        body = b"".join(self._chunks)
        return Reply(self._status, body, self._retry_after_s, self._header_length)

    def feed(self, data: bytes) -> None:
        if not data:
            raise ConnectionResetError("the connection was closed before the answer was complete")
        self.begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ConnectionError(f"what came back is not HTTP ({error})") from None

    def on_header(self, name: bytes, value: bytes) -> None:
        if not value.isdigit():
            return
        name = name.lower()
        if name == b"retry-after":
            self._retry_after_s = float(value)
        elif name == _HEADER_LENGTH:
            self._header_length = int(value)

    def on_body(self, data: bytes) -> None:
        self._chunks.append(data)

    def on_message_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self.keep_alive = self._parser.should_keep_alive()
        self.complete = True


_HEADER_LENGTH: Final = HEADER_LENGTH.encode()
