"""The files of an LMDB store as a whole: copied while it is in use, put back, made smaller.

A copy is one snapshot: it holds what was committed when it began, whatever is written meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import lmdb

from infra.errors import StoreFull, StoreMismatch, StoreUnavailable
from infra.store import Identity, StoreOptions
from infra.stores.lmdb import DATA, LOCK, LmdbStore
from infra.stores.lmdb_faults import told
from infra.stores.lmdb_meta import check

_AT_ONCE: Final = 100_000
"""Records written in one transaction."""

_KEEP_FREE: Final = 64 << 20
"""Bytes of the disk that a copy must leave free: whoever writes the store needs some, too."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of a store's files."""

    store: Identity | None
    bytes_before: int
    bytes_after: int


def backup(path: Path, target: Path) -> Copied:
    """Copy the store at ``path``, in use or not, into a new directory, leaving out free pages.

    Raises:
        StoreUnavailable: there is no store, or it cannot be copied.
        StoreCorrupt: its data file is cut short.
        StoreFull: the disk has no room for the copy.
        StoreMismatch: there is something at ``target``.
    """
    if target.exists():
        raise StoreMismatch(f"{target} exists already; name a directory that does not")
    with _copy(path, target.parent) as fresh:
        fresh.rename(target)
    return Copied(_identity(target), _size(path), _size(target))


def restore(source: Path, path: Path, *, replace: bool = False) -> Copied:
    """Put a copy in the place of the store at ``path``, which no process may have open.

    Args:
        source: what `backup` made; it stays.
        path: where the store is to be.
        replace: put it in the place of a store that is there; that one is kept beside it, under
            the name with ``.before-restore``.

    Raises:
        StoreUnavailable: ``source`` is no store, or ``path`` is in use.
        StoreFull: the disk has no room for it.
        StoreMismatch: there is a store at ``path``, and ``replace`` is not set.
    """
    before = path.with_name(f"{path.name}.before-restore")
    if path.exists() and not replace:
        raise StoreMismatch(f"there is a store at {path}; move it away, or give --replace")
    if path.exists() and before.exists():
        raise StoreMismatch(f"{before} is left from an earlier restore; move it away")
    size = _size(path)
    with _copy(source, path.parent) as fresh, _unused(path):
        if path.exists():
            path.rename(before)
        fresh.rename(path)
    return Copied(_identity(path), size, _size(path))


def compact(path: Path) -> Copied:
    """Write the file of the store at ``path`` anew, with its records and not a byte of what was
    deleted; no process may have it open.

    Record by record, since LMDB's own copy takes pages as they are: in their gaps are pieces of
    what was there before.

    Raises:
        StoreUnavailable: there is no store, or it is in use.
        StoreFull: the disk has no room for the copy that takes its place.
    """
    size = _size(path)
    with _unused(path), _copy(path, path.parent, lock=False, anew=True) as fresh:
        (fresh / DATA).replace(path / DATA)
        _sync(path)
    return Copied(_identity(path), size, _size(path))


def require_unused(path: Path) -> None:
    """Make sure that no process has the store open; raises `StoreUnavailable` otherwise."""
    with _unused(path):
        pass


@contextmanager
def _copy(path: Path, beside: Path, *, lock: bool = True, anew: bool = False) -> Iterator[Path]:
    """A copy of a store in a new directory in ``beside``, gone where nobody takes it away."""
    if not (path / DATA).exists():
        raise StoreUnavailable(f"there is no store at {path}")
    fresh = None
    try:
        check(path / DATA)
        beside.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(beside).free
        if free < _size(path) + _KEEP_FREE:
            raise StoreFull(
                f"a copy of {path} may take {_size(path)} bytes, {beside} has {free} free: make"
                " room, or name another disk"
            )
        fresh = Path(tempfile.mkdtemp(prefix=".lifelong-copy.", dir=beside))
        with lmdb.open(str(path), readonly=True, create=False, lock=lock, max_dbs=16) as env:
            env.reader_check()
            if anew:
                _write_anew(env, fresh)
            else:
                env.copy(str(fresh), compact=True)
        _sync(fresh / DATA)
        fresh.chmod(0o755)
        yield fresh
        _sync(beside)
    except (lmdb.Error, OSError) as error:
        raise told(error, f"the copy of {path}", beside, limit=0) from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)


def _write_anew(env: lmdb.Environment, fresh: Path) -> None:
    """Write all that an environment holds into another one, in the order of its keys."""
    room = 2 * env.info()["map_size"]
    with (
        lmdb.open(str(fresh), map_size=room, max_dbs=16, sync=False) as other,
        env.begin() as txn,
    ):
        writing = other.begin(write=True)
        for name in [bytes(name) for name in txn.cursor().iternext(values=False)]:
            db = other.open_db(name, writing)
            with txn.cursor(env.open_db(name, txn, create=False)) as cursor:
                records = iter(cursor)
                while some := list(islice(records, _AT_ONCE)):
                    writing.cursor(db).putmulti(some, append=True)
                    if len(some) == _AT_ONCE:
                        writing.commit()
                        writing = other.begin(write=True)
        writing.commit()
        other.sync(True)
    (fresh / LOCK).unlink(missing_ok=True)


@contextmanager
def _unused(path: Path) -> Iterator[None]:
    """Keep others from opening the store, as LMDB itself does while it sets a lock file up.

    Raises:
        StoreUnavailable: a process has it open.
    """
    if not (path / LOCK).exists():
        yield
        return
    with (path / LOCK).open("r+b") as file:
        try:
            # Every process that has the environment open holds a shared lock on the first byte.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except OSError as error:
            raise StoreUnavailable(
                f"the store at {path} is in use: stop its workers and scorers first"
            ) from error
        yield


def _identity(path: Path) -> Identity | None:
    """The identity of a store that was just written, which also proves that it can be read."""
    store = LmdbStore(path, StoreOptions(read_only=True, length=1))
    try:
        return store.identity
    finally:
        store.close()


def _size(path: Path) -> int:
    file = path / DATA
    return file.stat().st_size if file.exists() else 0


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
