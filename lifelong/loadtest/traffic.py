"""Who is ranked, what for, and which events are sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import numpy as np

from infra.arrays import F64
from infra.settings import EventSettings

PREFIX: Final = "loadtest-"
"""What the ids of made-up users begin with."""

LISTS: Final = 64
"""Lists of candidates that are drawn beforehand and asked for in turn."""

_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Traffic:
    """The users and items of a load test, drawn with a seed."""

    made_up: Sequence[str]
    """Users of whom events are sent."""
    ranked: Sequence[str]
    """Users who are ranked for."""
    items: Sequence[str]
    shares: F64
    """f64[items]: how often each is met."""
    rng: np.random.Generator

    def candidates(self, B: int) -> list[list[str]]:
        """Lists of B distinct items each, popular ones in most of them."""
        cumulated = np.cumsum(self.shares)
        lists = []
        for _ in range(LISTS):
            drawn = np.searchsorted(cumulated, self.rng.random(2 * B) * cumulated[-1])
            rows = np.unique(np.minimum(drawn, len(self.items) - 1))
            if len(rows) < B:  # few items have nearly all shares
                others = np.setdiff1d(np.arange(len(self.items)), rows)
                rows = np.append(rows, self.rng.choice(others, B - len(rows), replace=False))
            lists.append([self.items[row] for row in self.rng.permutation(rows)[:B].tolist()])
        return lists

    def of_events(self, count: int) -> list[tuple[str, str]]:
        """(user, item) of events: users alike, items by their shares."""
        users = self.rng.integers(len(self.made_up), size=count).tolist()
        rows = self.rng.choice(len(self.items), count, p=self.shares).tolist()
        return [
            (self.made_up[user], self.items[row]) for user, row in zip(users, rows, strict=True)
        ]


def made_up(count: int, of: str = PREFIX) -> list[str]:
    """Ids of users whom there are not."""
    return [f"{of}{number}" for number in range(count)]


def message(event: Mapping[str, Any], settings: EventSettings) -> dict[str, bytes]:
    """An event as it stands on the topic, in the shape that the settings expect there.

    Args:
        event: by our names; ``event_time`` in ms since epoch, ``action`` as it is declared.

    >>> message({"user_id": "u", "event_time": 1500}, EventSettings(fields={"user_id": "of.user"},
    ...     time_unit="s"))["value"]
    b'{"of":{"user":"u"},"event_time":1.5}'
    """
    shaped: dict[str, Any] = {}
    for name, value in event.items():
        theirs = settings.fields.get(name, name)
        assert isinstance(theirs, str)  # `EventSettings.single_names` has looked
        *outer, last = theirs.split(".")
        at = shaped
        for part in outer:
            at = at.setdefault(part, {})
        at[last] = _in_unit(value, settings.time_unit) if name == "event_time" else value
    return {"key": str(event["user_id"]).encode(), "value": _encode(shaped)}


def _in_unit(ms: int, unit: str) -> float | str:
    match unit:
        case "s":
            return ms / 1000
        case "us":
            return ms * 1000
        case "iso":
            return datetime.fromtimestamp(ms / 1000, UTC).isoformat()
        case _:
            return ms
