"""How full a namespace is on a server: how near to where that server stops writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

MORE: Final = "add memory or disk to the namespace, or set store.ttl_s"


class Fullness(NamedTuple):
    """How much of a namespace's room is used on a server, as `infra.store.Room`."""

    share: float
    what: str
    """The server's own figure."""

    @property
    def readers(self) -> None:
        """Nothing limits them."""
        return None

    @property
    def told(self) -> str:
        """That figure, and what to do to have more."""
        return f"{self.what}: {MORE}"


def fullness(said: Mapping[str, str]) -> Fullness | None:
    """How near a server is to the first of its limits, by what it says of the namespace; None: it
    names none that is known.

    >>> fullness({"data_avail_pct": "81", "storage-engine.stop-writes-avail-pct": "5"})
    Fullness(share=0.2, what='data_avail_pct 81, writes stop below 5')
    """
    if said.get("stop_writes") == "true":
        return Fullness(1.0, "a server takes no more writes")
    return max((*_available(said), *_used(said)), default=None)


_AVAILABLE: Final = {
    "data_avail_pct": "storage-engine.stop-writes-avail-pct",
    # Before server 7:
    "device_available_pct": "storage-engine.min-avail-pct",
    "pmem_available_pct": "storage-engine.min-avail-pct",
}
"""Figures of what is left, and below what writes stop; percent."""

_USED: Final = {
    "data_used_pct": "storage-engine.stop-writes-used-pct",
    # Before server 7:
    "device_free_pct": "storage-engine.max-used-pct",
    "pmem_free_pct": "storage-engine.max-used-pct",
    "memory_free_pct": "stop-writes-pct",
}
"""Figures of what is used, or free instead, and from what use on writes stop; percent."""


def _available(said: Mapping[str, str]) -> Iterator[Fullness]:
    for name, limit in _AVAILABLE.items():
        if name in said:
            left, least = int(said[name]), int(said.get(limit, 0))
            yield Fullness(
                (100 - left) / (100 - least), f"{name} {left}, writes stop below {least}"
            )


def _used(said: Mapping[str, str]) -> Iterator[Fullness]:
    for name, limit in _USED.items():
        if name in said:
            figure, most = int(said[name]), int(said.get(limit, 0)) or 100  # 0: no limit is set
            used = 100 - figure if "free" in name else figure
            yield Fullness(used / most, f"{name} {figure}, writes stop at {most} used")
