from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.behaviors import partition_owner
from infra.errors import BundleMissing
from infra.segments import SEGMENT
from infra.settings import BundleSettings, Settings, StoreSettings
from infra.store import DueUser
from infra.stores import open_store
from lifelong.transfers import run_backfill
from models.bundle import Bundle
from tests.bundles import tiny_bundle

T0 = 1_600_000_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """A segment of "ann"."""
    rows = [
        {"user_id": "ann", "item_id": f"i{n}", "action": "click", "event_time": T0 + n}
        for n in range(SEGMENT)
    ]
    file = tmp_path / "events.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def settings_of(bundle: Path | None, directory: Path) -> Settings:
    return Settings(
        store=StoreSettings(url=f"lmdb://{directory / 'store'}"),
        bundle=BundleSettings(path=bundle),
    )


def due(settings: Settings, digest: bytes) -> list[DueUser]:
    store = open_store(settings.store, read_only=True)
    try:
        return store.due(partition_owner(settings.broker.topic, 0), digest, 10)
    finally:
        store.close()


def test_backfilled_users_are_due_for_the_bundle(
    events: Path, bundle: Bundle, tmp_path: Path
) -> None:
    settings = settings_of(bundle.path, tmp_path)

    report = run_backfill(settings, events, partitions=1, on_bad="stop")

    assert (report["applied"], report["deleted"], report["events"]) == (SEGMENT, 0, SEGMENT)
    assert [one.user for one in due(settings, bundle.digest)] == ["ann"]


def test_without_a_bundle_backfilled_users_are_due_for_none(
    events: Path, bundle: Bundle, tmp_path: Path
) -> None:
    settings = settings_of(None, tmp_path)

    report = run_backfill(settings, events, partitions=1, on_bad="stop")

    assert report["applied"] == SEGMENT
    assert due(settings, bundle.digest) == []


def test_a_bundle_that_is_not_there_is_told_before_anything_is_written(
    events: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path / "absent", tmp_path)

    with pytest.raises(BundleMissing, match="absent"):
        run_backfill(settings, events, partitions=1, on_bad="stop")

    assert not (tmp_path / "store").exists()
