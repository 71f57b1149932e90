from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from infra.behaviors import Source, pack_behavior
from infra.errors import SettingsError
from infra.settings import Settings, StoreSettings
from infra.store import Append, Group
from infra.stores import open_store
from lifelong.forgetting import ForgetOptions, run_forget
from lifelong.upkeep import run_backup, run_compact, run_restore

SOURCE = Source(1, 1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A store with ann and bob."""
    settings = Settings(store=StoreSettings(url=f"lmdb://{tmp_path / 'store'}"))
    add(settings, ["ann", "bob"])
    return settings


def add(settings: Settings, users: Sequence[str], *, offset: int = 0, time_ms: int = 1) -> None:
    store = open_store(settings.store, actions=("buy",))
    behavior = pack_behavior(1, time_ms, 0, 0, 1)
    appends = [Append(user, [behavior], [0], [offset]) for user in users]
    store.append([Group(SOURCE, appends)], time_ms)
    store.close()


def users(settings: Settings) -> list[str]:
    store = open_store(settings.store, read_only=True)
    found = store.users(b"", 10).users
    store.close()
    return found


def test_a_backup_is_restored(settings: Settings, tmp_path: Path) -> None:
    made = run_backup(settings, tmp_path / "copy")
    run_forget(settings, ["ann", "bob"], ForgetOptions(letters=False))
    restored = run_restore(settings, tmp_path / "copy", replace=True)
    assert users(settings) == ["ann", "bob"]
    assert restored["store"]["id"] == made["store"]["id"]


def test_compacting_keeps_all(settings: Settings) -> None:
    report = run_compact(settings)
    assert 0 < report["bytes_after"] <= report["bytes_before"]
    assert users(settings) == ["ann", "bob"]


@pytest.mark.parametrize(
    ("url", "advice"), [("aerospike://127.0.0.1:1/test", "asbackup"), ("memory://", "its process")]
)
def test_another_store_is_told_how_it_is_backed_up(
    settings: Settings, tmp_path: Path, url: str, advice: str
) -> None:
    other = settings.model_copy(update={"store": StoreSettings(url=url)})
    with pytest.raises(SettingsError, match=advice):
        run_backup(other, tmp_path / "copy")
