"""What other processes, operators and disks do to an LMDB store, and how it is told."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lmdb
import pytest

from infra.behaviors import partition_source
from infra.errors import StoreCorrupt, StoreError, StoreFull, StoreMismatch, StoreUnavailable
from infra.processes import die_with_parent
from infra.store import LOW, StoreOptions
from infra.stores.lmdb import DATA, LOCK, MAX_READERS, TURN, LmdbStore
from infra.stores.lmdb_faults import ADVICE, filesystem, told
from infra.stores.lmdb_meta import check, read_meta
from tests.infra.disks import full_disk
from tests.infra.stores.test_contract import append, feed, items

SOURCE = partition_source("behaviors", "topic-1", 0)
READING = StoreOptions(read_only=True)
MIB = 1 << 20


class Other:
    """Another process with the store open; it does what it is told, and then stays as it is."""

    def __init__(self, path: Path, **opened: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_obey, args=(str(path), opened, theirs), daemon=True)
        self._process.start()
        assert self._answer() == "open"

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def do(self, task: Callable[[LmdbStore], object]) -> object:
        self._line.send(task)
        return self._answer()

    def signal(self, sent: signal.Signals) -> None:
        os.kill(self.pid, sent)

    def kill(self) -> None:
        self._process.kill()
        self._process.join(60)

    def _answer(self) -> object:
        assert self._line.poll(60)
        return self._line.recv()


def _obey(path: str, opened: dict[str, Any], line: Connection) -> None:
    die_with_parent()
    store = LmdbStore(Path(path), **opened)
    line.send("open")
    while True:
        line.send(line.recv()(store))


KEPT: list[lmdb.Transaction] = []
"""Transactions that a process leaves open."""


def begin(store: LmdbStore, *, count: int = 1, write: bool = False) -> None:
    KEPT.extend(store._env.begin(write=write) for _ in range(count))


def fill(store: LmdbStore, *, users: int, begin: int = 0) -> None:
    """Some 2.7 KB for each of the users."""
    for i in range(begin, begin + users, 100):
        feed(store, SOURCE, [append(f"user-{i + j}", 0, 100) for j in range(100)], now_ms=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    store = LmdbStore(tmp_path / "store", sync=False, patience_s=0.5)
    feed(store, SOURCE, [append("ann", 0, 100)], now_ms=1)
    yield store
    store.close()


@pytest.fixture
def other(store: LmdbStore, tmp_path: Path) -> Iterator[Other]:
    other = Other(tmp_path / "store")
    yield other
    other.kill()


# Readers


def test_killed_readers_leave_their_slots_to_others(store: LmdbStore, other: Other) -> None:
    other.do(partial(begin, count=MAX_READERS))
    other.kill()
    assert items(store.sequences(["ann"])[0]) == list(range(100))


def test_a_store_is_opened_whose_slots_killed_readers_have(tmp_path: Path) -> None:
    LmdbStore(tmp_path).close()
    holder, other = Other(tmp_path), Other(tmp_path)  # the last to close clears the slots
    other.do(partial(begin, count=MAX_READERS))
    other.kill()
    with pytest.raises(StoreUnavailable, match="free again once a worker or a scorer has looked"):
        LmdbStore(tmp_path, READING)
    holder.do(LmdbStore.ping)
    LmdbStore(tmp_path, READING).close()
    holder.kill()


def test_readers_that_live_and_take_all_slots_are_named(store: LmdbStore, other: Other) -> None:
    other.do(partial(begin, count=MAX_READERS))
    with pytest.raises(StoreUnavailable) as raised:
        store.sequences(["ann"])
    assert f"all its 512 slots for readers taken by 1 processes (process {other.pid} 512)" in str(
        raised.value
    )


def test_pages_that_a_killed_reader_kept_are_used_again(store: LmdbStore, other: Other) -> None:
    other.do(begin)
    other.kill()
    store.ping()
    fill(store, users=200)
    size = store.room().file
    for _ in range(20):
        store.forget([f"user-{i}" for i in range(200)], now_ms=0)
        fill(store, users=200)
    assert store.room().file < 2 * size


# The map


def test_processes_with_different_limits_go_on_beside_each_other(tmp_path: Path) -> None:
    small = LmdbStore(tmp_path, max_size=MIB // 4)
    large = Other(tmp_path, max_size=64 * MIB)
    large.do(partial(fill, users=300))
    assert items(small.sequences(["user-299"])[0]) == list(range(100))
    fill(small, users=200, begin=300)
    large.do(partial(fill, users=200, begin=500))
    assert len(small.users(b"", 5000).users) == 700
    assert small.room().limit == 64 * MIB
    large.kill()
    small.close()


def test_a_write_meets_a_map_that_another_process_enlarged(tmp_path: Path) -> None:
    small = LmdbStore(tmp_path, max_size=MIB // 4)
    large = Other(tmp_path, max_size=64 * MIB)
    large.do(partial(fill, users=300))
    feed(small, SOURCE, [append("ann", 0)], now_ms=1)
    assert items(small.sequences(["ann"])[0]) == [0]
    large.kill()
    small.close()


def test_a_full_map_is_no_end_where_another_process_has_a_larger_one(tmp_path: Path) -> None:
    small = LmdbStore(tmp_path, max_size=MIB // 4)
    large = Other(tmp_path, max_size=2 * MIB)
    large.do(LmdbStore.ping)
    fill(small, users=300)
    with pytest.raises(StoreFull, match=f"limit of {2 * MIB} bytes: raise max_size"):
        fill(small, users=2000)
    large.kill()
    small.close()


def test_a_larger_limit_of_its_own_is_not_given_up(tmp_path: Path) -> None:
    LmdbStore(tmp_path, max_size=MIB // 4).close()
    store = LmdbStore(tmp_path, max_size=MIB)
    with pytest.raises(StoreFull, match=f"limit of {MIB} bytes"):
        feed(store, SOURCE, [append(f"user-{i}", 0, 100) for i in range(1000)], now_ms=1)
    store.close()


def test_threads_read_on_while_the_map_is_exchanged(tmp_path: Path) -> None:
    small = LmdbStore(tmp_path, max_size=MIB // 4)
    feed(small, SOURCE, [append("ann", 0, 100)], now_ms=1)
    large = Other(tmp_path, max_size=64 * MIB)
    ended = threading.Event()

    def read() -> int:
        count = 0
        while not ended.is_set():
            found = items(small.sequences(["ann"])[0])
            assert found in (list(range(100)), list(range(101)))
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        large.do(partial(fill, users=300))
        feed(small, SOURCE, [append("ann", 100)], now_ms=1)
        ended.set()
        assert all(reader.result() > 0 for reader in readers)
    large.kill()
    small.close()


# The writers' lock


def test_a_process_stopped_while_it_writes_is_named(store: LmdbStore, other: Other) -> None:
    other.do(partial(begin, write=True))
    other.signal(signal.SIGSTOP)
    for _ in range(3):
        with pytest.raises(
            StoreUnavailable, match=rf"process {other.pid} \(.*kill -CONT {other.pid}"
        ):
            store.ping()
    waiting = [thread for thread in threading.enumerate() if thread.name == TURN]
    assert len(waiting) == 1
    assert items(store.sequences(["ann"])[0]) == list(range(100))


def test_a_ping_succeeds_again_once_the_lock_is_free(store: LmdbStore, other: Other) -> None:
    other.do(partial(begin, write=True))
    with pytest.raises(StoreUnavailable, match="at work or stuck"):
        store.ping()
    other.kill()
    _in_a_minute(store.ping)


def test_an_append_waits_for_the_lock_and_is_done(store: LmdbStore, other: Other) -> None:
    other.do(partial(begin, write=True))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(feed, store, SOURCE, [append("ann", 100)], now_ms=2)
        time.sleep(0.2)
        assert not waiting.done()
        assert items(store.sequences(["ann"])[0]) == list(range(100))
        other.kill()
        waiting.result(60)
    assert items(store.sequences(["ann"])[0]) == list(range(101))


def test_a_store_whose_lock_is_held_is_opened_for_reading_and_not_for_writing(
    tmp_path: Path,
) -> None:
    LmdbStore(tmp_path).close()
    other = Other(tmp_path)
    other.do(partial(begin, write=True))
    other.signal(signal.SIGSTOP)
    reader = LmdbStore(tmp_path, READING)
    reader.ping()
    reader.close()
    with pytest.raises(StoreUnavailable, match="which is stopped"):
        LmdbStore(tmp_path, patience_s=0.5)
    with pytest.raises(StoreUnavailable, match="still waits for its turn"):
        LmdbStore(tmp_path, patience_s=0.5)
    other.kill()
    _in_a_minute(lambda: LmdbStore(tmp_path).close())


def test_a_process_ends_although_a_write_of_it_waits(store: LmdbStore, other: Other) -> None:
    other.do(partial(begin, write=True))
    other.signal(signal.SIGSTOP)
    opening = _python("LmdbStore(Path(sys.argv[1]), patience_s=0.5)", str(store._path), check=False)
    assert "which is stopped" in opening.stderr


def _in_a_minute(call: Callable[[], object]) -> None:
    """Call until it succeeds."""
    until = time.monotonic() + 60
    while True:
        try:
            call()
        except StoreUnavailable:
            assert time.monotonic() < until
            time.sleep(0.1)
        else:
            return


# Room


def test_a_store_that_cannot_be_longer_is_full_and_goes_on_afterwards(store: LmdbStore) -> None:
    with (
        pytest.raises(StoreFull, match="ulimit -f"),
        full_disk((store._path / DATA).stat().st_size),
    ):
        fill(store, users=500)
    assert items(store.sequences(["ann"])[0]) == list(range(100))
    fill(store, users=500)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_full_disk_is_told_as_that(tmp_path: Path, code: int) -> None:
    error = OSError(code, os.strerror(code))
    said = told(error, "the LMDB store at x", tmp_path, limit=MIB, free=lambda _: 4096)
    assert isinstance(said, StoreFull)
    assert str(said).startswith("the disk of the LMDB store at x is full, 4096 bytes are free: ")


def test_a_disk_that_fails_with_room_on_it_is_not_full(tmp_path: Path) -> None:
    said = told(OSError(errno.EIO, "x"), "the store", tmp_path, limit=MIB, free=lambda _: MIB << 20)
    assert isinstance(said, StoreUnavailable)


def test_the_room_of_a_store(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, max_size=8 * MIB, sync=False)
    fill(store, users=100)
    before = store.room()
    assert before.limit == 8 * MIB
    assert 100 * 2500 < before.used <= before.file <= (tmp_path / DATA).stat().st_size
    assert before.disk_free > MIB
    assert before.share < LOW
    with contextlib.suppress(StoreFull):
        fill(store, users=10_000)
    assert store.room().share >= LOW
    store.close()


def test_slots_for_readers_are_told(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "store")
    store.sequences(["a"])
    assert store.room().readers == 1 / MAX_READERS
    store.close()


# The data file


def _cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def _swapped(data: bytes) -> bytes:
    return data[:16] + data[16:20][::-1] + data[20:]


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "half": (_cut(0.5), "is cut short"),
    "a page less": (lambda data: data[:-4096], "is cut short"),
    "a byte less": (lambda data: data[:-1], "is cut short"),
    "one page": (lambda data: data[:4096], "is cut short"),
    "two pages": (lambda data: data[:8192], "is cut short"),
    "a few bytes": (lambda data: data[:100], "is cut short"),
    "empty": (lambda data: b"", "is empty"),
    "zeros": (lambda data: bytes(len(data)), "is no LMDB file"),
    "garbage": (lambda data: bytes(range(256)) * 100, "is no LMDB file"),
    "garbage behind": (lambda data: data[:4096] + bytes(range(256)) * 100, "is no LMDB file"),
    "text": (lambda data: b"hello", "is cut short"),
    "LMDB 1.0": (lambda data: bytes(8) + data[:20] + b"\3" + data[21:], "has format 3 of LMDB"),
    "other bytes": (_swapped, "was written on another kind of machine"),
    "32 bits": (lambda data: data[4:], "was written on another kind of machine"),
}

OPEN = """
for place in sys.argv[1:]:
    for options in (StoreOptions(), StoreOptions(read_only=True)):
        try:
            store = LmdbStore(Path(place), options)
            store.sequences(["user-499"])
            print("opened")
        except Exception as error:
            print(type(error).__name__, error)
"""


def test_a_damaged_data_file_is_refused_before_it_is_mapped(tmp_path: Path) -> None:
    """In a process of its own: who maps one and reads it is killed by SIGBUS."""
    whole = LmdbStore(tmp_path / "whole")
    fill(whole, users=500)
    whole.close()
    data = (tmp_path / "whole" / DATA).read_bytes()
    assert len(data) == 4096 * (read_meta(tmp_path / "whole" / DATA).last_page + 1)
    places = []
    for name, (damage, _) in DAMAGED.items():
        place = tmp_path / name
        place.mkdir()
        (place / DATA).write_bytes(damage(data))
        places.append(str(place))
    lines = iter(_python(OPEN, *places).stdout.splitlines())
    for named, (_, said) in zip(places, DAMAGED.values(), strict=True):
        for line in (next(lines), next(lines)):
            assert line.startswith(f"StoreCorrupt {named}/{DATA} {said}")
    assert not list(lines)


def test_a_backup_of_a_damaged_data_file_is_refused(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "store")
    fill(store, users=500)
    store.close()
    os.truncate(tmp_path / "store" / DATA, 100_000)
    copying = _python(
        "backup(Path(sys.argv[1]), Path(sys.argv[2]))",
        str(tmp_path / "store"),
        str(tmp_path / "copy"),
        check=False,
    )
    assert "StoreCorrupt" in copying.stderr
    assert not (tmp_path / "copy").exists()


def test_a_file_without_its_free_pages_at_the_end_is_whole(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=16 * MIB) as env:
        with env.begin(write=True) as txn:
            for i in range(20):
                txn.put(b"%d" % i, bytes(20_000))
        for i in range(0, 20, 2):
            with env.begin(write=True) as txn:
                txn.delete(b"%d" % i)
        with env.begin(write=True) as txn:
            txn.put(b"small", b"")
            txn.put(b"large", bytes(400_000))
            txn.delete(b"large")
    file = tmp_path / DATA
    assert file.stat().st_size < 4096 * (read_meta(file).last_page + 1)
    check(file)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(StoreCorrupt):
        check(file)


def test_a_data_file_can_be_looked_at_while_it_is_written(store: LmdbStore) -> None:
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(fill, store, users=2000)
        while not written.done():
            check(store._data)


def _python(code: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    head = (
        "import sys; from pathlib import Path; from infra.stores.lmdb import LmdbStore;"
        " from infra.store import StoreOptions; from infra.stores.lmdb_files import backup\n"
    )
    return subprocess.run(
        [sys.executable, "-c", head + code, *arguments],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=check,
    )


# The directory


def test_a_deleted_directory_is_noticed(store: LmdbStore) -> None:
    shutil.rmtree(store._path)
    with pytest.raises(StoreUnavailable, match="was deleted under this process: restart it"):
        store.ping()
    with pytest.raises(StoreUnavailable, match="was deleted"):
        feed(store, SOURCE, [append("ann", 100)], now_ms=2)


def test_a_replaced_directory_is_noticed(store: LmdbStore, tmp_path: Path) -> None:
    shutil.copytree(store._path, tmp_path / "copy")
    store._path.rename(tmp_path / "before")
    (tmp_path / "copy").rename(store._path)
    with pytest.raises(StoreUnavailable, match="was replaced by another one"):
        store.ping()
    with pytest.raises(StoreUnavailable, match="was replaced"):
        feed(store, SOURCE, [append("ann", 100)], now_ms=2)


@pytest.fixture
def reader(store: LmdbStore) -> Iterator[LmdbStore]:
    """The store, opened for reading."""
    store.close()
    reader = LmdbStore(store._path, READING)
    yield reader
    reader.close()


def test_a_reader_reads_nothing_of_a_directory_that_is_gone(reader: LmdbStore) -> None:
    shutil.rmtree(reader._path)
    with pytest.raises(StoreUnavailable, match="there is no store at"):
        reader.ping()
    with pytest.raises(StoreUnavailable, match="was deleted or replaced"):
        reader.sequences(["ann"])


def test_a_reader_goes_over_to_what_is_put_in_the_place(reader: LmdbStore, tmp_path: Path) -> None:
    _made(tmp_path / "other", "bob")
    shutil.rmtree(reader._path)
    with pytest.raises(StoreUnavailable):
        reader.ping()
    (tmp_path / "other").rename(reader._path)
    reader.ping()
    ann, bob = reader.sequences(["ann", "bob"])
    assert ann is None
    assert items(bob) == [0]


def test_a_reader_does_not_go_over_to_another_store_than_asked_for(
    store: LmdbStore, tmp_path: Path
) -> None:
    assert store.identity is not None
    path, known = store._path, store.identity.id
    store.close()
    reader = LmdbStore(path, StoreOptions(read_only=True, id=known))
    _made(tmp_path / "other", "bob")
    path.rename(tmp_path / "before")
    (tmp_path / "other").rename(path)
    for _ in range(2):
        with pytest.raises(StoreMismatch, match=f"asks for {known}"):
            reader.ping()
    with pytest.raises(StoreUnavailable, match="was deleted or replaced"):
        reader.sequences(["bob"])
    path.rename(tmp_path / "other")
    (tmp_path / "before").rename(path)
    reader.ping()
    assert reader.sequences(["ann"]) != [None]
    reader.close()


def test_threads_read_on_while_a_reader_goes_over(reader: LmdbStore, tmp_path: Path) -> None:
    for place in range(10):
        _made(tmp_path / f"other-{place}", "ann")
    ended = threading.Event()

    def read() -> set[bool]:
        found = set()
        while not ended.is_set():
            found.add(reader.sequences(["ann"]) == [None])
        return found

    with ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(read) for _ in range(3)]
        for place in range(10):
            reader._path.rename(tmp_path / f"before-{place}")
            (tmp_path / f"other-{place}").rename(reader._path)
            reader.ping()
        ended.set()
        assert [one.result() for one in reading] == [{False}] * 3


def _made(path: Path, user: str) -> None:
    """A store with one behavior of a user, at a path at which none has been open yet."""
    store = LmdbStore(path, sync=False)
    feed(store, SOURCE, [append(user, 0)], now_ms=1)
    store.close()


# Causes


def test_a_file_in_the_place_of_a_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="a part of the path is a file"):
        LmdbStore(tmp_path / "file" / "store")
    with pytest.raises(StoreUnavailable, match="a file where the directory should be"):
        LmdbStore(tmp_path / "file")
    (tmp_path / "store" / DATA).mkdir(parents=True)
    with pytest.raises(StoreUnavailable, match="a directory where a file should be"):
        LmdbStore(tmp_path / "store")


def test_a_lock_file_of_another_version_is_told(store: LmdbStore, other: Other) -> None:
    store.close()
    with (store._path / LOCK).open("r+b") as file:
        file.seek(4)
        file.write(b"\7")
    with pytest.raises(
        StoreUnavailable, match="a process with another version of LMDB has it open"
    ):
        LmdbStore(store._path)


def _refused(path: str, line: Connection, limit: Callable[[], object]) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(100):
            opened.enter_context(Path("/dev/null").open("rb"))
    limit()
    try:
        LmdbStore(Path(path)).close()
    except StoreError as error:
        line.send(f"{type(error).__name__} {error}")
    else:
        line.send("opened")


LIMITS: dict[str, tuple[Callable[[], object], str]] = {
    "user": (partial(os.seteuid, 65534), "let the user it runs as write"),
    "address space": (partial(resource.setrlimit, resource.RLIMIT_AS, (8 << 30,) * 2), "ulimit -v"),
    "files": (partial(resource.setrlimit, resource.RLIMIT_NOFILE, (3, 3)), "ulimit -n"),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_what_a_process_may_not_do_is_told(tmp_path: Path, limit: str) -> None:
    set_limit, advice = LIMITS[limit]
    if limit == "user":
        if os.geteuid():
            set_limit = partial(tmp_path.chmod, 0o500)
        LmdbStore(tmp_path / "store").close()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_refused, args=(str(tmp_path / "store"), theirs, set_limit))
    process.start()
    assert ours.poll(60)
    said = ours.recv()
    process.join(60)
    assert said.startswith("StoreUnavailable the LMDB store at")
    assert advice in said


@pytest.mark.parametrize("cause", ADVICE)
def test_every_cause_is_one_line_with_its_advice(tmp_path: Path, cause: Any) -> None:
    error = OSError(cause, "x") if isinstance(cause, int) else cause("x")
    said = str(told(error, "the store", tmp_path, limit=MIB))
    assert said.startswith("the store failed: ")
    assert said.endswith(ADVICE[cause])
    assert "\n" not in said


def test_writing_to_what_was_opened_for_reading_is_told(store: LmdbStore) -> None:
    store.close()
    reader = LmdbStore(store._path, READING)
    with pytest.raises(StoreUnavailable, match="was opened for reading alone"):
        feed(reader, SOURCE, [append("ann", 100)], now_ms=2)
    reader.close()


def test_the_filesystem_of_a_path_is_the_one_mounted_nearest(tmp_path: Path) -> None:
    mounts = (
        f"/dev/sda / ext4 rw 0 0\nserver:/a {tmp_path} nfs4 rw 0 0\nx {tmp_path}/local xfs rw 0 0\n"
    )
    assert filesystem(tmp_path / "store", mounts) == "nfs4"
    (tmp_path / "local").mkdir()
    assert filesystem(tmp_path / "local" / "store", mounts) == "xfs"
    assert filesystem(Path("/dev/null"), mounts) == "ext4"
    assert filesystem(tmp_path) is not None
