"""Opening a store: the scheme of ``store.url`` names the adapter, one module or folder each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from infra.errors import SettingsError
from infra.store import OPEN_WAIT_S, Store

if TYPE_CHECKING:
    from infra.settings import StoreSettings


def open_store(settings: StoreSettings, *, wait_s: float = OPEN_WAIT_S) -> Store:
    """Open the store that ``settings.url`` names; its adapter is imported only then.

    Args:
        settings: the store's.
        wait_s: how long to wait for a server that is away or starting; 0 for those who ask again
            themselves, and meanwhile tell what they are waiting for.

    Raises:
        SettingsError: the URL names no store.
        StoreUnavailable: the store does not answer.
    """
    url = settings.url
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        from infra.stores.memory import MemoryStore

        return MemoryStore(length=settings.length, ttl_s=settings.ttl_s)
    if scheme == "lmdb":
        return _open_lmdb(url, settings)
    if scheme == "aerospike":
        from infra.stores.aerospike.store import AerospikeStore

        return AerospikeStore.open(url, length=settings.length, ttl_s=settings.ttl_s, wait_s=wait_s)
    raise SettingsError(
        f"store.url: {settings.masked_url!r} names no store; use lmdb://PATH,"
        " aerospike://HOST:PORT/NAMESPACE or memory://"
    )


def _open_lmdb(url: str, settings: StoreSettings) -> Store:
    from infra.stores.lmdb import DEFAULT_MAX_SIZE, LmdbStore

    place, _, query = url.removeprefix("lmdb://").partition("?")
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
    return LmdbStore(
        Path(place),
        length=settings.length,
        ttl_s=settings.ttl_s,
        max_size=max_size,
        sync=options.get("sync", "1") != "0",
    )
