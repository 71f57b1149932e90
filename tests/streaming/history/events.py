"""Events of some users, in files, and what a store must have of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from infra.behaviors import item_key
from infra.store import Store

T0 = 1_600_000_000_000

Row = dict[str, Any]


def rows(count: int = 300, users: int = 13, first: int = 0, *, ids: bool = True) -> list[Row]:
    """Event n is of user ``n % users`` at T0 + n."""
    numbers = range(first, first + count)
    events: list[Row] = [
        {"user_id": f"u{n % users}", "item_id": f"i{n}", "action": "click", "event_time": T0 + n}
        for n in numbers
    ]
    if ids:
        events = [row | {"event_id": f"e{n}"} for row, n in zip(events, numbers, strict=True)]
    return events


def write(path: Path, events: Sequence[Row]) -> Path:
    """The events as the file's extension says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in events))
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(pa.Table.from_pylist(list(events)), path)
    else:
        pq.write_table(pa.Table.from_pylist(list(events)), path)
    return path


def expected(events: Sequence[Row]) -> dict[str, list[tuple[int, int]]]:
    """(item, time) of each user, by time."""
    found: dict[str, list[tuple[int, int]]] = {}
    for row in sorted(events, key=lambda row: int(row["event_time"])):
        item = item_key(row["item_id"]), row["event_time"]
        found.setdefault(row["user_id"], []).append(item)
    return found


def stored(store: Store) -> dict[str, list[tuple[int, int]]]:
    """The same, as a store has it."""
    users = store.users(b"", 10_000).users
    return {
        user: [(item, time) for item, time, *_ in sequence.behaviors.tolist()]
        for user, sequence in zip(users, store.sequences(users), strict=True)
        if sequence is not None
    }
