"""The guard between an owner and its process, so that the latter never outlives the former.

Run as a program (`python -m infra.guard DIRECTORY OWNER COMMAND...`) this module is that guard. It
imports nothing but the standard library, and so stays small.
"""

from __future__ import annotations

import ctypes
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
        preexec_fn=_die_with_parent,  # noqa: PLW1509
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


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    os._exit(_stand_guard(sys.argv[1], int(sys.argv[2]), sys.argv[3:]) & 0xFF)
