"""Opening a store: the scheme of ``store.url`` names the adapter, one module or folder each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from infra.errors import SettingsError
from infra.store import (
    OPEN_WAIT_S,
    Damage,
    Identity,
    Interrupted,
    Store,
    StoreOptions,
    unheard,
    unheeded,
)

if TYPE_CHECKING:
    from infra.settings import StoreSettings


def open_store(
    settings: StoreSettings,
    *,
    read_only: bool = False,
    wait_s: float = OPEN_WAIT_S,
    timeout_s: float | None = None,
    actions: tuple[str, ...] = (),
    damage: Damage = unheard,
    interrupted: Interrupted = unheeded,
) -> Store:
    """Open the store that ``settings.url`` names; its adapter is imported only then.

    Args:
        settings: the store's.
        read_only: for reading alone: nothing is made or written, and the store must be there.
        wait_s: how long to wait for a server that is away or starting; 0 for those who ask again
            themselves, and meanwhile tell what they are waiting for.
        timeout_s: within which a server must answer a call; None: as long as workers wait.
        actions: the platform's names of actions, in the order of their codes.
        damage: told of damaged records.
        interrupted: told when the store stops to answer.

    Raises:
        SettingsError: the URL names no store.
        StoreUnavailable: the store does not answer, or is not there.
        StoreMismatch: it is not the one that the settings mean.
    """
    url = settings.url
    options = StoreOptions(
        read_only=read_only,
        length=settings.length,
        ttl_s=settings.ttl_s,
        states=settings.states,
        name=settings.name,
        id=settings.id,
        actions=actions,
        damage=damage,
        interrupted=interrupted,
    )
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        from infra.stores.memory import MemoryStore

        return MemoryStore(options)
    if scheme == "lmdb":
        return _open_lmdb(settings, options)
    if scheme == "aerospike":
        from infra.stores.aerospike.client import TIMEOUT_S
        from infra.stores.aerospike.store import AerospikeStore

        return AerospikeStore.open(
            url, options, wait_s=wait_s, timeout_s=TIMEOUT_S if timeout_s is None else timeout_s
        )
    if scheme in {"redis", "rediss"}:
        from infra.stores.redis.client import TIMEOUT_S
        from infra.stores.redis.store import RedisStore

        return RedisStore.open(
            url, options, wait_s=wait_s, timeout_s=TIMEOUT_S if timeout_s is None else timeout_s
        )
    raise SettingsError(
        f"store.url: {settings.masked_url!r} names no store; use lmdb://PATH,"
        " aerospike://HOST:PORT/NAMESPACE, redis://HOST:PORT/DATABASE or memory://"
    )


def open_as_it_is(settings: StoreSettings, identity: Identity) -> Store:
    """Open a store for writing with what it says of itself: whoever only does something to it by
    hand must not be who gives it another TTL, or other names of actions for good.

    Raises:
        As `open_store` does.
    """
    as_it_is = settings.model_copy(update={"ttl_s": identity.ttl_s})
    return open_store(as_it_is, actions=identity.actions)


def _open_lmdb(settings: StoreSettings, options: StoreOptions) -> Store:
    from infra.stores.lmdb import LmdbStore

    path, max_size, sync = lmdb_place(settings)
    return LmdbStore(path, options, max_size=max_size, sync=sync)


def lmdb_place(settings: StoreSettings) -> tuple[Path, int, bool]:
    """Directory, largest size in bytes and whether to sync, of an LMDB store's URL.

    Raises:
        SettingsError: the URL is not of that form.
    """
    from infra.stores.lmdb import DEFAULT_MAX_SIZE

    place, _, query = settings.url.removeprefix("lmdb://").partition("?")
    options = {name: values[-1] for name, values in parse_qs(query).items()}
    unknown = sorted(options.keys() - {"max_size", "sync"})
    if unknown or not place:
        wrong = f"unknown option {unknown[0]!r}" if unknown else "no path"
        raise SettingsError(
            f"store.url: {settings.masked_url!r} has {wrong}; use lmdb://PATH[?max_size=BYTES&sync=0]"
        )
    try:
        max_size = int(options.get("max_size", DEFAULT_MAX_SIZE))
    except ValueError as error:
        raise SettingsError(
            f"store.url: max_size in {settings.masked_url!r} is not a number of bytes"
        ) from error
    return Path(place), max_size, options.get("sync", "1") != "0"
