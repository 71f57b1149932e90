"""What ``lifelong bench stream`` puts on its topic: whose events, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from infra.arrays import I64
from infra.errors import LifelongError
from lifelong.shipped import PURCHASES, Purchases, write_purchases

LoadName = Literal["purchases", "light", "uniform"]

ITEMS: Final = 100_000
SEED: Final = 20
BEGIN_MS: Final = 1_700_000_000_000
EXPONENT: Final = 0.8
"""Of a light load's users, the one of rank r has a weight of 1 / r^0.8."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load, and how many of its events each system handles a round.

    Quix Streams gets as many as ours where users are heavy, since what it costs grows with the
    lists; the slower peers get fewer, hence shorter lists, which is to their advantage.
    """

    users: int
    """0: those of the shipped purchases."""
    rounds: int
    ours: int
    raw: int
    table: int
    quix: int


LOADS: Final[dict[tuple[LoadName, bool], Load]] = {
    ("purchases", False): Load(0, 5, ours=600_000, raw=100_000, table=30_000, quix=600_000),
    ("purchases", True): Load(0, 1, ours=300_000, raw=30_000, table=5_000, quix=300_000),
    ("light", False): Load(500_000, 1, ours=3_000_000, raw=100_000, table=30_000, quix=300_000),
    ("light", True): Load(500_000, 1, ours=400_000, raw=30_000, table=5_000, quix=100_000),
    ("uniform", False): Load(1_000_000, 1, ours=3_000_000, raw=100_000, table=30_000, quix=300_000),
    ("uniform", True): Load(1_000_000, 1, ours=400_000, raw=30_000, table=5_000, quix=100_000),
}
"""By name, and whether it is to be quick."""


def write_load(name: LoadName, users: int, events: int, path: Path) -> int:
    """Write a load's events to a Parquet file, in the columns of the shipped purchases.

    Returns:
        How many users they are of.

    Raises:
        LifelongError: there are not so many.
    """
    if name == "purchases":
        purchases = Purchases.load()
        if events > len(purchases):
            raise LifelongError(f"{PURCHASES} has {len(purchases)} purchases, not {events}")
        write_purchases(0, events, path)
        return len(np.unique(purchases.user[:events]))
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rng = np.random.default_rng(SEED)
    drawn = draw_users(name, users, events, rng)
    items = rng.integers(0, ITEMS, events)
    table = pa.table(
        {
            "user_id": pc.binary_join_element_wise("user-", pa.array(drawn).cast(pa.string()), ""),
            "item_id": pc.binary_join_element_wise("item-", pa.array(items).cast(pa.string()), ""),
            "time": pa.array(BEGIN_MS + np.arange(events)).cast(pa.timestamp("ms", "UTC")),
        }
    )
    pq.write_table(table, path)
    return len(np.unique(drawn))


def draw_users(name: LoadName, users: int, events: int, rng: np.random.Generator) -> I64:
    """i64[events]: whose each is."""
    if name == "uniform":
        return rng.integers(0, users, events)
    weights = np.arange(1, users + 1) ** -EXPONENT
    cumulated = np.cumsum(weights)
    drawn: I64 = np.searchsorted(cumulated, rng.random(events) * cumulated[-1])
    return drawn
