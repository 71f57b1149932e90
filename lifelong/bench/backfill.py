"""``lifelong bench backfill``: a job from Parquet into LMDB, beside reading the same file.

Events are made: as many of each user, on average, of 200,000 items, some more often than others,
with ids, ordered by time over a quarter of a year. Plain reading is pyarrow's, in batches as the
job takes them, of the columns that it reads; it is what nobody can be faster than.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from infra.behaviors import DEFAULT_ACTIONS
from infra.stores.lmdb import LmdbStore
from lifelong.bench.store_load import written_bytes
from lifelong.machine import machine
from streaming.history.inputs import FileInput
from streaming.history.job import Job, JobProgress

SEED: Final = 21
ITEMS: Final = 200_000
BEGIN_MS: Final = 1_600_000_000_000
SPAN_MS: Final = 90 * 86_400_000
WARM: Final = 1000
PARTITIONS: Final = 8


@dataclass(frozen=True, slots=True)
class Users:
    """Users of so many events, on average."""

    name: str
    key: str
    events: int


KINDS: Final = (
    Users("users of 1,000 events", "heavy", 1000),
    Users("users of 100 events", "medium", 100),
    Users("users of 10 events", "light", 10),
)


class Took(NamedTuple):
    """What something took."""

    events_per_second: float
    events_per_cpu_second: float


def run(quick: bool) -> dict[str, Any]:
    """Measure; the bench's JSON object."""
    events = 500_000 if quick else 5_000_000
    rows: dict[str, list[float]] = {}
    results: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="lifelong-bench.") as directory:
        root = Path(directory)
        measure(root / "warm", WARM, KINDS[0])  # kernels are compiled
        for kind in KINDS:
            read, merged, written = measure(root / kind.key, events, kind)
            ratio = merged.events_per_second / read.events_per_second
            rows[kind.name] = [*map(round, merged), *map(round, read), round(written)]
            results.append(
                {"name": kind.name, "value": round(merged.events_per_second), "unit": "events/s"}
            )
            ratios[f"{kind.name}, beside reading alone"] = round(ratio, 3)
            figures |= {
                f"{kind.key}_events_per_second": round(merged.events_per_second),
                f"{kind.key}_events_per_cpu_second": round(merged.events_per_cpu_second),
                f"{kind.key}_read_events_per_second": round(read.events_per_second),
                f"{kind.key}_bytes_written_per_event": round(written, 1),
            }
    return {
        "machine": machine(),
        "results": results,
        "ratios": ratios,
        "peers": [],
        "tables": [
            {
                "title": "a job, and reading its file alone; bytes written an event",
                "columns": ["events/s", "per CPU s", "reading/s", "per CPU s", "bytes"],
                "rows": rows,
            }
        ],
        "figures": figures,
    }


def measure(folder: Path, events: int, kind: Users) -> tuple[Took, Took, float]:
    """Reading alone, the job, and the bytes that it wrote an event."""
    folder.mkdir()
    file = folder / "events.parquet"
    make(file, events, max(1, events // kind.events))
    read = _timed(events, lambda: _read(file))
    store = LmdbStore(folder / "store")
    before = written_bytes()

    def merge() -> JobProgress:
        return Job([FileInput(file)], store, "behaviors", PARTITIONS, folder / "work").run()

    merged = _timed(events, merge)
    written = (written_bytes() - before) / events
    store.close()
    return read, merged, written


def make(file: Path, events: int, users: int) -> None:
    """Write a file of events."""
    rng = np.random.default_rng(SEED)
    times = BEGIN_MS + np.sort(rng.integers(0, SPAN_MS, events))
    table = pa.table(
        {
            "event_id": pa.array(np.char.add("e", np.arange(events).astype(str))),
            "user_id": pa.array(np.char.add("user-", rng.integers(0, users, events).astype(str))),
            "item_id": pa.array(np.char.add("item-", (rng.zipf(1.2, events) % ITEMS).astype(str))),
            "action": np.array(DEFAULT_ACTIONS.names[:4])[rng.integers(0, 4, events)],
            "event_time": times,
        }
    )
    pyarrow.parquet.write_table(table, file, row_group_size=1 << 20)


def _read(file: Path) -> None:
    with pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as parquet:
        for _ in parquet.iter_batches(131_072):
            pass


def _timed(events: int, work: Callable[[], object]) -> Took:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(
        events / (time.perf_counter() - wall), events / max(1e-9, time.process_time() - cpu)
    )
