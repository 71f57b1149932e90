"""Connections are taken from the listening socket, which processes share, one by one.

An event loop's own server takes all that wait at once, so that a process may get every connection
of a client that opens four, and its siblings none. Here a process leaves a connection to a sibling
that has fewer for a moment, and then takes it all the same: the sibling may be busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

from infra.telemetry import get_logger
from scorer.http.connections import HEAD_TIMEOUT_S, IDLE_GRACE_S
from scorer.siblings import Place

PATIENCE_S: Final = 0.02
"""How long a connection is left to a sibling that has fewer."""

RETRY_S: Final = 0.2
"""Pause after the system has refused a connection: no file descriptors, no memory."""

LOG_EVERY_S: Final = 60.0
"""How often it is logged, at most, that connections wait."""

log = get_logger(__name__)


class Acceptor:
    """The listening socket of one process; in uvicorn's server it stands for asyncio's."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        *,
        max_connections: int,
        place: Place,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._max_connections = max_connections
        self._place = place
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._open = 0
        self._arriving: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._full = False
        self._closed = False
        self._times_full = 0
        self._log_at = 0.0

    def start(self) -> None:
        """Begin to accept connections."""
        self._listener.setblocking(False)
        self._place.accepts(self._open)
        self._watch()

    def opened(self, connections: int) -> None:
        """Note how many connections are open."""
        self._open = connections
        self._count()

    def close(self) -> None:
        """Accept no more, but what waits: it would be reset once no process has the socket."""
        if self._closed:
            return
        if self._place.alone or self._place.signals:
            while not self._full and self._accept():
                pass
        self._closed = True
        self._unwatch()
        self._place.leave()
        self._listener.close()

    @property
    def closed(self) -> bool:
        """Whether no more connections are accepted."""
        return self._closed

    async def wait_closed(self) -> None:
        """Wait a moment for connections that have been taken and have no protocol yet."""
        if self._arriving:
            await asyncio.wait(self._arriving, timeout=IDLE_GRACE_S)

    def _watch(self) -> None:
        self._pause = None
        if not self._closed and not self._full:
            self._loop.add_reader(self._listener, self._on_connection)

    def _unwatch(self) -> None:
        self._loop.remove_reader(self._listener)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _on_connection(self) -> None:
        if self._place.fewest:
            self._accept()
        else:
            self._unwatch()
            self._pause = self._loop.call_later(PATIENCE_S, self._accept_after_all)

    def _accept_after_all(self) -> None:
        self._watch()
        self._accept()

    def _accept(self) -> bool:
        """Take one connection, if a sibling was not quicker; whether there was one."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            if self._closed:
                return False
            log.error("cannot accept connections, trying again", error=str(error))  # noqa: TRY400
            self._unwatch()
            self._pause = self._loop.call_later(RETRY_S, self._watch)
            return False
        connection.setblocking(False)
        task = self._loop.create_task(self._hand_over(connection))
        self._arriving.add(task)
        task.add_done_callback(self._handed_over)
        self._count()
        return True

    async def _hand_over(self, connection: socket.socket) -> None:
        # Who fails here is no client of ours: no TLS, no certificate, gone meanwhile.
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await self._loop.connect_accepted_socket(
                self._protocol,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else HEAD_TIMEOUT_S,
            )

    def _handed_over(self, task: asyncio.Task[None]) -> None:
        self._arriving.discard(task)
        self._count()

    def _count(self) -> None:
        if self._closed:
            return
        count = self._open + len(self._arriving)
        self._place.accepts(count)
        full = count >= self._max_connections
        if full and not self._full:
            self._full = True
            self._unwatch()
            self._log_full()
        elif self._full and not full:
            self._full = False
            self._watch()

    def _log_full(self) -> None:
        self._times_full += 1
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + LOG_EVERY_S
            log.warning(
                "scorer.max_connections are open, further ones wait",
                connections=self._max_connections,
                times=self._times_full,
            )
            self._times_full = 0
