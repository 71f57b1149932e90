"""Taobao's UserBehavior: a hundred million views, carts, favorites and purchases.

Published as ``UserBehavior.csv`` without a header: user, item, category, behavior (pv, buy, cart,
fav), time in seconds. A parquet sample has the columns user_id, item_id, category_id, behavior and
ts. Behaviors are named as the service names its actions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa

from models.data.interactions import Columns, Interactions
from models.readers import tables
from models.readers.tables import Origin

ORIGIN: Final = Origin(
    "Taobao UserBehavior",
    "https://tianchi.aliyun.com/dataset/649",
    "CC BY-NC-SA 4.0; needs an account",
)
FILES: Final = ("UserBehavior.csv", "UserBehavior.csv.gz", "events.parquet")
ACTIONS: Final = {"pv": "view", "buy": "purchase", "cart": "cart", "fav": "favorite"}
PERIOD: Final = (1_511_539_200, 1_512_316_800)
"""2017-11-25 to 2017-12-03 in China's time, which the publishers name. Some 0.06 % of the rows
stand outside, as far off as 1902 and 2037: broken clocks."""

_COLUMNS: Final = ("user_id", "item_id", "category_id", "behavior", "ts")


def read(path: Path, *, share: float = 1.0, period_only: bool = True) -> Interactions:
    """Read behaviors with their action; ``category`` is an attribute of items.

    Args:
        path: the directory, or the file in it.
        share: the first part of the behaviors to keep, by time.
        period_only: leave out behaviors outside of `PERIOD`.

    Raises:
        DataError: the file is missing or malformed.
    """
    file = tables.find(path, FILES, ORIGIN)
    if file.suffix == ".parquet":
        table = tables.read_parquet(file, _COLUMNS)
    else:
        # 32 bits hold every id, and a hundred million rows of them are 1.2 GB instead of 2.4.
        types = dict.fromkeys(_COLUMNS, pa.int32())
        types |= {"behavior": pa.dictionary(pa.int32(), pa.string()), "ts": pa.int64()}
        table = tables.read_csv(file, _COLUMNS, names=_COLUMNS, types=types, quoted=False)
    times = tables.seconds(table["ts"], f"{file}: timestamp", "s")
    if period_only:
        inside = (times >= PERIOD[0]) & (times < PERIOD[1])
        if not inside.all():
            table, times = table.filter(pa.array(inside)), times[inside]
    return Columns(
        users=table["user_id"],
        items=table["item_id"],
        times=times,
        actions=tables.renamed(table["behavior"], lambda name: ACTIONS.get(name, name)),
        action_names=tuple(ACTIONS.values()),
        item_attributes={"category": table["category_id"]},
    ).interactions(str(file), share=share)
