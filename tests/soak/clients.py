"""Clients of the scorer: HTTP/1.1, HTTP/2 and gRPC, each of which tells what became of a request.

They are the soak's own where a library would hide what is asked here: whether an answer came once,
and whether a connection was lost before it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Protocol

import grpc
import grpc.aio
from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError

from scorer.grpc import open_inference_pb2 as pb
from scorer.grpc.methods import SERVICE
from tests.soak.asking import (
    Answer,
    Asked,
    Reply,
    Wire,
    over_grpc,
    over_http,
    read_grpc,
    read_http,
    reason_of,
)

HOST: Final = "127.0.0.1"
LOST: Final = (OSError, asyncio.IncompleteReadError)


class NotAnswered(Exception):
    """A connection was lost before an answer, or not made."""


class Doubled(Exception):
    """More came than was asked for."""


class Client(Protocol):
    """A client of one protocol."""

    name: str

    async def ask(self, asked: Asked) -> Answer:
        """The answer to a request.

        Raises:
            NotAnswered: there was none.
            Doubled: there was more than one.
        """

    async def hang_up(self, asked: Asked, share: float) -> None:
        """Send a share of a request, 1: all, and leave without its answer."""

    async def close(self) -> None:
        """Close all connections."""


class Http1:
    """HTTP/1.1 on one connection, which is kept while the server keeps it."""

    name = "HTTP/1.1"

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, asked: Asked) -> Answer:
        wire = over_http(asked)
        try:
            reader, writer = await self._connected()
            writer.write(_head1(wire) + wire.body)
            reply = await self._read(reader)
        except LOST as error:
            await self.close()
            raise NotAnswered(repr(error)) from error
        if reply.headers.get("connection") == "close":
            extra = await reader.read(1)
            await self.close()
            if extra:
                raise Doubled("bytes after the last answer of a connection")
        return read_http(asked, reply)

    async def hang_up(self, asked: Asked, share: float) -> None:
        wire = over_http(asked)
        whole = _head1(wire) + wire.body
        with contextlib.suppress(*LOST):
            _, writer = await self._connected()
            writer.write(whole[: max(1, round(share * len(whole)))])
            await writer.drain()
        await self.close()

    async def close(self) -> None:
        if self._open is not None:
            _, writer = self._open
            self._open = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._open is not None:
            reader, writer = self._open
            if not reader.at_eof() and not writer.is_closing():
                if reader._buffer:  # type: ignore[attr-defined]  # whoever waits for none looks
                    raise Doubled("bytes before the request that they are to answer")
                return reader, writer
            await self.close()
        self._open = await asyncio.open_connection(HOST, self._port, limit=1 << 20)
        return self._open

    async def _read(self, reader: asyncio.StreamReader) -> Reply:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        body = await reader.readexactly(int(headers["content-length"]))
        return Reply(int(head[0].split()[1]), headers, body)


def _head1(wire: Wire) -> bytes:
    lines = [f"POST {wire.path} HTTP/1.1", "Host: soak", f"Content-Length: {len(wire.body)}"]
    lines += [f"{name}: {value}" for name, value in wire.headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


class Http2:
    """HTTP/2 with prior knowledge; requests under way share a connection."""

    name = "HTTP/2"

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: _Connection2 | None = None
        self._connecting = asyncio.Lock()

    async def ask(self, asked: Asked) -> Answer:
        try:
            connection = await self._connected()
            reply: Reply = await connection.ask(over_http(asked))
        except LOST as error:
            raise NotAnswered(repr(error)) from error
        return read_http(asked, reply)

    async def hang_up(self, asked: Asked, share: float) -> None:
        with contextlib.suppress(*LOST):
            connection = await self._connected()
            await connection.take_back(over_http(asked), share)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _connected(self) -> _Connection2:
        async with self._connecting:
            if self._connection is None or not self._connection.usable:
                # One that is asked to go still has the answers of those before.
                self._connection = await _Connection2.open(self._port)
            return self._connection


class _Connection2:
    """One connection of HTTP/2."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._h2 = H2Connection(H2Configuration(header_encoding="utf-8"))
        # To h2 a GOAWAY is the end; but whatever was asked is answered still.
        machine = self._h2.state_machine
        machine._transitions = {
            **machine._transitions,
            (ConnectionState.CLIENT_OPEN, ConnectionInputs.RECV_GOAWAY): (
                None,
                ConnectionState.CLIENT_OPEN,
            ),
        }
        self._h2.initiate_connection()
        self._answers: dict[int, asyncio.Future[Reply]] = {}
        self._heads: dict[int, dict[str, str]] = {}
        self._bodies: dict[int, bytearray] = {}
        self._room = asyncio.Event()
        self._leaving = False
        self._flush()
        self._task = asyncio.create_task(self._run())

    @classmethod
    async def open(cls, port: int) -> _Connection2:
        return cls(*await asyncio.open_connection(HOST, port))

    @property
    def usable(self) -> bool:
        return not self._leaving and not self._task.done()

    async def ask(self, wire: Wire) -> Reply:
        number = self._begin(wire)
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            await self._send(number, wire.body)
            return await answer
        finally:
            self._answers.pop(number, None)
            self._after()

    async def take_back(self, wire: Wire, share: float) -> None:
        number = self._begin(wire)
        if share == 1:
            await self._send(number, wire.body)
            await asyncio.sleep(0)
        with contextlib.suppress(ProtocolError):
            self._h2.reset_stream(number, 8)
        self._flush()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def _begin(self, wire: Wire) -> int:
        number = self._h2.get_next_available_stream_id()
        fields = [
            (":method", "POST"),
            (":path", wire.path),
            (":scheme", "http"),
            (":authority", "soak"),
            *wire.headers.items(),
        ]
        try:
            self._h2.send_headers(number, fields)
        except ProtocolError as error:  # the server has closed meanwhile
            raise ConnectionError(str(error)) from error
        self._flush()
        return number

    async def _send(self, number: int, body: bytes) -> None:
        view = memoryview(body)
        while True:
            try:
                room = min(
                    self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size
                )
                if len(view) <= room:
                    self._h2.send_data(number, bytes(view), end_stream=True)
                    self._flush()
                    return
                if room > 0:
                    self._h2.send_data(number, bytes(view[:room]))
                    view = view[room:]
                    self._flush()
                    continue
            except ProtocolError:  # answered before it was whole: refused
                return
            self._room.clear()
            await self._room.wait()

    async def _run(self) -> None:
        error: Exception = ConnectionResetError("the connection was closed")
        try:
            while data := await self._reader.read(65_536):
                for event in self._h2.receive_data(data):
                    self._handle(event)
                self._flush()
        except (OSError, ProtocolError) as raised:
            error = ConnectionResetError(repr(raised))
        finally:
            self._room.set()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(error)
            self._writer.close()

    def _handle(self, event: Event) -> None:
        number = getattr(event, "stream_id", None) or 0
        answer = self._answers.get(number)
        waits = answer is not None and not answer.done()
        match event:
            case ResponseReceived():
                assert event.headers is not None
                self._heads[number] = {str(name): str(value) for name, value in event.headers}
                self._bodies[number] = bytearray()
            case DataReceived():
                assert event.data is not None
                self._bodies[number] += event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, number)
            case StreamEnded():
                head, body = self._heads.pop(number), self._bodies.pop(number)
                if answer is not None and waits:
                    answer.set_result(Reply(int(head[":status"]), head, bytes(body)))
            case StreamReset():
                self._room.set()
                if answer is not None and waits:
                    error = ConnectionResetError(f"stream reset: {event.error_code}")
                    answer.set_exception(error)
            case WindowUpdated() | RemoteSettingsChanged():
                self._room.set()
            case ConnectionTerminated():
                self._leaving = True
                self._after()
            case _:
                pass

    def _after(self) -> None:
        """Close a connection that is to be left once nothing is under way on it."""
        if self._leaving and not self._answers:
            self._writer.close()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self._writer.is_closing():
            self._writer.write(data)


CODES: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: (503, "deadline"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "overload"),
    grpc.StatusCode.NOT_FOUND: (404, ""),
    grpc.StatusCode.INVALID_ARGUMENT: (422, ""),
    grpc.StatusCode.UNAVAILABLE: (503, ""),
}
"""gRPC's codes as HTTP has them."""


class Grpc:
    """gRPC on a channel of its own."""

    name = "gRPC"

    def __init__(self, port: int) -> None:
        self._channel = grpc.aio.insecure_channel(
            f"{HOST}:{port}",
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 100),
                # So long a connection may take to be made, on a busy machine.
                ("grpc.min_reconnect_backoff_ms", 10_000),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )
        self._infer = self._channel.unary_unary(
            f"/{SERVICE.full_name}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )

    async def ask(self, asked: Asked) -> Answer:
        try:
            response = await self._infer(over_grpc(asked), timeout=asked.timeout_s)
        except grpc.aio.AioRpcError as error:
            detail = error.details() or ""
            status, reason = CODES.get(error.code(), (500, error.code().name))
            reason = reason_of(detail) or reason
            if error.code() in GONE and reason not in OURS:
                raise NotAnswered(detail) from error
            return Answer(status, asked.id, reason, detail)
        return read_grpc(response)

    async def hang_up(self, asked: Asked, share: float) -> None:
        call = self._infer(over_grpc(asked))
        await asyncio.sleep(0.003 * share)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await call

    async def close(self) -> None:
        await self._channel.close()


GONE: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
"""What gRPC says of a call whose connection or server has gone; the latter where the server's core
had it and nobody had asked for it yet."""

OURS: Final = frozenset({"store", "loading", "deadline"})
"""Why the scorer itself says UNAVAILABLE; anything else says it in place of the scorer."""
