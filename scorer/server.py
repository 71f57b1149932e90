"""The scorer as a process: one alone, or several behind one listening socket.

A process alone answers at once and says "not ready" while it loads. With siblings it loads first
and accepts connections only then: a restarted process costs no client a 503, since the others
take what comes meanwhile.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from extractor.extract import Extractor
from infra.errors import BundleMissing, LifelongError, SettingsError, StoreUnavailable
from infra.metrics import MULTIPROCESS_DIR, ScorerMetrics, forget_process, new_registry
from infra.processes import orphaned
from infra.settings import ScorerSettings, Settings
from infra.store import Store
from infra.stores import open_store
from infra.telemetry import configure_logging, get_logger
from models.bundle import Bundle
from scorer.http.app import create_app
from scorer.ranking import Ranker
from scorer.readiness import Readiness
from scorer.service import Service

DRAIN_S: Final = 10.0
"""Time for the requests under way at SIGTERM; no request may last longer than its deadline, which
is shorter by default."""

KEEP_ALIVE_S: Final = 75
"""How long an idle connection stays open: longer than load balancers keep theirs (60 s), so that
it is never the server who closes one just as it is used again."""

BACKLOG: Final = 2048
"""Connections the kernel holds while every process is busy."""

SWITCH_INTERVAL_S: Final = 0.0005
"""How long the ranking thread may keep the interpreter from the event loop, or the other way
round. With Python's default of 5 ms small rankings queued behind large ones took half as long
again (p95, four clients of B = 100 beside two of B = 3,000)."""

RETRY_STORE_S: Final = 1.0
"""Pause between two tries to open a store that is away at the start."""

RESTART_S: Final = (0.5, 30.0)
"""First and longest pause before a process that died is started again; each pause is twice the
one before."""

STEADY_S: Final = 60.0
"""A process that lived this long died of something new, so its pauses begin anew."""

log = get_logger(__name__)


def run_scorer(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is under way and return.

    Raises:
        SettingsError: the address cannot be listened on.
        BundleError: the bundle cannot be used.
        StoreError: the store cannot be opened for another reason than being away, which is
            waited for.
    """
    with listen(settings.scorer) as listener:
        host, port = listener.getsockname()[:2]
        log.info(
            "scorer listening", url=f"http://{host}:{port}", processes=settings.scorer.processes
        )
        if settings.scorer.processes == 1:
            ScorerProcess(settings).run(listener)
        else:
            with _shared_metrics():
                Supervisor(settings, listener).run()
    log.info("scorer stopped")


def listen(settings: ScorerSettings) -> socket.socket:
    """The socket of ``settings``, bound and listening.

    Raises:
        SettingsError: it is taken, or no address of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        what = error.strerror  # of create_server, with the address once more
        if error.errno is not None and not isinstance(error, socket.gaierror):
            what = os.strerror(error.errno)
        raise SettingsError(
            f"scorer.host = {settings.host!r}, scorer.port = {settings.port}: cannot listen there "
            f"({what}); choose others, or stop what listens there"
        ) from error


class ScorerProcess:
    """One serving process: its own store client, bundle and event loop."""

    def __init__(self, settings: Settings) -> None:
        registry = new_registry()
        self._settings = settings
        self._metrics = ScorerMetrics(registry)
        self._service = Service(Readiness(self._metrics))
        self._store: Store | None = None
        self._failure: Exception | None = None
        self._server = _Server(
            uvicorn.Config(
                create_app(self._service, settings.scorer, self._metrics, registry),
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",  # what it says of starting and stopping, our events say better
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(DRAIN_S),
                callback_notify=self._each_second,
                timeout_notify=1,
            ),
            on_stop=self._service.readiness.stopping,
        )

    def load(self) -> None:
        """Open the store, load the bundle and warm everything, then begin to answer.

        Raises:
            LifelongError: see `run_scorer`.
        """
        # Not at the top: a supervisor needs none of this, and numba alone takes 50 MB.

        if self._settings.bundle.path is None:
            raise BundleMissing("bundle.path is not set; name the directory of a model bundle")
        bundle = Bundle.load(self._settings.bundle.path)
        store = self._store = self._opened_store()
        ranker = Ranker(store, bundle, Extractor(bundle), self._metrics)
        self._metrics.use_bundle(bundle.version)
        self._service.serve(ranker, lambda: store.get_position("scorer"))
        log.info(
            "scorer ready", model=bundle.manifest.name, version=bundle.version, pid=os.getpid()
        )

    def run(self, listener: socket.socket) -> None:
        """Serve until told to stop, loading meanwhile if `load` has not been called.

        Raises:
            LifelongError: see `run_scorer`.
        """
        switch_interval_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        if self._store is None:
            threading.Thread(target=self._load_or_stop, name="loading", daemon=True).start()
        try:
            self._server.run(sockets=[listener])
        finally:
            sys.setswitchinterval(switch_interval_s)
            self._service.close()
            if self._store is not None:
                self._store.close()
        if self._failure is not None:
            raise self._failure

    def _load_or_stop(self) -> None:
        try:
            self.load()
        except Exception as error:  # noqa: BLE001  # it is raised again where `run` returns
            if not self._server.should_exit:
                self._failure = error
            self._server.should_exit = True

    def _opened_store(self) -> Store:
        while True:
            try:
                return open_store(self._settings.store)
            except StoreUnavailable as error:
                self._service.readiness.waits_for(f"the store does not answer: {error}")
                log.warning("store is away, trying again", error=str(error))
                time.sleep(RETRY_STORE_S)
                if orphaned():
                    raise

    async def _each_second(self) -> None:
        """Keep the readiness gauge true where no probe asks, and end with the supervisor."""
        await self._service.readiness.reason()
        if orphaned():
            self._server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn, but a signal that was obeyed is not raised again: the exit code is 0."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        with _handling((signal.SIGTERM, signal.SIGINT), self.handle_exit):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_stop()
        super().handle_exit(sig, frame)


@dataclass
class _Slot:
    """One of the processes, over its restarts."""

    number: int
    process: BaseProcess | None = None
    said: Connection | None = None
    """Where the process says that it is ready ("") or why it cannot be."""
    started: float = 0.0
    start_at: float = 0.0
    pause_s: float = field(default=RESTART_S[0])


class Supervisor:
    """Keeps `ScorerSettings.processes` scorers alive behind one socket.

    The socket is shared rather than bound once per process (SO_REUSEPORT): a connection that
    waits while a process dies is then taken by a sibling instead of being reset.
    """

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        # Not fork: a forked child would share whatever libraries opened before.
        self._context = multiprocessing.get_context("spawn")
        self._slots = [_Slot(number) for number in range(settings.scorer.processes)]
        self._stopping = False
        self._any_ready = False

    def run(self) -> None:
        """Supervise until SIGTERM or SIGINT, then end all processes within a deadline.

        Raises:
            LifelongError: no process ever got ready; why the first of them did not.
        """
        with _handling((signal.SIGTERM, signal.SIGINT), self._stop):
            try:
                while not self._stopping:
                    self._start_due()
                    self._listen_to_processes()
                    self._bury_dead()
            finally:
                self._end_all()

    def _stop(self, _sig: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is None and now >= slot.start_at:
                slot.said, say = self._context.Pipe(duplex=False)
                slot.process = self._context.Process(
                    target=_serve, args=(self._settings, self._listener, say), name="scorer"
                )
                slot.process.start()
                slot.started = now
                say.close()

    def _listen_to_processes(self) -> None:
        """Wait a moment for what the processes say; that one has ended is heard the same way."""
        connections = {slot.said: slot for slot in self._slots if slot.said is not None}
        for said in multiprocessing.connection.wait(list(connections), timeout=0.2):
            slot = connections[said]  # type: ignore[index]
            assert slot.said is not None
            try:
                failure = slot.said.recv()
            except EOFError:
                failure = None
            slot.said.close()
            slot.said = None
            if failure == "":
                self._any_ready = True
            elif failure is not None and not self._any_ready:
                raise LifelongError(failure)

    def _bury_dead(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            process = slot.process
            if process is None or process.exitcode is None or self._stopping:
                continue
            if now - slot.started > STEADY_S:
                slot.pause_s = RESTART_S[0]
            log.error(
                "scorer process died",
                pid=process.pid,
                exit_code=process.exitcode,
                restart_in_s=slot.pause_s,
            )
            forget_process(process.pid or 0)
            process.close()
            slot.process = None
            slot.start_at = now + slot.pause_s
            slot.pause_s = min(2 * slot.pause_s, RESTART_S[1])

    def _end_all(self) -> None:
        self._listener.close()  # or the kernel would go on taking connections that nobody serves
        processes = [slot.process for slot in self._slots if slot.process is not None]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + DRAIN_S + 2
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                log.error("scorer process did not end in time, killed", pid=process.pid)
                process.kill()
                process.join()


def _serve(settings: Settings, listener: socket.socket, say: Connection) -> None:
    """The main function of a supervised process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the supervisor decides
    configure_logging(settings.log)
    try:
        process = ScorerProcess(settings)
        process.load()
        say.send("")
        process.run(listener)
    except LifelongError as error:
        with contextlib.suppress(OSError):  # once ready, nobody listens any more
            say.send(str(error))
        log.error("scorer process failed", error=str(error))  # noqa: TRY400  # not a bug of ours
        raise SystemExit(1) from None


@contextlib.contextmanager
def _shared_metrics() -> Iterator[None]:
    """A directory in which the processes' metrics meet, empty at the start."""
    given = os.environ.get(MULTIPROCESS_DIR)
    directory = Path(given or tempfile.mkdtemp(prefix="lifelong-scorer-"))
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob("*.db"):
        leftover.unlink()
    os.environ[MULTIPROCESS_DIR] = str(directory)
    try:
        yield
    finally:
        if given is None:
            del os.environ[MULTIPROCESS_DIR]
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _handling(
    signals: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Handle signals for a while; not in another than the main thread, where Python forbids it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals}
    for number in signals:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
