"""HTTP/1.1 over one connection: uvicorn's protocol on httptools, and what it leaves to its users.

That is an offer to upgrade, which is ignored as RFC 9110, section 7.8, has it; a bound on the time
and the size of a request's head and on the time of an answer that nobody reads; a request whose
client has gone, whose work is dropped; and rankings that the gate refuses, which come to no task.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httptools
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from scorer.http.connections import Connections
from scorer.http.gate import Judged, Refusal, mark

MAX_HEAD_BYTES: Final = 65_536
"""Largest head of a request; of one that arrives at once, the size of a read is the bound."""

_HOP_BY_HOP: Final = frozenset({b"upgrade", b"http2-settings"})
"""Names that an offer to upgrade adds, as headers and in the list of Connection."""


class TurnedAway:
    """What stands for a request, as uvicorn knows it, that was answered at its head."""

    response_started = response_complete = True
    more_body = keep_alive = disconnected = False
    message_event = asyncio.Event()
    """Nobody waits for it."""


class Http1(HttpToolsProtocol):
    """One connection of HTTP/1.1."""

    server_state: Connections
    parser: httptools.HttpRequestParser
    # None before the first request.
    scope: Scope | None  # type: ignore[assignment]
    cycle: RequestResponseCycle | TurnedAway | None  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._answering: tuple[RequestResponseCycle, asyncio.Task[None]] | None = None
        self._rest_of: RequestResponseCycle | TurnedAway | None = None
        """The request that was answered before its body was whole."""
        self._rest_until = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(400, "Invalid HTTP request received.")
            return
        if self.transport.is_closing():
            return
        if self.scope is not None and "method" not in self.scope:  # in the middle of a head
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"The head of a request is larger than {MAX_HEAD_BYTES} bytes.")
            elif self._head_timer is None:
                self._await_head()
        elif (
            self.cycle is not None
            and self.cycle.response_complete
            and self.timeout_keep_alive_task is None
        ):  # the rest of a body that nobody waited for has unset the timer
            if self._rest_of is not self.cycle:
                self._rest_of = self.cycle
                self._rest_until = self.loop.time() + self.timeout_keep_alive
            # Drop by drop it would be as good as no timer.
            self.timeout_keep_alive_task = self.loop.call_at(
                self._rest_until, self.timeout_keep_alive_handler
            )

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._unset_head_timer()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        if self._answering is not None:
            cycle, task = self._answering
            if not cycle.response_complete:
                cycle.disconnected = True
                task.cancel()
        self.pipeline.clear()

    def drain(self) -> None:
        """End the connection with the answer to the last request that has come, if one has."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None:
            patience_s = self.server_state.patience.unread_s
            self._unread_timer = self.loop.call_later(patience_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    # Callbacks of the parser.

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # `_feed` goes on
        if self._head_timer is not None:
            self._unset_head_timer()
        self._head_bytes = 0
        judged = self._judged()
        if isinstance(judged, Refusal):
            self._turn_away(judged)
            return
        if judged is not None:
            assert self.scope is not None
            mark(self.scope, judged)
        super().on_headers_complete()
        if self.server_state.draining:
            assert self.cycle is not None
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _feed(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as pause:
                # The parser stops behind the head and leaves the rest to another protocol. There is
                # none: a new parser gets the same head without the offer, and then the rest.
                head = self._head_without_offer()
                rest = memoryview(rest)[pause.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)
            else:
                return

    def _head_without_offer(self) -> bytes:
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("a tunnel is not to be had here")
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(  # noqa: PLW2901
                    option for option in options if option.lower() not in _HOP_BY_HOP
                )
            if value and name not in _HOP_BY_HOP:
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    # How a request is answered.

    def _judged(self) -> Judged | Refusal | None:
        """What the gate says of the request whose head has come; None: nothing, here."""
        gate = self.server_state.gate
        if gate is None or self.flow.write_paused:
            return None
        if self.cycle is not None and not self.cycle.response_complete:
            return None  # it waits for its turn behind that one
        method = self.parser.get_method().decode("ascii")
        return gate.at_head(method, self.url, self.headers, self.client)

    def _turn_away(self, refusal: Refusal) -> None:
        """Answer a request at its head; a body that comes all the same is dropped."""
        assert self.scope is not None
        self.scope["method"] = "POST"  # of a head that is whole
        self.cycle = TurnedAway()
        stays = (
            not refusal.closes
            and not self.server_state.draining
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
        )
        lines = [STATUS_LINE[refusal.status]]
        for name, value in (*self.server_state.default_headers, *refusal.headers):
            lines += name, b": ", value, b"\r\n"
        if not stays:
            lines.append(b"connection: close\r\n")
        self.transport.write(b"".join((*lines, b"\r\n", refusal.body)))
        if not stays:
            self.transport.close()
        self.on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        task = self.loop.create_task(cycle.run_asgi(app))  # type: ignore[arg-type]
        self._answering = cycle, task
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _refuse(self, status: int, message: str) -> None:
        """Answer what is no request, and close; but first comes an answer that is owed."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = message.encode()
            self.transport.write(
                b"%bcontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%b" % (STATUS_LINE[status], len(body), body)
            )
        self.transport.close()

    def _await_head(self) -> None:
        patience_s = self.server_state.patience.head_s
        self._head_timer = self.loop.call_later(patience_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.scope is None:
            self.transport.close()
        else:
            patience_s = self.server_state.patience.head_s
            self._refuse(408, f"The head of a request did not arrive within {patience_s:g} s.")

    def _unset_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
