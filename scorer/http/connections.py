"""The connections of a process, whatever protocol they speak, and how long each may keep waiting."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol

from uvicorn.server import ServerState

HEAD_TIMEOUT_S: Final = 10.0
"""Time for a handshake of TLS, and again for the head of a request; a body has its own
(`scorer.http.middleware`)."""

UNREAD_TIMEOUT_S: Final = 30.0
"""Time after which a connection is cut whose client does not read what it asked for."""

IDLE_GRACE_S: Final = 0.2
"""How long a connection without a request stays open behind a listener that is closed: its first
request, or its next one, may be on the way."""


class Connection(Protocol):
    """One connection, as a server that stops sees it."""

    def drain(self) -> None:
        """Ask the client, by the protocol's own means, to go; requests are answered all the same."""

    def shutdown(self) -> None:
        """Take no more requests, and close once those under way are answered."""


class Connections(ServerState):
    """All connections of a process, for uvicorn's protocols as their server's state."""

    def __init__(self, on_change: Callable[[int], None]) -> None:
        super().__init__()
        self.draining = False
        self.connections: Any = _Counted(on_change)

    def drain(self) -> None:
        """Ask all clients to go, those that come from now on included."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain()


class _Counted(set[Any]):
    """A set that tells its size when it changes by one."""

    def __init__(self, on_change: Callable[[int], None]) -> None:
        super().__init__()
        self._on_change = on_change

    def add(self, element: Any) -> None:
        super().add(element)
        self._on_change(len(self))

    def discard(self, element: Any) -> None:
        super().discard(element)
        self._on_change(len(self))


def is_http2(transport: asyncio.BaseTransport) -> bool | None:
    """What a handshake of TLS has agreed on; None: there was none, the first bytes will tell."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    return None if tls is None else tls.selected_alpn_protocol() == "h2"
