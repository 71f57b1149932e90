"""Processes that end with the one they belong to, however that ends.

A child that we start as a program gets `die_with_parent`, a child of `multiprocessing` calls
`end_with_parent` or asks `orphaned`; and a program that needs time to end, as Kafka does, stands
under a guard (`start_guard`), which ends it gently even when its owner was killed.

Run as a program (`python -m infra.processes DIRECTORY OWNER COMMAND...`) this module is that guard.
It imports nothing but the standard library, and so stays small.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

GRACE_S: Final = 10.0  # an idle broker needs 0.4 s to close its logs; then SIGKILL

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(sent: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent dies (Linux; elsewhere nothing).

    Made for `subprocess.Popen`'s ``preexec_fn``: it makes one system call.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, sent)


def end_with_parent() -> None:
    """End this child of `multiprocessing`, at once, when its parent is gone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def orphaned() -> bool:
    """Whether this is a child of `multiprocessing` whose parent is gone."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def start_guard(directory: Path, command: list[str], log: int) -> subprocess.Popen[bytes]:
    """Start ``command`` in ``directory`` under a guard, which first prints its process id."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(directory), str(os.getpid()), *command],
        cwd=Path(__file__).parents[1],  # where -m finds this package, installed or not
        stdin=subprocess.PIPE,  # held open as long as we live
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,  # Ctrl-C is for us; and one group to kill
    )


def end_guard(guard: subprocess.Popen[bytes]) -> None:
    """Have the guarded command ended, gently at first, and wait until it is."""
    assert guard.stdin is not None
    assert guard.stdout is not None
    guard.stdin.close()
    try:
        guard.wait(GRACE_S + 2.0)
    except BaseException as error:  # Ctrl-C while waiting: no more patience, but no orphan
        with suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)
        guard.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
    finally:
        guard.stdout.close()


def _stand_guard(directory: str, owner: int, command: list[str]) -> int:
    """Run ``command`` until it ends or the owner is gone; return its exit status.

    The owner closes our standard input to have the command stopped, and dying closes it too,
    even by SIGKILL. A process forked off the owner may hold it open by accident, so we look
    every second whether the owner is still our parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        stderr=sys.stderr,
        # In case that somebody kills the guard; safe, since no thread runs here yet.
        preexec_fn=die_with_parent,  # noqa: PLW1509
    )
    os.write(1, f"{process.pid}\n".encode())

    def watch_owner() -> None:
        while os.getppid() == owner and not select.select([0], [], [], 1.0)[0]:
            pass
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()

    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    threading.Thread(target=watch_owner, daemon=True).start()
    return process.wait()


if __name__ == "__main__":
    os._exit(_stand_guard(sys.argv[1], int(sys.argv[2]), sys.argv[3:]) & 0xFF)
