"""HTTP/2 over one connection, on the h2 library: its streams as requests of an ASGI application.

What h2 leaves to its users is here: tasks, flow control, timeouts, how a connection ends, and
bounds on what a client may make the process do. uvicorn's own protocol for HTTP/2 is an experiment
still (docs/adr/0026-two-protocols-on-uvicorn.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from infra.telemetry import get_logger
from scorer.http.connections import LINGER_S, Connections
from scorer.http.gate import Headers, Refusal, mark, send_refusal

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes of every connection of HTTP/2 (RFC 9113, section 3.4)."""

MAX_STREAMS: Final = 128
"""Requests under way on a connection at once."""

MAX_HEAD_BYTES: Final = 65_536
"""Largest head of a request, decompressed."""

STREAM_WINDOW: Final = 262_144
"""Bytes of a body that come before its application asks for them: a ranking's body of some thousand
ids is one flight."""

CONNECTION_WINDOW: Final = 1_048_576
"""The same of all bodies of a connection together."""

MAX_RESETS: Final = 200
"""Requests that a client may take back before more of its requests have been answered: a request
costs us more than it costs who sends and resets it (CVE-2023-44487)."""

LAST_STREAM: Final = 2**31 - 1
"""The number in a GOAWAY that says: no more streams, please; all that come are answered."""

_OF_HTTP1: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)

log = get_logger(__name__)


class Http2(asyncio.Protocol):
    """One connection of HTTP/2; made as uvicorn makes its protocols."""

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.config = config
        self.state = server_state
        self.loop = _loop or asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.flow: FlowControl
        self.h2 = H2Connection(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            },
        )
        self._app_state = app_state
        self._streams: dict[int, _Stream] = {}
        self._answered = 0
        self._resets = 0
        self._stopping = False
        self._closed = False
        self._idle_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    # What the transport tells.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.state.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self._server = get_local_addr(transport)
        self._client = get_remote_addr(transport)
        self._scheme = "https" if is_ssl(transport) else "http"
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(CONNECTION_WINDOW - 65_535)
        self.flush()
        if self.state.draining:
            self.drain()
        self._await_request()

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        try:
            events = self.h2.receive_data(data)
        except ProtocolError as error:
            self.state.tell_broken(str(error))
            self.flush()
            self._close()
            return
        for event in events:
            self._handle(event)
            if self._over:
                return
        self.flush()
        if events and not self._streams:
            self._await_request()

    def connection_lost(self, _error: Exception | None) -> None:
        self._closed = True
        self.state.connections.discard(self)
        for timer in (self._idle_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        self.flow.resume_writing()
        for stream in list(self._streams.values()):
            stream.leave()

    def pause_writing(self) -> None:
        # Nor read: every PING and SETTINGS is answered, and nobody reads the answers.
        self.flow.pause_writing()
        self.flow.pause_reading()
        patience_s = self.state.patience.unread_s
        self._unread_timer = self.loop.call_later(patience_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        self.flow.resume_writing()
        self.flow.resume_reading()

    @property
    def _over(self) -> bool:
        """Whether it is closed, which an event may bring about."""
        return self._closed

    # What a server that stops asks.

    def drain(self) -> None:
        """Ask the client to open no more streams; those it opens all the same are answered."""
        self._say_goaway(LAST_STREAM)

    def shutdown(self) -> None:
        """Take no more streams, and close once those under way are answered."""
        self._stopping = True
        self._say_goaway(self.h2.highest_inbound_stream_id)
        if not self._streams:
            self._close()

    # What streams ask.

    def flush(self) -> None:
        """Send what h2 has to send."""
        data = self.h2.data_to_send()
        if data and not self._closed:
            self.transport.write(data)

    def finished(self, stream: _Stream) -> None:
        """Note that a stream has its answer, or never will."""
        if self._streams.pop(stream.number, None) is None or self._closed:
            return
        self._answered += 1
        self._give_back_room(stream)
        self.flush()
        if self._streams:
            return
        if self._stopping:
            self._close()
        else:
            self._await_request()

    def _handle(self, event: Event) -> None:
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        match event:
            case RequestReceived():
                self._begin(event)
            case DataReceived():
                self._take(event, stream)
            case StreamEnded() if stream is not None:
                stream.end()
            case StreamReset() if stream is not None:
                del self._streams[stream.number]
                stream.leave()
                self._give_back_room(stream)
                self._count_reset()
            case WindowUpdated() | RemoteSettingsChanged():
                for waiting in self._streams.values():
                    waiting.room.set()
            case ConnectionTerminated():
                self._part(event)
            case _:
                pass

    def _take(self, event: DataReceived, stream: _Stream | None) -> None:
        assert event.stream_id is not None
        assert event.data is not None
        length = event.flow_controlled_length or 0
        if stream is not None:
            stream.take(event.data, length)
        elif length:  # nobody waits for it
            self.h2.acknowledge_received_data(length, event.stream_id)

    def _part(self, event: ConnectionTerminated) -> None:
        """The client opens no more streams."""
        if event.error_code or not self._streams:
            self._close()
        else:
            self._stopping = True
            # To h2 all is over now, the answers that are owed, too.
            self.h2.state_machine.state = ConnectionState.SERVER_OPEN

    def _begin(self, event: RequestReceived) -> None:
        assert event.stream_id is not None
        assert event.headers is not None
        number = event.stream_id
        self._unset_idle_timer()
        if self._stopping:
            self.h2.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            return
        scope, app = self._scope(event.headers), self.config.loaded_app
        if self.state.gate is not None and not self.flow.write_paused:
            judged = self.state.gate.at_head(
                scope["method"], scope["raw_path"], scope["headers"], self._client
            )
            if isinstance(judged, Refusal):
                if self._turn_away(number, judged, whole=event.stream_ended is not None):
                    return
                app = _refusing(judged)
            elif judged is not None:
                mark(scope, judged)
        stream = self._streams[number] = _Stream(self, number, scope)
        task = self.loop.create_task(stream.run(app))
        stream.task = task
        self.state.tasks.add(task)
        task.add_done_callback(self.state.tasks.discard)

    def _turn_away(self, number: int, refusal: Refusal, *, whole: bool) -> bool:
        """Answer a request at its head, if the client has room for it; what comes of its body all
        the same is dropped.
        """
        try:
            if self.h2.local_flow_control_window(number) < len(refusal.body):
                return False
            self.h2.send_headers(number, self.head(refusal.status, refusal.headers))
            self.h2.send_data(number, refusal.body, end_stream=True)
            if not whole:  # nobody waits for the rest
                self.h2.reset_stream(number, ErrorCodes.NO_ERROR)
        except ProtocolError:  # it has been taken back, in the bytes that brought it
            self._count_reset()
        else:
            self._answered += 1
        return True

    def head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """The head of an answer."""
        given = ((bytes(name).lower(), bytes(value)) for name, value in headers)
        return [
            (b":status", b"%d" % status),
            *self.state.default_headers,
            *(field for field in given if field[0] not in _OF_HTTP1),
        ]

    def _scope(self, fields: Iterable[Any]) -> Scope:
        pseudo: dict[bytes, bytes] = {}
        headers: list[tuple[bytes, bytes]] = []
        for name, value in fields:
            if name[:1] == b":":
                pseudo[bytes(name)] = bytes(value)
            else:
                headers.append((bytes(name), bytes(value)))
        if (authority := pseudo.get(b":authority")) is not None:
            headers = [(b"host", authority), *(field for field in headers if field[0] != b"host")]
        raw_path, _, query = pseudo.get(b":path", b"*").partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": self.config.asgi_version, "spec_version": "2.3"},
            "http_version": "2",
            "server": self._server,
            "client": self._client,
            "scheme": self._scheme,
            "method": pseudo[b":method"].decode("ascii", "replace"),
            "root_path": self.config.root_path,
            "path": unquote_to_bytes(raw_path).decode("utf-8", "replace"),
            "raw_path": raw_path,
            "query_string": query,
            "headers": headers,
            "state": self._app_state.copy(),
        }

    def _give_back_room(self, stream: _Stream) -> None:
        """Let other streams have the room of what this one has not read and never will."""
        if stream.unread:
            self.h2.acknowledge_received_data(stream.unread, stream.number)
            stream.unread = 0

    def _count_reset(self) -> None:
        self._resets += 1
        if self._resets > MAX_RESETS + self._answered:
            self.state.tell_broken(f"took back {self._resets} requests")
            self._say_goaway(self.h2.highest_inbound_stream_id, ErrorCodes.ENHANCE_YOUR_CALM)
            self._close()

    def _say_goaway(self, last_stream: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        # Not by h2, which would send no answers afterwards.
        if not self._closed:
            frame = GoAwayFrame(0, last_stream_id=last_stream, error_code=code)
            self.transport.write(frame.serialize())

    def _close(self) -> None:
        """Close on our side, and for good once the client has done the same, or has not."""
        if self._closed:
            return
        self._closed = True
        self._unset_idle_timer()
        for stream in list(self._streams.values()):
            stream.leave()
        self._idle_timer = self.loop.call_later(LINGER_S, self.transport.close)
        if not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _await_request(self) -> None:
        self._unset_idle_timer()
        self._idle_timer = self.loop.call_later(self.config.timeout_keep_alive, self.shutdown)

    def _unset_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None


def _refusing(refusal: Refusal) -> ASGIApp:
    """An application that answers with a refusal."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send_refusal(refusal, send)

    return app


class _Stream:
    """One request and its answer."""

    def __init__(self, connection: Http2, number: int, scope: Scope) -> None:
        self.number = number
        self.scope = scope
        self.task: asyncio.Task[None] | None = None
        self.unread = 0
        """Bytes of the window that what the application has not asked for yet takes."""
        self.room = asyncio.Event()
        """Set when there may be room for more of the answer."""
        self._connection = connection
        self._h2 = connection.h2
        self._arrived = asyncio.Event()
        self._body: list[bytes] = []
        self._ended = False
        self._delivered = False
        self._gone = False
        self._started = False
        self._complete = False
        self._bodyless = scope["method"] == "HEAD"
        self._expected = any(
            name == b"expect" and value.lower() == b"100-continue"
            for name, value in scope["headers"]
        )

    # What arrives.

    def take(self, data: bytes, length: int) -> None:
        """A part of the body, which takes ``length`` bytes of the window."""
        self._body.append(data)
        self.unread += length
        self._arrived.set()

    def end(self) -> None:
        """The request is whole."""
        self._ended = True
        self._arrived.set()

    def leave(self) -> None:
        """The client does not want its answer any more."""
        self._gone = True
        self._arrived.set()
        self.room.set()
        if self.task is not None and not self._complete:
            self.task.cancel()

    # The application.

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer."""
        try:
            await app(self.scope, self.receive, self.send)
            failure = None
        except Exception as error:  # noqa: BLE001  # the log's, whatever it is
            failure = error
        if failure is not None:
            log.error("a request failed", exc_info=failure)
        if not self._complete and not self._gone:
            if failure is None:
                log.error("a request was not answered", path=self.scope["path"][:200])
            self._reset(ErrorCodes.INTERNAL_ERROR)
        elif self._complete and not self._ended:  # nobody waits for the rest of the body
            self._reset(ErrorCodes.NO_ERROR)
        self._connection.finished(self)

    async def receive(self) -> Message:
        """ASGI's: the next part of the body, or that the client has gone."""
        if self._expected and not self._body and not self._ended and not self._gone:
            self._expected = False
            self._h2.send_headers(self.number, [(b":status", b"100")])
            self._connection.flush()
        while not self._gone and (self._delivered or not (self._body or self._ended)):
            self._arrived.clear()
            await self._arrived.wait()
        if self._gone:
            return {"type": "http.disconnect"}
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._delivered = self._ended
        if self.unread and not self._ended:
            self._h2.acknowledge_received_data(self.unread, self.number)
            self.unread = 0
            self._connection.flush()
        return {"type": "http.request", "body": body, "more_body": not self._ended}

    async def send(self, message: Message) -> None:
        """ASGI's: the head of the answer, or a part of its body."""
        if self._gone or self._complete:
            return
        if message["type"] == "http.response.start":
            self._started = True
            status: int = message["status"]
            self._bodyless = self._bodyless or status in (204, 304)
            head = self._connection.head(status, message.get("headers", ()))
            self._h2.send_headers(self.number, head)  # goes out with the body
            return
        body = b"" if self._bodyless else bytes(message.get("body", b""))
        await self._write(body, last=not message.get("more_body", False))

    async def _write(self, body: bytes, *, last: bool) -> None:
        connection, start = self._connection, 0
        while True:
            await connection.flow.drain()
            if self._gone:
                return
            room = min(self._h2.local_flow_control_window(self.number), self._frame_size)
            part = body[start : start + max(0, room)]
            start += len(part)
            if start == len(body):
                if part or last:
                    self._h2.send_data(self.number, part, end_stream=last)
                self._complete = last
                connection.flush()
                return
            if part:
                self._h2.send_data(self.number, part)
            else:
                self.room.clear()
                connection.flush()
                if not await self._granted():
                    return

    async def _granted(self) -> bool:
        """Whether the client makes room within the time that it has for it."""
        try:
            async with asyncio.timeout(self._connection.state.patience.unread_s):
                await self.room.wait()
        except TimeoutError:
            self._reset(ErrorCodes.CANCEL)
            return False
        return True

    @property
    def _frame_size(self) -> int:
        return self._h2.max_outbound_frame_size

    def _reset(self, code: ErrorCodes) -> None:
        self._gone = True
        try:
            self._h2.reset_stream(self.number, code)
        except ProtocolError:
            return  # it is closed already
        self._connection.flush()
