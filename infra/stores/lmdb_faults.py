"""What can go wrong with an LMDB store, by its cause: what is said of it, and what to do."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import lmdb

from infra.errors import StoreError, StoreFull, StoreUnavailable, one_line
from infra.stores.lmdb_meta import REBUILD

NO_ROOM: Final = 4 << 20
"""Bytes free on a disk below which a failed write is told as a full disk: LMDB tells of a short
write as of any other input/output error."""

NETWORK: Final = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "9p",
    "afs",
    "fuse.sshfs",
    "ceph",
    "glusterfs",
    "lustre",
)
"""Filesystems on which other machines may write, and where LMDB's locks and map do not hold."""

ADVICE: Final[dict[int | type[lmdb.Error], str]] = {
    errno.EACCES: "let the user it runs as write to the directory and its files (a reader only to"
    " lock.mdb)",
    errno.EPERM: "let the user it runs as write to the directory and its files",
    errno.EROFS: "the filesystem is mounted read-only: mount it for writing; if it became so by"
    " itself, `dmesg` says why",
    errno.ENOTDIR: "a part of the path is a file; correct store.url",
    errno.EEXIST: "there is a file where the directory should be; correct store.url",
    errno.EISDIR: "there is a directory where a file should be; correct store.url",
    errno.ENOENT: "a part of the path is missing; correct store.url",
    errno.EIO: f"the disk cannot be read or written, see `dmesg`; once it can, {REBUILD}",
    errno.ENOMEM: "the map has no room in the address space: lower max_size in the store's URL, or"
    " raise `ulimit -v`",
    errno.EMFILE: "the process has too many files open: raise `ulimit -n`",
    errno.ENOLCK: "the filesystem has no locks: move the store to a local disk",
    lmdb.ReadersFullError: "all slots for readers are taken: those of killed processes are free"
    " again once a worker or a scorer has looked, in some seconds",
    lmdb.VersionMismatchError: "a process with another version of LMDB has it open: stop it, or"
    " give all of them the same version",
    lmdb.CorruptedError: f"the file is damaged: {REBUILD}",
    lmdb.PageNotFoundError: f"the file is damaged: {REBUILD}",
    lmdb.InvalidError: f"the file is damaged: {REBUILD}",
    lmdb.PanicError: "an earlier write failed halfway: restart the process",
}
"""What to do, by the error's number or, of LMDB's own, by its type."""

_LOCK: Final = struct.Struct("=II64xI")
"""The lock file up to the owner of the writers' lock (a robust mutex of glibc)."""
_LOCK_BEGINS: Final = (0xBEEFC0DE, 0x10001)
_STATES: Final = {
    "T": "which is stopped: let it go on (`kill -CONT {pid}`), or end it",
    "t": "which a debugger has stopped: let it go on, or end it",
    "D": "which waits for its disk: see `dmesg`",
}


def disk_free(path: Path) -> int:
    """Bytes that can still be written on the disk of ``path``."""
    return shutil.disk_usage(_existing(path)).free


def told(
    error: lmdb.Error | OSError,
    where: str,
    path: Path,
    *,
    limit: int,
    free: Callable[[Path], int] = disk_free,
) -> StoreError:
    """An error of LMDB or of the files at ``path`` as one of a store, with what to do about it.

    Args:
        error: what was raised.
        where: the store, for people.
        path: its directory, or where that should be.
        limit: bytes of its map.
        free: how many bytes can still be written on the disk of a path.
    """
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    if isinstance(error, lmdb.MapFullError):
        return StoreFull(
            f"{where} has reached its limit of {limit} bytes: raise max_size in the store's URL, or"
            " set a TTL"
        )
    if code == errno.EDQUOT:
        return StoreFull(f"{where} has reached its user's quota: raise it, or free some space")
    if code == errno.ENOSPC or (code == errno.EIO and free(path) < NO_ROOM):
        return StoreFull(
            f"the disk of {where} is full, {free(path)} bytes are free: free some space, or move"
            " the store to a larger disk"
        )
    if code in {errno.EFBIG, errno.EIO} and _length_left(path) < NO_ROOM:
        return StoreFull(
            f"{where} has reached the longest file that its process may write: raise `ulimit -f`"
        )
    if "already open in this process" in str(error):
        return StoreUnavailable(
            f"{where} is open in this process already, or still waits for its turn: close that one"
            ", or wait"
        )
    if (kind := filesystem(path)) in NETWORK:
        advice = f"it is on {kind}, which LMDB cannot work on: move it to a local disk"
    else:
        advice = ADVICE.get(type(error)) or ADVICE.get(code or 0) or "restart the process"  # type: ignore[arg-type]
    return StoreUnavailable(f"{where} failed: {one_line(error)}; {advice}")


def readers_full(where: str, table: str) -> StoreUnavailable:
    """An error for a store all of whose readers' slots are taken, by LMDB's table of readers."""
    pids = Counter(line.split()[0] for line in table.splitlines()[1:] if line.split())
    most = ", ".join(f"process {pid} {count}" for pid, count in pids.most_common(3))
    return StoreUnavailable(
        f"{where} has all its {pids.total()} slots for readers taken by {len(pids)} processes"
        f" ({most}): stop those that should not run, or run fewer"
    )


def filesystem(path: Path, mounts: str | None = None) -> str | None:
    """The type of the filesystem of ``path``; None: it cannot be told here.

    Args:
        path: the place, which need not be there.
        mounts: the text of /proc/self/mounts, where not the real one.
    """
    try:
        text = Path("/proc/self/mounts").read_text("utf-8") if mounts is None else mounts
        place = str(_existing(path).resolve())
    except OSError:
        return None
    found = [line.split()[1:3] for line in text.splitlines()]
    above = [
        (len(point), kind)
        for point, kind in found
        if place == point or place.startswith(point.rstrip("/") + "/")
    ]
    # Of several at one point the last hides the others.
    return max(reversed(above), key=lambda found: found[0])[1] if above else None


def lock_holder(lock: int) -> str:
    """Who holds the writers' lock, for people.

    Args:
        lock: the lock file. Whoever has the environment open must not close any descriptor of it
            before: the process would lose its locks.
    """
    begin = os.pread(lock, _LOCK.size, 0)
    try:
        *begins, owner = _LOCK.unpack(begin)
        if tuple(begins) != _LOCK_BEGINS:
            return "another process"
        if f" {os.fstat(lock).st_ino} " not in Path(f"/proc/{owner}/maps").read_text("utf-8"):
            return "another process"  # its number is one of another container
        status = Path(f"/proc/{owner}/status").read_text("utf-8")
    except (struct.error, OSError):
        return "another process"
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    pid, name, state = fields["Tgid"], fields["Name"], fields["State"].strip()[:1]
    if int(pid) == os.getpid():
        return "this process itself"
    doing = _STATES.get(state, "which is at work or stuck: end it if it goes on")
    return f"process {pid} ({name}), {doing.format(pid=pid)}"


def _length_left(path: Path) -> float:
    """Bytes by which the process may lengthen the data file."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY or not (file := path / "data.mdb").exists():
        return math.inf
    return limit - file.stat().st_size


def _existing(path: Path) -> Path:
    """The path, or the nearest above it that is there."""
    path = path.absolute()
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            place.stat()
            return place
    return Path("/")
