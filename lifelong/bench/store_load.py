"""What a store takes: appends, interest writes, and reads beside them, by how many users there are.

Events come in groups as large as a worker's under a backlog, of users who are all alike or of whom
few have most (`lifelong.bench.loads`). Then interests of some users are written, and profiles are
read one by one while another thread goes on appending: whoever ranks meets a store that is written.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from infra.arrays import I64
from infra.behaviors import BEHAVIOR, Source
from infra.settings import StoreSettings
from infra.store import Append, Group, InterestWrite, Store
from infra.stores import open_store
from infra.stores.lmdb import DATA
from lifelong.bench.loads import LoadName, draw_users

GROUP: Final = 32_000
"""Events appended at once."""
STATE_BYTES: Final = 2_500
"""Of an interest state as the shipped model makes it, about."""
DIGEST: Final = b"bench-of-a-store"
SOURCE: Final = Source(1, 1)
SEED: Final = 20
WRITTEN_TOGETHER: Final = 1_024
BEGIN_MS: Final = 1_700_000_000_000
RATE: Final = 50
"""Events a millisecond by the clock that a store is told: what it puts off by time (Aerospike trims
heads ten seconds after it sealed) it comes to, as it does under a stream."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured at once."""

    store: str
    users: int
    load: LoadName
    events: int
    interests: int
    reads: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.store} {self.users:,} {self.load}"

    @property
    def key(self) -> str:
        """For the figures of `--json`."""
        return f"{self.store}_{self.users}_{self.load}"


@dataclass(frozen=True, slots=True)
class Taken:
    """What a store took."""

    events_per_second: float
    cpu_us_per_event: float
    """Of the process: a store may have threads of its own."""
    bytes_written_per_event: float
    bytes_kept_per_user: float
    """0: of no file."""
    interests_per_second: float
    read_p50_ms: float
    read_p99_ms: float


def cells(quick: bool) -> list[Cell]:
    """What is measured: Aerospike where AEROSPIKE_HOST names a server (AEROSPIKE_PORT its port,
    AEROSPIKE_NAMESPACE the namespace), and Redis where REDIS_HOST does (REDIS_PORT its port). There
    each cell has sets, or keys, of its own, which stay.
    """
    stores = ["memory", "lmdb"]
    stores += [name for name in ("aerospike", "redis") if os.environ.get(f"{name.upper()}_HOST")]
    sizes = (5_878, 100_000) if quick else (5_878, 100_000, 1_000_000)
    loads: tuple[LoadName, ...] = ("uniform", "light")
    return [
        Cell(
            store,
            users,
            load,
            events=64_000 if quick else max(500_000, users),
            interests=1_024 if quick else 10_240,
            reads=1_000 if quick else 10_000,
        )
        for store in stores
        for users in sizes
        for load in loads
    ]


def measure(cell: Cell) -> Taken:
    """Measure one cell, in a store of its own."""
    with tempfile.TemporaryDirectory(prefix="lifelong-bench.") as directory:
        path = Path(directory) / "store"
        store = open_store(StoreSettings(url=_url(cell, path)))
        try:
            return _measure(store, cell, path / DATA)
        finally:
            store.close()


def _url(cell: Cell, path: Path) -> str:
    if cell.store == "aerospike":
        host = os.environ["AEROSPIKE_HOST"]
        port = os.environ.get("AEROSPIKE_PORT", "3000")
        namespace = os.environ.get("AEROSPIKE_NAMESPACE", "test")
        sets = f"bench{os.getpid()}-{cell.users}-{cell.load}-"
        return f"aerospike://{host}:{port}/{namespace}?set={sets}"
    if cell.store == "redis":
        host, port = os.environ["REDIS_HOST"], os.environ.get("REDIS_PORT", "6379")
        return f"redis://{host}:{port}?prefix=bench{os.getpid()}-{cell.users}-{cell.load}"
    return "memory://" if cell.store == "memory" else f"lmdb://{path}"


def _measure(store: Store, cell: Cell, file: Path) -> Taken:
    rng = np.random.default_rng(SEED)
    drawn = draw_users(cell.load, cell.users, cell.events, rng)
    groups = list(_groups(drawn, 0))
    written, began, cpu = written_bytes(), time.perf_counter(), time.process_time()
    for group in groups:
        store.append([group], _now(group), digest=DIGEST)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    written = written_bytes() - written
    kept = file.stat().st_size if file.exists() else 0
    who = [_name(user) for user in rng.choice(np.unique(drawn), cell.interests)]
    now_ms = _now(groups[-1])
    interests = _per_second(lambda: _write_interests(store, who, now_ms), len(who))
    reads = _read_beside_writes(store, cell, rng)
    return Taken(
        events_per_second=cell.events / seconds,
        cpu_us_per_event=cpu / cell.events * 1e6,
        bytes_written_per_event=written / cell.events,
        bytes_kept_per_user=kept / len(np.unique(drawn)),
        interests_per_second=interests,
        read_p50_ms=float(np.percentile(reads, 50)),
        read_p99_ms=float(np.percentile(reads, 99)),
    )


def _write_interests(store: Store, users: list[str], now_ms: int) -> None:
    payload = bytes(STATE_BYTES)
    for start in range(0, len(users), WRITTEN_TOGETHER):
        some = list(dict.fromkeys(users[start : start + WRITTEN_TOGETHER]))
        profiles = store.profiles(some, DIGEST)
        writes = [
            InterestWrite(user, DIGEST, profile.version, payload)
            for user, profile in zip(some, profiles, strict=True)
            if profile is not None
        ]
        store.put_interests(writes, now_ms)


def _read_beside_writes(store: Store, cell: Cell, rng: np.random.Generator) -> list[float]:
    """Times of reading a profile, in ms, while another thread appends."""
    drawn = draw_users(cell.load, cell.users, GROUP, rng)
    done = threading.Event()

    def append() -> None:
        offset = cell.events
        while not done.is_set():
            for group in _groups(drawn, offset):
                store.append([group], _now(group), digest=DIGEST)
            offset += len(drawn)

    thread = threading.Thread(target=append, name="append")
    thread.start()
    times = []
    try:
        for user in draw_users(cell.load, cell.users, cell.reads, rng):
            name, began = _name(user), time.perf_counter()
            store.profiles([name], DIGEST)
            times.append((time.perf_counter() - began) * 1000)
    finally:
        done.set()
        thread.join()
    return times


def _groups(drawn: I64, offset: int) -> Iterator[Group]:
    """The events in groups of one source, those of a user together."""
    behavior = np.zeros(1, BEHAVIOR)
    behavior["action"] = 1
    for start in range(0, len(drawn), GROUP):
        appends: dict[int, Append] = {}
        for place, user in enumerate(drawn[start : start + GROUP].tolist(), offset + start):
            behavior["item"], behavior["time"] = place * 0x9E3779B97F4A7C15 % 2**64, BEGIN_MS
            append = appends.get(user)
            if append is None:
                append = appends[user] = Append(_name(user), [], [], [])
            append.behaviors.append(behavior.tobytes())
            append.event_keys.append(place + 1)
            append.offsets.append(place)
        reached = offset + min(start + GROUP, len(drawn)) - 1
        yield Group(SOURCE, list(appends.values()), reached)


def _now(group: Group) -> int:
    """When a group is appended, ms since epoch."""
    return BEGIN_MS + (group.reached or 0) // RATE


def _name(user: int) -> str:
    return f"user-{user}"


def _per_second(call: Callable[[], Any], count: int) -> float:
    began = time.perf_counter()
    call()
    return count / (time.perf_counter() - began)


def written_bytes() -> int:
    """Bytes that this process has handed to the system for writing so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "wchar":
            return int(value)
    raise OSError("/proc/self/io has no wchar")
