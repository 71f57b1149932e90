"""Programs that are fetched once and kept: one folder each, complete or not there."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def default_cache() -> Path:
    """Where fetched programs are kept: ``$XDG_CACHE_HOME/lifelong``, or ``~/.cache/lifelong``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "lifelong"


def fetch_once(target: Path, fetch: Callable[[Path], Path]) -> Path:
    """The folder ``target``, fetched if it is not there; it appears in one step.

    Processes that ask for the same at the same time wait for one of them. What a killed one left
    behind is cleared away.

    Args:
        fetch: fills an empty folder beside the target; what it returns, that folder or one in it,
            becomes the target.

    Raises:
        OSError: the folder cannot be written, or whatever ``fetch`` raises.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # given back by the system, however we end
        if not target.is_dir():
            for leftover in target.parent.glob(f"{target.name}.part-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            part = Path(tempfile.mkdtemp(prefix=f"{target.name}.part-", dir=target.parent))
            try:
                fetch(part).rename(target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return target
