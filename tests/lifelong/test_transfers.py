from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.behaviors import partition_owner
from infra.errors import BundleMissing, SettingsError
from infra.kafka.local import LocalKafka
from infra.segments import SEGMENT
from infra.settings import BundleSettings, Settings, StoreSettings
from infra.store import DueUser
from infra.stores import open_store
from lifelong.transfers import job_options, run_backfill
from models.bundle import Bundle
from tests.bundles import tiny_bundle
from tests.streaming.running import produce
from tests.streaming.test_sources import clicked, order, two_sources

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

    report = run_backfill(settings, [str(events)], partitions=1, work=tmp_path / "work")

    assert (report["behaviors"], report["deleted"], report["events"]) == (SEGMENT, 0, SEGMENT)
    assert [one.user for one in due(settings, bundle.digest)] == ["ann"]


def test_without_a_bundle_backfilled_users_are_due_for_none(
    events: Path, bundle: Bundle, tmp_path: Path
) -> None:
    settings = settings_of(None, tmp_path)

    report = run_backfill(settings, [str(events)], partitions=1, work=tmp_path / "work")

    assert report["behaviors"] == SEGMENT
    assert due(settings, bundle.digest) == []


def test_a_bundle_that_is_not_there_is_told_before_anything_is_written(
    events: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path / "absent", tmp_path)

    with pytest.raises(BundleMissing, match="absent"):
        run_backfill(settings, [str(events)], partitions=1, work=tmp_path / "work")

    assert not (tmp_path / "store").exists()


@pytest.mark.kafka
def test_the_topics_of_all_sources_are_one_history(
    events: Path, kafka: LocalKafka, tmp_path: Path
) -> None:
    url = f"lmdb://{tmp_path / 'store'}"
    settings, clicks, orders = two_sources(kafka.bootstrap, store={"url": url})
    produce(clicks, [("u1", clicked("u1", number)) for number in range(3)])
    produce(orders, [("u1", order("u1", 1)), ("u2", order("u2", 1))])

    report = run_backfill(settings, [], from_topic=True, work=tmp_path / "work")

    assert (report["users"], report["behaviors"]) == (2, 3 + 2 * 2)
    with pytest.raises(SettingsError, match="name one of clicks, orders"):
        run_backfill(settings, [str(events)], from_topic=True, work=tmp_path / "other")


def test_what_a_job_did_is_told_in_one_line(
    events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(None, tmp_path)
    for _ in range(2):
        run_backfill(settings, [str(events)], partitions=1, work=tmp_path / "work")

    room, done, _, again = capsys.readouterr().err.splitlines()
    assert "1 input; about 0 MB of" in room
    assert "job 'history', before 2020-09-13T12:26:40.064+00:00: 1 user merged with 64" in done
    assert "job 'history' is finished: nothing was read or changed" in again


def test_inputs_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="name files, folders or patterns"):
        run_backfill(settings_of(None, tmp_path), [], partitions=1)


@pytest.mark.parametrize("cut", ["2026-01-31T12:00:00+02:00", "2026-01-31 10:00", "1769853600000"])
def test_a_cut_is_a_time(cut: str) -> None:
    options = job_options("crm", cut=cut, again=True, part="1/1")
    assert (options.cut, options.again) == (1_769_853_600_000, True)


@pytest.mark.parametrize(("cut", "part"), [("yesterday", "1/1"), ("1", "one"), ("1", "2")])
def test_what_is_no_cut_or_no_part_is_told(cut: str, part: str) -> None:
    with pytest.raises(SettingsError, match=r"--cut 'yesterday'|--part '(one|2)'"):
        job_options("crm", cut=cut, again=False, part=part)
