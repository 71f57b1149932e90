from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest

from infra.errors import SourceError
from streaming.history.inputs import FileInput, find_files
from tests.streaming.history.events import rows, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as a program of tables leaves them."""
    for name in ("day=1/b.parquet", "day=1/a.parquet", "day=2/a.csv"):
        write(tmp_path / name, rows(3))
    for name in ("_SUCCESS", "day=1/.a.parquet.crc", "day=2/notes.txt"):
        (tmp_path / name).write_text("")
    return tmp_path


def names(folder: Path, *places: str) -> list[str]:
    return [str(file.relative_to(folder)) for file in find_files([str(folder / p) for p in places])]


def test_a_folder_is_all_files_of_events_in_it(folder: Path, logged: StringIO) -> None:
    assert names(folder, "") == ["day=1/a.parquet", "day=1/b.parquet", "day=2/a.csv"]
    assert "files of no known format left out" in logged.getvalue()


def test_files_and_patterns_are_found_once(folder: Path) -> None:
    found = names(folder, "day=2/a.csv", "day=*/*.parquet", "day=1")
    assert found == ["day=2/a.csv", "day=1/a.parquet", "day=1/b.parquet"]
    assert names(folder, "**/*.csv") == ["day=2/a.csv"]


@pytest.mark.parametrize("place", ["none.csv", "day=3/*.csv", "empty"])
def test_a_place_without_files_is_told(folder: Path, place: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(SourceError, match="name files, folders or a pattern"):
        names(folder, place)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_file_tells_about_how_many_events_it_has(tmp_path: Path, suffix: str) -> None:
    assert 300 < FileInput(write(tmp_path / f"e{suffix}", rows(600))).rows < 1500
