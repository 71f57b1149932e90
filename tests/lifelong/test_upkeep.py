from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.settings import Settings, StoreSettings
from lifelong.forgetting import ForgetOptions, run_forget
from lifelong.upkeep import run_backup, run_compact, run_restore
from tests.lifelong.two_users import two_users, users


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return two_users(tmp_path)


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
