from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.behaviors import Source, pack_behavior
from infra.kafka.mock import MockCluster
from infra.settings import BrokerSettings, Settings, StoreSettings
from infra.store import Append, Group
from infra.stores import open_store
from lifelong.checks import run_checks


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """A broker that answers, without topics."""
    cluster = MockCluster()
    yield cluster.bootstrap
    cluster.close()


@pytest.fixture
def settings(broker: str, tmp_path: Path) -> Settings:
    """An LMDB store that nobody has made."""
    return Settings(
        broker=BrokerSettings(bootstrap=broker),
        store=StoreSettings(url=f"lmdb://{tmp_path / 'store'}", name="shop", ttl_s=60),
    )


def check_store(settings: Settings) -> dict[str, Any]:
    """What is found of the store."""
    checks = run_checks(settings, quiet=True)["checks"]
    found: dict[str, Any] = next(check for check in checks if check["name"] == "store")
    return found


def test_a_store_that_is_not_there_is_told_and_not_made(settings: Settings, tmp_path: Path) -> None:
    found = check_store(settings)

    assert not found["ok"]
    assert "there is no store" in found["detail"]
    assert "start a worker" in found["detail"]
    assert list(tmp_path.iterdir()) == []


def test_a_store_says_which_it_is(settings: Settings) -> None:
    store = open_store(settings.store)
    assert store.identity is not None
    store.close()

    found = check_store(settings)

    assert found["ok"]
    assert "is empty" in found["detail"]
    assert f"shop, id {store.identity.id}" in found["detail"]
    assert "ttl_s 60" in found["detail"]


def test_a_store_with_users_says_so(settings: Settings) -> None:
    store = open_store(settings.store)
    append = Append("ann", [pack_behavior(1, 1, 0, 0, 2)], [0], [0])
    store.append([Group(Source(1, 1), [append])], 1)
    store.close()

    assert "has users" in check_store(settings)["detail"]


def test_a_store_that_is_another_one_is_told(settings: Settings) -> None:
    open_store(settings.store).close()
    other = settings.store.model_copy(update={"id": "0" * 32})

    found = check_store(settings.model_copy(update={"store": other}))

    assert not found["ok"]
    assert "store.id" in found["detail"]


def test_looking_changes_nothing_of_what_a_store_says_of_itself(settings: Settings) -> None:
    open_store(settings.store, actions=("view", "click")).close()
    shorter = settings.store.model_copy(update={"ttl_s": 5})
    events = settings.events.model_copy(update={"action_names": ("view", "click", "a typo")})

    found = check_store(settings.model_copy(update={"store": shorter, "events": events}))

    assert found["ok"]
    store = open_store(settings.store, read_only=True)
    identity = store.identity
    store.close()
    assert identity is not None
    assert (identity.ttl_s, identity.actions) == (60, ("view", "click"))


def test_a_store_that_cannot_be_written_is_told(settings: Settings, tmp_path: Path) -> None:
    open_store(settings.store).close()
    size = (tmp_path / "store" / "data.mdb").stat().st_size
    full = settings.store.model_copy(update={"url": f"{settings.store.url}?max_size={size}"})

    found = check_store(settings.model_copy(update={"store": full}))

    assert not found["ok"]
    assert "raise max_size" in found["detail"]
