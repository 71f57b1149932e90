"""What comes with Lifelong: purchases of a real shop, and models trained on their first 80 %."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from infra.arrays import I32, I64
from infra.behaviors import BEHAVIOR, item_key
from infra.settings import EventSettings
from infra.store import Behaviors

# pyarrow (30 MB) is imported where a file is read: services only need to know where the bundle is.

_DATA: Final = Path(__file__).parent / "data"

BUNDLE: Final = _DATA / "bundle"
"""The model bundle that is used where no other is named."""

BUNDLES: Final[Mapping[str, Path]] = {
    "encode": BUNDLE,
    "sdim": _DATA / "sdim-bundle",
    "twin": _DATA / "twin-bundle",
}
"""The model bundles by system."""

PURCHASES: Final = _DATA / "online-retail-2.parquet"
ITEMS: Final = _DATA / "online-retail-2-items.parquet"

HISTORY_SHARE: Final = 0.8
"""Share of the purchases, by time, that is history; the rest is the live stream."""

MAPPING: Final = EventSettings(fields={"event_time": "time"}, constants={"action": "purchase"})
"""How the shipped purchases become behavior events: the columns have our names but for the time."""


@dataclass(frozen=True)
class Purchases:
    """All shipped purchases, by time. Users and items are codes into the lists of their ids."""

    users: list[str]
    items: list[str]
    user: I32
    """i32[n]: who bought, as codes of ``users``."""
    item: I32
    """i32[n]: what was bought, as codes of ``items``."""
    time_ms: I64
    """i64[n], ascending; to the minute, so that a basket's purchases share one time."""
    titles: dict[str, str]
    """Item id to its description."""

    def __len__(self) -> int:
        return len(self.user)

    @property
    def history_rows(self) -> int:
        """Purchases before this row are history, from it on they are live. It is the first of its
        minute, so that a time tells them apart.
        """
        last = self.time_ms[int(len(self) * HISTORY_SHARE) - 1]
        return int(np.searchsorted(self.time_ms, last, side="right"))

    def behaviors(self) -> Behaviors:
        """BEHAVIOR[n]: what a sequence keeps of each purchase."""
        packed = np.zeros(len(self), BEHAVIOR)
        keys = np.array([item_key(item) for item in self.items], np.uint64)
        packed["item"] = keys[self.item]
        packed["time"] = self.time_ms
        packed["action"] = MAPPING.declared_actions.codes["purchase"]
        return packed

    @classmethod
    def load(cls) -> Purchases:
        """Read the shipped files (2 MB)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(PURCHASES)
        users, user = _codes(table["user_id"])
        items, item = _codes(table["item_id"])
        titles = pq.read_table(ITEMS).to_pydict()
        return cls(
            users=users,
            items=items,
            user=user,
            item=item,
            time_ms=table["time"].cast(pa.int64()).to_numpy(),
            titles=dict(zip(titles["item_id"], titles["description"], strict=True)),
        )


def write_purchases(first: int, last: int, path: Path) -> None:
    """Write the shipped purchases' rows [first, last) to a Parquet file of their own."""
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(PURCHASES).slice(first, last - first), path)


def rows_by_user(user: I32) -> list[I64]:
    """Per user, by code, the rows of a table that are theirs, in its order."""
    order = np.argsort(user, kind="stable")
    return np.split(order, np.cumsum(np.bincount(user))[:-1])


def _codes(column: Any) -> tuple[list[str], I32]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int32)
