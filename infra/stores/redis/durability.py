"""What a Redis could lose or throw away of what it has acknowledged, by its own configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

Configured = Callable[[str], Sequence[str | None]]
"""A value of each server's configuration; None: it does not tell."""


def cautions(configured: Configured) -> Iterator[str]:
    """What is to be said, one line each.

    >>> told = {"appendonly": "no", "maxmemory-policy": "noeviction"}
    >>> [line[:16] for line in cautions(lambda name: [told.get(name, "")])]
    ['appendonly is no']
    """
    appended = configured("appendonly")
    if None in appended:
        yield (
            "its configuration cannot be asked: see that appendonly is yes, appendfsync everysec or"
            " always, and maxmemory-policy noeviction"
        )
        return
    if "no" in appended:
        yield (
            "appendonly is no: a restart loses all since the last snapshot, of which workers feed"
            " again what is still in Kafka; set appendonly yes"
        )
    elif "no" in configured("appendfsync"):
        yield (
            "appendfsync is no: a crash of its machine loses what the system had not written, up to"
            " half a minute; set appendfsync everysec"
        )
    evicting = sorted({one for one in configured("maxmemory-policy") if one} - {"noeviction"})
    if evicting:
        yield (
            f"maxmemory-policy is {evicting[0]}: users are thrown away when memory is full; set"
            " maxmemory-policy noeviction"
        )
