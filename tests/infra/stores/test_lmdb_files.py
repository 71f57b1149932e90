"""An LMDB store's files: copied in use, put back, made smaller."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.behaviors import partition_source
from infra.errors import StoreMismatch, StoreUnavailable
from infra.store import Group
from infra.stores.lmdb import DATA, LmdbStore
from infra.stores.lmdb_files import backup, compact, restore
from tests.infra.stores.test_contract import append, feed, items

SOURCE = partition_source("behaviors", "topic-1", 0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store with ann's events 0 to 99, and with room for what was forgotten."""
    path = tmp_path / "store"
    store = LmdbStore(path)
    store.append([Group(SOURCE, [append("ann", 0, 100)], 99)], now_ms=1)
    others = [f"user-{i}" for i in range(500)]
    feed(store, SOURCE, [append(user, 0, 100) for user in others], now_ms=1)
    store.forget(others, now_ms=2)
    store.close()
    return path


def kept(path: Path) -> list[int]:
    store = LmdbStore(path)
    found = items(store.sequences(["ann"])[0])
    store.close()
    return found


def identity(path: Path) -> str:
    store = LmdbStore(path)
    assert store.identity is not None
    found = store.identity.id
    store.close()
    return found


def _hold(path: str, opened: object, end: object) -> None:
    store = LmdbStore(Path(path))
    feed(store, SOURCE, [append("ann", 100, 10)], now_ms=5)
    opened.set()  # type: ignore[attr-defined]
    end.wait()  # type: ignore[attr-defined]
    store.close()


class Holder:
    """A worker of its own process that has the store open, and has applied ten events more."""

    def __init__(self, path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        opened, self._end = context.Event(), context.Event()
        self._process = context.Process(target=_hold, args=(str(path), opened, self._end))
        self._process.start()
        assert opened.wait(60)

    def close(self) -> None:
        self._end.set()
        self._process.join(60)
        assert self._process.exitcode == 0


def test_a_backup_of_a_store_in_use_is_that_store(place: Path, tmp_path: Path) -> None:
    worker = Holder(place)
    done = backup(place, tmp_path / "copies" / "monday")
    worker.close()
    assert kept(tmp_path / "copies" / "monday") == list(range(110))
    assert done.store is not None
    assert done.store.id == identity(place)
    assert done.bytes_after < done.bytes_before


def test_a_backup_overwrites_nothing(place: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with pytest.raises(StoreMismatch, match="exists already"):
        backup(place, tmp_path / "copy")


def test_a_backup_of_nothing_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="there is no store"):
        backup(tmp_path / "stroe", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_restored_store_is_as_it_was(place: Path, tmp_path: Path) -> None:
    backup(place, tmp_path / "copy")
    shutil.rmtree(place)
    restore(tmp_path / "copy", place)
    assert kept(place) == list(range(100))
    store = LmdbStore(place)
    assert store.positions([SOURCE.key]) == [99]
    store.close()


def test_a_restore_over_a_store_keeps_that_one_beside_it(place: Path, tmp_path: Path) -> None:
    backup(place, tmp_path / "copy")
    store = LmdbStore(place)
    feed(store, SOURCE, [append("ann", 100, 5)], now_ms=9)
    store.close()
    with pytest.raises(StoreMismatch, match="--replace"):
        restore(tmp_path / "copy", place)
    restore(tmp_path / "copy", place, replace=True)
    assert kept(place) == list(range(100))
    assert kept(tmp_path / "store.before-restore") == list(range(105))


WORKS: dict[str, Callable[[Path, Path], object]] = {
    "restore": lambda copy, place: restore(copy, place, replace=True),
    "compact": lambda _, place: compact(place),
}


@pytest.mark.parametrize("work", WORKS)
def test_a_store_in_use_is_not_touched(place: Path, tmp_path: Path, work: str) -> None:
    backup(place, tmp_path / "copy")
    worker = Holder(place)
    with pytest.raises(StoreUnavailable, match="is in use"):
        WORKS[work](tmp_path / "copy", place)
    worker.close()
    assert kept(place) == list(range(110))
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_compacting_gives_back_what_was_forgotten(place: Path) -> None:
    before = (place / DATA).stat().st_size
    done = compact(place)
    assert (done.bytes_before, done.bytes_after) == (before, (place / DATA).stat().st_size)
    assert done.bytes_after < before / 4
    assert kept(place) == list(range(100))


def test_a_store_can_be_opened_at_once_after_compacting(place: Path) -> None:
    compact(place)
    worker = Holder(place)
    worker.close()
    assert kept(place) == list(range(110))
