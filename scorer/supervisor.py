"""The supervisor of several scorer processes: starts them, and starts again the ones that die.

This module and what it imports stay small: the code that ranks is loaded by the processes alone
(`scorer.process`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Final

from infra.errors import LifelongError
from infra.metrics import MULTIPROCESS_DIR, forget_process
from infra.settings import Settings
from infra.telemetry import configure_logging, get_logger
from scorer.siblings import Siblings
from scorer.stopping import DRAIN_S, handling

RESTART_S: Final = (0.5, 30.0)
"""First and longest pause before a process that died is started again; each pause is twice the
one before."""

STEADY_S: Final = 60.0
"""A process that lived this long died of something new, so its pauses begin anew."""

log = get_logger(__name__)


@dataclass
class _Slot:
    """The place of one process, over its restarts."""

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
        self._siblings = Siblings(settings.scorer.processes, self._context)
        self._any_ready = False

    def run(self) -> None:
        """Supervise until SIGTERM or SIGINT, then end all processes within a deadline.

        Raises:
            LifelongError: no process ever got ready; why the first of them did not.
        """
        with (
            handling((signal.SIGTERM, signal.SIGINT), self._stop),
            handling((signal.SIGHUP,), self._reload),
        ):
            try:
                while not self._siblings.signals:
                    self._start_due()
                    self._listen_to_processes()
                    self._bury_dead()
            finally:
                self._end_all()

    def _stop(self, _sig: int, _frame: FrameType | None) -> None:
        self._siblings.stop()

    def _reload(self, _sig: int, _frame: FrameType | None) -> None:
        # By the board: a signal would end a process that does not handle it yet.
        self._siblings.reload()

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is None and now >= slot.start_at:
                slot.said, say = self._context.Pipe(duplex=False)
                slot.process = self._context.Process(
                    target=_serve,
                    args=(self._settings, self._listener, self._siblings, slot.number, say),
                    name="scorer",
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
            if process is None or process.exitcode is None or self._siblings.signals:
                continue
            if now - slot.started > STEADY_S or process.exitcode == 0:
                slot.pause_s = RESTART_S[0]
            if process.exitcode == 0:
                log.info(
                    "scorer process was told to stop, another takes its place", pid=process.pid
                )
                slot.start_at = now
            else:
                log.error(
                    "scorer process died",
                    pid=process.pid,
                    exit_code=process.exitcode,
                    restart_in_s=slot.pause_s,
                )
                slot.start_at = now + slot.pause_s
                slot.pause_s = min(2 * slot.pause_s, RESTART_S[1])
            forget_process(process.pid or 0)
            self._siblings.leave(slot.number)
            process.close()
            slot.process = None

    def _end_all(self) -> None:
        """End all processes, which are told by their board how often this one was told."""
        if not self._siblings.signals:
            self._siblings.stop()
            self._siblings.stop()  # a failure is nothing to take leave for
        # The processes have the socket until they take no more requests; were it open here, the
        # kernel would go on taking connections that nobody serves.
        self._listener.close()
        processes = [slot.process for slot in self._slots if slot.process is not None]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + self._settings.scorer.lame_duck_s + DRAIN_S + 2
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                log.error("scorer process did not end in time, killed", pid=process.pid)
                process.kill()
                process.join()


def _serve(
    settings: Settings,
    listener: socket.socket,
    siblings: Siblings,
    number: int,
    say: Connection,
) -> None:
    """The main function of a supervised process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the supervisor decides
    signal.signal(signal.SIGHUP, lambda *_: None)  # what is loaded first is what is there then
    # Not at the top: this module is the supervisor's too, which does without what this imports.
    from scorer.process import ScorerProcess

    configure_logging(settings.log)
    try:
        process = ScorerProcess(settings, siblings.place(number))
        process.load()
        say.send("")
        process.run(listener)
    except LifelongError as error:
        with contextlib.suppress(OSError):  # once ready, nobody listens any more
            say.send(str(error))
        log.error("scorer process failed", error=str(error))  # noqa: TRY400  # not a bug of ours
        raise SystemExit(1) from None


@contextlib.contextmanager
def shared_metrics() -> Iterator[None]:
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
