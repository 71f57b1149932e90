"""The HTTP server of one process: uvicorn's, but for how connections come and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from types import FrameType
from typing import Final, Protocol

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.settings import ScorerSettings
from infra.telemetry import get_logger
from scorer.http.acceptor import Acceptor
from scorer.http.connections import IDLE_GRACE_S, Connections, Patience
from scorer.http.gate import Gate
from scorer.http.negotiation import Negotiation
from scorer.siblings import Place
from scorer.stopping import DRAIN_S, handling

SAME_SIGNAL_S: Final = 1.0
"""What tells a process with siblings to stop mostly tells its supervisor, too, who passes it on:
the second signal within this time is the first."""

SUPERVISED_S: Final = 0.5
"""Time after which a process with siblings that has been told to stop, but its supervisor has not,
leaves new connections to them."""

log = get_logger(__name__)


class Companion(Protocol):
    """What begins and ends with an HTTP server, in its event loop: a server of another protocol."""

    async def start(self) -> object:
        """Listen and answer from now on; an error ends the process."""

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and wait for those under way, at most so long."""


class HttpServer(uvicorn.Server):
    """Serves until it is told to stop; then clients are asked to go, and only then it stops.

    From the first signal on readiness says no, and every answer asks its client to connect anew
    (``Connection: close``, GOAWAY), for ``lame_duck_s``. The second signal ends that; what is under
    way is answered still, for `DRAIN_S` at most. The third ends this, too.

    A process whose siblings go on accepts no more connections meanwhile, since they do.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ScorerSettings,
        place: Place,
        *,
        on_stop: Callable[[], None],
        each_second: Callable[[], Awaitable[None]],
        tls: ssl.SSLContext | None = None,
        patience: Patience | None = None,
        gate: Gate | None = None,
        companions: Sequence[Companion] = (),
    ) -> None:
        super().__init__(
            uvicorn.Config(
                Droppable(app),
                loop="uvloop",
                http=Negotiation,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",  # what it says of starting and stopping, our events say better
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=settings.idle_timeout_s,  # type: ignore[arg-type]
                timeout_graceful_shutdown=int(DRAIN_S),
                callback_notify=each_second,
                timeout_notify=1,
            )
        )
        self._settings = settings
        self._place = place
        self._on_stop = on_stop
        self._tls = tls
        self._state = self.server_state = Connections(self._count, patience or Patience(), gate)
        self._companions = companions
        self._acceptor: Acceptor | None = None
        self._ready = True
        self._signals = 0
        self._signalled = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        assert sockets is not None
        self._acceptor = Acceptor(
            sockets[0],
            lambda: Negotiation(self.config, self._state, self.lifespan.state),
            max_connections=self._settings.max_connections,
            place=self._place,
            tls=self._tls,
        )
        self.servers = [self._acceptor]  # type: ignore[list-item]
        self._acceptor.start()
        for companion in self._companions:
            await companion.start()
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        stop = await super().on_tick(counter)
        if stop or not self._told:
            return stop
        assert self._acceptor is not None
        if not self._state.draining:
            self._state.drain()
            log.info("scorer takes leave", lame_duck_s=self._settings.lame_duck_s)
        self._stop_being_ready()
        for_s = time.monotonic() - self._signalled
        if self._leaves_alone and for_s >= SUPERVISED_S:
            self._acceptor.close()
        if self._acceptor.closed and not self._state.connections and not self._state.tasks:
            return True
        return for_s >= self._settings.lame_duck_s or self._told > 1

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping = (companion.stop(DRAIN_S) for companion in self._companions)
        await asyncio.gather(self._shut_down(sockets), *stopping)

    async def _shut_down(self, sockets: list[socket.socket] | None) -> None:
        assert self._acceptor is not None
        self._state.drain()
        self._acceptor.close()
        await self._acceptor.wait_closed()
        if self._state.connections:
            await asyncio.sleep(IDLE_GRACE_S)
        hurrying = asyncio.create_task(self._hurry())
        try:
            await super().shutdown(sockets)
        finally:
            hurrying.cancel()
            await self._state.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # Unlike uvicorn's, a signal that was obeyed is not raised again: the exit code is 0.
        with handling((signal.SIGTERM, signal.SIGINT), self.handle_exit):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        now = time.monotonic()
        if not self._signals:
            self._signalled = now
        elif not self._place.alone and now - self._signalled < SAME_SIGNAL_S:
            return
        self._signals += 1
        self._stop_being_ready()

    @property
    def _told(self) -> int:
        """How often the process has been told to stop, by a signal or by its supervisor."""
        if self._place.signals and not self._signals:
            self._signals, self._signalled = 1, time.monotonic()
        return max(self._signals, self._place.signals)

    def _stop_being_ready(self) -> None:
        if self._ready and not self._leaves_alone:
            self._ready = False
            self._on_stop()

    @property
    def _leaves_alone(self) -> bool:
        """Whether there are siblings who go on."""
        return not self._place.alone and not self._place.signals

    async def _hurry(self) -> None:
        """Wait for nothing any more once told so for the third time."""
        while self._told < 3:  # noqa: ASYNC110  # a signal's handler and another process tell
            await asyncio.sleep(0.1)
        self.force_exit = True

    def _count(self, connections: int) -> None:
        if self._acceptor is not None:
            self._acceptor.opened(connections)


class Droppable:
    """ASGI application whose requests end without a word when they are cancelled.

    Their client has gone, or the process may wait no longer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await self._app(scope, receive, send)
