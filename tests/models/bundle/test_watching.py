from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from models.bundle import MANIFEST, SCORER, Bundle, look
from tests.bundles import tiny_bundle


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "bundle")


def test_a_whole_bundle_is_told_by_its_digest(place: Path) -> None:
    found = look(place)

    assert (found.digest, found.lacking) == (Bundle.load(place).digest, None)


def test_a_directory_that_did_not_change_is_found_the_same(place: Path) -> None:
    assert look(place) == look(place)


def test_a_link_is_followed_to_the_directory(place: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(place)

    assert look(link) == look(place)


def test_nothing_at_all_is_no_error(tmp_path: Path) -> None:
    found = look(tmp_path / "nowhere")

    assert found.digest is None
    assert "there is no bundle" in str(found.lacking)


def test_a_manifest_that_is_half_written_is_not_whole(place: Path) -> None:
    whole = (place / MANIFEST).read_bytes()
    (place / MANIFEST).write_bytes(whole[: len(whole) // 2])

    found = look(place)

    assert found.digest is None
    assert str(found.lacking).endswith("manifest.json is not whole")


def test_a_file_that_is_to_come_is_named(place: Path) -> None:
    (place / SCORER).unlink()

    assert str(look(place).lacking).endswith("scorer.onnx is absent")


def test_a_file_that_still_grows_is_named_and_is_another_find_each_time(place: Path) -> None:
    whole = (place / SCORER).read_bytes()
    (place / SCORER).write_bytes(whole[:10])
    before = look(place)
    (place / SCORER).write_bytes(whole[:20])
    after = look(place)

    assert f"has 20 of {len(whole)} bytes" in str(after.lacking)
    assert before != after


def test_a_bundle_of_another_format_is_whole_and_left_to_whoever_loads_it(place: Path) -> None:
    (place / MANIFEST).write_bytes(b'{"format": 99}')

    assert look(place).lacking is None


def test_the_same_bundle_copied_once_more_has_the_same_digest(place: Path) -> None:
    before = look(place)
    shutil.copytree(place, place.with_name("copy"))

    assert look(place.with_name("copy")).digest == before.digest
