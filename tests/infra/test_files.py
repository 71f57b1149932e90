from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from infra.files import reason, replacing
from tests.infra.disks import full_disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is there already."""
    found = tmp_path / "file"
    found.write_bytes(b"before")
    return found


def names(path: Path) -> list[str]:
    return [each.name for each in path.parent.iterdir()]


def test_a_new_file_takes_the_place_of_the_old(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"after")
        file.flush()
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert names(path) == ["file"]


def test_directories_are_made(tmp_path: Path) -> None:
    with replacing(tmp_path / "a" / "b" / "file") as file:
        file.write(b"content")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"


def test_without_room_the_old_file_stays_alone(path: Path) -> None:
    with pytest.raises(OSError, match="too large"), full_disk(), replacing(path) as file:
        file.write(bytes(100_000))
    assert path.read_bytes() == b"before"
    assert names(path) == ["file"]


def test_an_interruption_leaves_the_old_file_alone(path: Path) -> None:
    def write_half(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        write_half(file)
    assert path.read_bytes() == b"before"
    assert names(path) == ["file"]


def test_every_failure_has_a_reason(path: Path) -> None:
    with pytest.raises(OSError) as array, full_disk(4096), replacing(path) as file:  # noqa: PT011  # any
        np.save(file, np.zeros(100_000))
    with pytest.raises(OSError) as place, replacing(path / "file"):  # noqa: PT011
        pass
    assert "written" in reason(array.value)
    assert reason(place.value) == "File exists"
