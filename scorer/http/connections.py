"""The connections of a process, whatever their protocol, and how long each may keep it waiting."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from uvicorn.server import ServerState

from infra.telemetry import get_logger
from scorer.http.gate import Gate

HEAD_TIMEOUT_S: Final = 10.0
"""Time for a handshake of TLS, and again for the head of a request; a body has its own
(`scorer.http.middleware`)."""

UNREAD_TIMEOUT_S: Final = 30.0
"""Time after which a connection is cut whose client does not read what it asked for."""

IDLE_GRACE_S: Final = 0.2
"""How long a connection without a request stays open behind a listener that is closed: its first
request, or its next one, may be on the way."""


LINGER_S: Final = 1.0
"""How long cancelled tasks have to end, and a client of HTTP/2 to close what is closed on our side:
if what it still says were answered by a reset, it might lose the last answer."""

LOG_EVERY_S: Final = 60.0
"""How often it is logged, at most, that clients break rules: any client can."""

log = get_logger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long clients may keep a connection waiting."""

    head_s: float = HEAD_TIMEOUT_S
    """For the head of a request."""
    unread_s: float = UNREAD_TIMEOUT_S
    """For room for more of an answer."""


class Connection(Protocol):
    """One connection, as a server that stops sees it."""

    transport: asyncio.Transport

    def drain(self) -> None:
        """Ask the client to go, by the protocol's own means; answer requests all the same."""

    def shutdown(self) -> None:
        """Take no more requests, and close once those under way are answered."""


class Connections(ServerState):
    """All connections of a process, for uvicorn's protocols as their server's state."""

    def __init__(
        self, on_change: Callable[[int], None], patience: Patience, gate: Gate | None = None
    ) -> None:
        super().__init__()
        self.patience = patience
        self.gate = gate
        """What refuses rankings at their heads; None: the application has to."""
        self.draining = False
        self.connections: Any = _Counted(on_change)
        self._times_broken = 0
        self._log_at = 0.0

    def tell_broken(self, how: str) -> None:
        """Have the log know, now and then, that clients do not keep to their protocol."""
        self._times_broken += 1
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + LOG_EVERY_S
            log.warning(
                "a client broke the rules of HTTP/2, its connection is closed",
                error=how,
                times=self._times_broken,
            )
            self._times_broken = 0

    async def abort(self) -> None:
        """Cut what is still open, and let its tasks end."""
        for connection in list(self.connections):
            connection.transport.abort()
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LINGER_S)
        await asyncio.sleep(0)

    def drain(self) -> None:
        """Ask all clients to go, those that come from now on included."""
        if self.draining:
            return
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
