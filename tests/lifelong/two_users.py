"""A store of two users, on which commands are tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra.behaviors import Source, pack_behavior
from infra.settings import Settings, StoreSettings
from infra.store import Append, Group
from infra.stores import open_store

SOURCE = Source(1, 1)


def two_users(directory: Path) -> Settings:
    """A store with ann and bob."""
    settings = Settings(store=StoreSettings(url=f"lmdb://{directory / 'store'}"))
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
