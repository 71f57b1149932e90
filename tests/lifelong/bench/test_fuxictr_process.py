"""FuxiCTR is fetched whole or not at all, and every failure of it is told in one line."""

import re
from pathlib import Path

import pytest

from lifelong.bench.fuxictr_peer import Request, TimedBatches
from lifelong.bench.fuxictr_process import LOCK, FuxiCTR, PeerError, fetch

REQUEST = Request("DIN-L", 200, 1024, 2, loading=True)


def fake_python(directory: Path, script: str) -> Path:
    """A program that is started as Python would be, and does something else."""
    path = directory / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_every_requirement_is_pinned_and_hashed_and_names_no_registry() -> None:
    for requirement in re.split(r"(?<!\\)\n", LOCK.read_text().strip()):
        assert re.match(r"[A-Za-z0-9_.-]+==\S+ .*--hash=sha256:", requirement, re.DOTALL)
    assert not re.search(r"://|--(extra-)?index|find-links", LOCK.read_text())


def test_torch_is_not_fetched_a_second_time() -> None:
    assert not re.search(r"^(torch|nvidia)", LOCK.read_text(), re.MULTILINE)


def test_a_failed_fetch_leaves_no_folder_behind(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "echo 'ERROR: no such wheel' >&2; exit 1")
    with pytest.raises(PeerError, match="no such wheel"):
        fetch(tmp_path / "cache", python=str(python))
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_what_was_fetched_is_not_fetched_again(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "exit 0")
    folder = fetch(tmp_path / "cache", python=str(python))
    python.write_text("#!/bin/sh\nexit 1\n")
    assert fetch(tmp_path / "cache", python=str(python)) == folder


def test_a_peer_that_does_not_start_says_its_last_line(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "echo 'ModuleNotFoundError: fuxictr' >&2; exit 1")
    with pytest.raises(PeerError, match="ModuleNotFoundError: fuxictr"):
        FuxiCTR(tmp_path, 1, python)


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="nowhere"):
        FuxiCTR(tmp_path, 1, tmp_path / "nowhere")


def test_a_peer_that_ends_in_mid_measurement_is_told(tmp_path: Path) -> None:
    script = "echo '{\"ready\": true}'; read line; echo 'out of memory' >&2; exit 1"
    with (
        FuxiCTR(tmp_path, 1, fake_python(tmp_path, script)) as peer,
        pytest.raises(PeerError, match="out of memory"),
    ):
        peer.samples_per_second(REQUEST)


def test_the_rate_is_what_the_peer_answers(tmp_path: Path) -> None:
    script = "echo '{\"ready\": true}'; read line; echo '{\"samples_per_second\": 12.5}'; read end"
    with FuxiCTR(tmp_path, 1, fake_python(tmp_path, script)) as peer:
        assert peer.samples_per_second(REQUEST) == 12.5


def test_warm_up_and_the_last_batch_do_not_count() -> None:
    timed = TimedBatches([0, 0, 0, 0])
    assert list(timed) == [0, 0, 0, 0]
    timed._times = [0.0, 9.0, 10.0, 11.0]
    assert timed.per_second(warm_up=1) == 1.0
