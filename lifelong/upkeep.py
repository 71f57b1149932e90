"""``lifelong store``: what an operator does to a store by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console

from infra.errors import SettingsError
from infra.settings import Settings
from infra.stores import lmdb_place

_OTHERS: Final = {
    "aerospike": "back it up and restore it with asbackup and asrestore, which know its cluster",
    **dict.fromkeys(
        ("redis", "rediss"),
        "back up and restore its RDB or AOF files, as its own documentation says",
    ),
    "memory": "it ends with its process",
}


def run_backup(settings: Settings, target: Path) -> dict[str, Any]:
    """Copy the store into a new directory while it is in use."""
    from infra.stores.lmdb_files import backup

    return _told(f"{target} written", lambda: backup(_directory(settings), target))


def run_restore(settings: Settings, source: Path, *, replace: bool) -> dict[str, Any]:
    """Put a copy in the store's place."""
    from infra.stores.lmdb_files import restore

    directory = _directory(settings)
    return _told(f"{directory} restored", lambda: restore(source, directory, replace=replace))


def run_compact(settings: Settings) -> dict[str, Any]:
    """Make the store's file as small as its data."""
    from infra.stores.lmdb_files import compact

    directory = _directory(settings)
    return _told(f"{directory} compacted", lambda: compact(directory))


def _directory(settings: Settings) -> Path:
    """Where the LMDB store lies."""
    scheme = settings.store.url.partition("://")[0]
    if scheme != "lmdb":
        raise SettingsError(
            f"store.url: {settings.store.masked_url} is no LMDB store: {_OTHERS[scheme]}"
        )
    return lmdb_place(settings.store)[0]


def _told(what: str, work: Callable[[], Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    done = msgspec.to_builtins(work())
    seconds = time.perf_counter() - begin
    before, after = done["bytes_before"], done["bytes_after"]
    _print(f"{what}: {after:,} bytes (the store had {before:,}) in {seconds:.1f} s")
    return {**done, "seconds": round(seconds, 3)}


def _print(line: str) -> None:
    Console(stderr=True).print(line, highlight=False, soft_wrap=True)
