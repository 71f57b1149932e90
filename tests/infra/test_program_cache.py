"""A program is fetched once, whole or not at all."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.program_cache import default_cache, fetch_once


def fetched(folder: Path) -> Path:
    (folder / "program").touch()
    return folder


def refused(folder: Path) -> Path:
    (folder / "half").touch()
    raise ConnectionError("no such host")


def test_what_is_fetched_becomes_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "program-1.2"
    assert fetch_once(target, fetched) == target
    assert [path.name for path in target.iterdir()] == ["program"]
    assert target.stat().st_mode & 0o700 == 0o700


def test_a_part_of_what_is_fetched_may_be_all_that_is_kept(tmp_path: Path) -> None:
    def fetch(folder: Path) -> Path:
        (folder / "recipe").touch()
        (folder / "jars").mkdir()
        return fetched(folder / "jars")

    target = fetch_once(tmp_path / "program", fetch)
    assert [path.name for path in target.iterdir()] == ["program"]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [target]


def test_many_at_the_same_time_fetch_it_once(tmp_path: Path) -> None:
    calls = []

    def fetch(folder: Path) -> Path:
        calls.append(folder)
        time.sleep(0.2)  # long enough for the others to come by
        return fetched(folder)

    with ThreadPoolExecutor(4) as pool:
        targets = set(pool.map(lambda _: fetch_once(tmp_path / "program", fetch), range(4)))
    assert len(calls) == 1
    assert targets == {tmp_path / "program"}


def test_what_fails_leaves_no_folder_and_may_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        fetch_once(tmp_path / "program", refused)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert fetch_once(tmp_path / "program", fetched).is_dir()


def test_what_a_killed_fetch_left_behind_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / "program.part-abc"
    leftover.mkdir()
    fetch_once(tmp_path / "program", fetched)
    assert not leftover.exists()


def test_programs_are_kept_in_the_user_s_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "lifelong"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "lifelong"
