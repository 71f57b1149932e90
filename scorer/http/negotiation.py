"""Which protocol a connection speaks: what TLS agreed on, or what its first bytes are."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config

from scorer.http.connections import Connections, is_http2
from scorer.http.http1 import Http1
from scorer.http.http2 import PREFACE, Http2


class Negotiation(asyncio.Protocol):
    """The first moments of a connection; then `Http1` or `Http2` has it."""

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._config = config
        self._state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._seen = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        agreed = is_http2(transport)
        if agreed is not None:
            self._go_on(http2=agreed)
            return
        self._state.connections.add(self)
        self._timer = self._loop.call_later(self._state.patience.head_s, transport.close)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if len(self._seen) < len(PREFACE) and PREFACE.startswith(self._seen):
            return
        self._leave()
        self._go_on(http2=self._seen.startswith(PREFACE))

    def connection_lost(self, _error: Exception | None) -> None:
        self._leave()

    def drain(self) -> None:
        """Nothing has been asked yet; the protocol to come is told."""

    def shutdown(self) -> None:
        """Close, as nothing has been asked yet."""
        self.transport.close()

    def _go_on(self, *, http2: bool) -> None:
        protocol = (Http2 if http2 else Http1)(
            config=self._config,
            server_state=self._state,
            app_state=self._app_state,
            _loop=self._loop,
        )
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if self._seen:
            protocol.data_received(self._seen)

    def _leave(self) -> None:
        self._state.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
