"""How full a Redis is: how near its memory is to where it stops writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Fullness(NamedTuple):
    """How much of a server's memory is used, as `infra.store.Room`."""

    share: float
    told: str
    """The server's own figures, and what to do to have more."""

    @property
    def readers(self) -> None:
        """Nothing limits them."""
        return None


def fullness(said: Mapping[str, Any]) -> Fullness | None:
    """How near a server is to its limit, by its INFO memory; None: it names none.

    >>> fullness({"used_memory": 2 << 30, "maxmemory": 4 << 30}).share
    0.5
    """
    used, limit = int(said.get("used_memory", 0)), int(said.get("maxmemory", 0))
    what = "its maxmemory: raise it, or set store.ttl_s"
    if not limit:
        limit = int(said.get("total_system_memory", 0))
        what = "its machine's memory: set maxmemory, take a larger one, or set store.ttl_s"
    if not limit:
        return None
    return Fullness(used / limit, f"{used / 2**30:.2f} of {limit / 2**30:.2f} GiB of {what}")
