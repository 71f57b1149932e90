"""``lifelong bench store``: what stores take (`lifelong.bench.store_load`), and what a user costs.

Heavy users are real ones, the shipped purchases of those with a thousand and more, each in many
copies: their events come in small pieces among everybody else's, and each sealed segment is
followed by the interest state of the shipped model. Light users have ten behaviors each. Bytes
written are those that this process handed to the system (``/proc/self/io``), the pages of LMDB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from extractor.systems import open_system
from infra.arrays import I64
from infra.behaviors import BEHAVIOR, Source
from infra.records import sealed_part
from infra.segments import SEGMENT
from infra.store import Append, Behaviors, Group, InterestWrite
from infra.stores.lmdb import DATA, LmdbStore
from infra.stores.lmdb_files import compact
from lifelong.bench.store_load import cells, measure, written_bytes
from lifelong.machine import machine
from lifelong.shipped import BUNDLE, Purchases, rows_by_user
from models.bundle import Bundle

SEED: Final = 20
HEAVY: Final = 1000
LIGHT: Final = 10
PIECE: Final = 20
"""Events of a heavy user that come together."""
USERS_TOGETHER: Final = 200
"""Users of one transaction: some 4,000 events, as the worker takes them from a partition."""

SOURCE: Final = Source(1, 1)


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured."""

    copies: int
    """Of each heavy user."""
    light: int


COLUMNS: Final = {
    "CPU us": "cpu_us_per_event",
    "written": "bytes_written_per_event",
    "kept": "bytes_kept_per_user",
    "states/s": "interests_per_second",
    "p50 ms": "read_p50_ms",
    "p99 ms": "read_p99_ms",
}
"""Headings, and what of `Taken` stands under them."""

FULL: Final = Load(copies=60, light=200_000)
QUICK: Final = Load(copies=10, light=20_000)


def run(quick: bool) -> dict[str, Any]:
    """Measure; the bench's JSON object."""
    load = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="lifelong-bench.") as directory:
        heavy = measure_heavy(Path(directory) / "heavy", load.copies)
        light = measure_light(Path(directory) / "light", load.light)
    taken = {cell: measure(cell) for cell in cells(quick)}
    figures = {**heavy, **light}
    for cell, one in taken.items():
        figures |= {f"{cell.key}_{name}": round(value, 3) for name, value in asdict(one).items()}
    bytes_of = {
        "user of 1,000": figures["bytes_per_user_1000"],
        "user of 1,000, compacted": figures["bytes_per_user_1000_compacted"],
        "of that its interests": figures["bytes_of_state_1000"],
        "user of 10": figures["bytes_per_user_10"],
        "written an event, heavy users": figures["written_per_event_1000"],
        "written an event, light users": figures["written_per_event_10"],
    }
    return {
        "machine": machine(),
        "results": [
            {"name": cell.name, "value": round(one.events_per_second, 1), "unit": "events/s"}
            for cell, one in taken.items()
        ],
        "ratios": {},
        "peers": [],
        "tables": [
            {
                "title": "CPU and bytes written an event, bytes kept a user, interests, reads",
                "columns": [*COLUMNS],
                "rows": {
                    cell.name: [getattr(one, name) for name in COLUMNS.values()]
                    for cell, one in taken.items()
                },
            },
            {
                "title": "bytes in an LMDB file",
                "columns": ["bytes"],
                "rows": {name: [value] for name, value in bytes_of.items()},
            },
        ],
        "figures": figures,
    }


def measure_heavy(path: Path, copies: int) -> dict[str, float]:
    """Users of a thousand purchases with their interests, fed piece by piece."""
    purchases = Purchases.load()
    behaviors = purchases.behaviors()
    users_rows = rows_by_user(purchases.user)
    people = [behaviors[rows[:HEAVY]] for rows in users_rows if len(rows) >= HEAVY]
    bundle = Bundle.load(BUNDLE, verify=False)
    system = open_system(bundle)
    rng = np.random.default_rng(SEED)
    users = [(who, f"{who}-{copy}") for who in range(len(people)) for copy in range(copies)]
    made: dict[int, InterestWrite] = {}
    written = 0
    with _store(path) as store:
        for start in range(0, HEAVY, PIECE):
            before = written_bytes()
            for some in _shuffled(users, rng):
                appends = [
                    _append(user, people[who][start : start + PIECE], start) for who, user in some
                ]
                store.append([Group(SOURCE, appends)], 1, digest=bundle.digest)
            written += written_bytes() - before
            if (start + PIECE) // SEGMENT == start // SEGMENT:
                continue
            for who in range(len(people)):
                (sequence,) = store.sequences([f"{who}-0"])
                assert sequence is not None
                state = system.extract(sealed_part(sequence))
                record = system.layout.encode(state)
                made[who] = InterestWrite("", bundle.digest, state.version, record)
            before = written_bytes()
            for some in _shuffled(users, rng):
                writes = [made[who] for who, _ in some]
                store.put_interests(
                    [
                        InterestWrite(user, one.digest, one.version, one.payload)
                        for one, (_, user) in zip(writes, some, strict=True)
                    ],
                    2,
                )
            written += written_bytes() - before
    size = (path / DATA).stat().st_size
    return {
        "users_1000": len(users),
        "bytes_per_user_1000": round(size / len(users)),
        "bytes_per_user_1000_compacted": round(compact(path).bytes_after / len(users)),
        "bytes_of_state_1000": round(float(np.mean([len(one.payload) for one in made.values()]))),
        "written_per_event_1000": round(written / len(users) / HEAVY),
    }


def measure_light(path: Path, number: int) -> dict[str, float]:
    """Users of ten behaviors, whose events come one by one among everybody else's."""
    rng = np.random.default_rng(SEED)
    behaviors = np.zeros(number, BEHAVIOR)
    behaviors["action"] = 1
    users = [(place, f"user-{place:07}") for place in range(number)]
    before = written_bytes()
    with _store(path) as store:
        for offset in range(LIGHT):
            behaviors["item"] = rng.integers(0, 2**63, number)
            behaviors["time"] = 1_700_000_000_000 + offset
            for some in _shuffled(users, rng, SEGMENT * 1000 // 16):
                appends = [_append(user, behaviors[at : at + 1], offset) for at, user in some]
                store.append([Group(SOURCE, appends)], 1)
    written = written_bytes() - before
    size = (path / DATA).stat().st_size
    return {
        "users_10": number,
        "bytes_per_user_10": round(size / number),
        "written_per_event_10": round(written / number / LIGHT),
    }


@contextmanager
def _store(path: Path) -> Iterator[LmdbStore]:
    # Without waiting for the disk: what is written is the same.
    store = LmdbStore(path, sync=False)
    try:
        yield store
    finally:
        store.close()


def _append(user: str, behaviors: Behaviors, offset: int) -> Append:
    """A user's events from an offset on, each with an id of its own."""
    offsets = list(range(offset, offset + len(behaviors)))
    packed = behaviors.view(f"V{BEHAVIOR.itemsize}").tolist()
    return Append(user, packed, [1 + one for one in offsets], offsets)


def _shuffled(
    users: Sequence[tuple[int, str]], rng: np.random.Generator, together: int = USERS_TOGETHER
) -> Iterator[list[tuple[int, str]]]:
    """All users in another order, in parts of one transaction."""
    order: I64 = rng.permutation(len(users))
    for start in range(0, len(order), together):
        yield [users[place] for place in order[start : start + together]]
