"""``lifelong bench twin``: what a request of TWIN's costs, on the shipped TWIN bundle.

Made-up users with L behaviors each, on the bundle's items as often as those are bought, in an LMDB
store. A request reads a user and searches for 3,000 candidates, also as if the network saw actions,
of which users take four at random, so that most items are met with several; and as if it saw dwell
times and ages besides, so that hardly two behaviors are alike. Beside it, what reading
would cost if a worker stored a compact record of each user instead: the keys of the last L items,
the newest ones, and the history, all in one value.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from extractor.state import InterestState, Layout
from extractor.system import Candidates, System, UserHistory
from extractor.systems import open_system
from infra.behaviors import BEHAVIOR, DEFAULT_ACTIONS, Source
from infra.segments import SEGMENT, encode_segment
from infra.store import Append, Behaviors, Group, InterestWrite, StoreOptions
from infra.stores.lmdb import LmdbStore
from lifelong.machine import machine
from lifelong.shipped import BUNDLES
from models.bundle import Bundle, StateTensor, TWINOffline
from models.bundle.combinations import Combinations

LENGTHS: Final = (1000, 10_000)
CANDIDATES: Final = 3000
SEED: Final = 20
START_MS: Final = 1_300_000_000_000
MINUTE_MS: Final = 60_000
ACTIONS: Final = 4
"""Actions that users take, where the network sees them."""

SOURCE: Final = Source(key=1, owner=1)
RECORD: Final = Layout({"items": StateTensor("uint64", ("l",))})
"""What a compact record would hold besides what every state does."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured."""

    rounds: int
    users: int
    reads: int
    """Of each user, a round."""


FULL: Final = Load(rounds=15, users=8, reads=10)
QUICK: Final = Load(rounds=5, users=4, reads=5)


def run(quick: bool) -> dict[str, Any]:
    """Measure; the bench's JSON object. Microseconds of processor time, medians over rounds."""
    load = QUICK if quick else FULL
    figures: dict[str, float] = {}
    for length in LENGTHS:
        figures |= {f"{name}_{length}": value for name, value in _measure(length, load).items()}
    return {
        "machine": machine(),
        "rounds": load.rounds,
        "peers": [],
        "results": [
            {"name": name.replace("_us_", ", L = ").replace("_", " "), "value": value, "unit": "µs"}
            for name, value in figures.items()
            if "bytes" not in name
        ],
        "ratios": {},
        "figures": figures,
    }


def _measure(length: int, load: Load) -> dict[str, float]:
    """Figures of users with ``length`` behaviors."""
    shipped = Bundle.load(BUNDLES["twin"], verify=False)
    manifest = msgspec.structs.replace(shipped.manifest, L=length)
    bundle = replace(shipped, manifest=manifest)
    system = open_system(bundle)
    system.warm()
    names = [f"user-{number}" for number in range(load.users)]
    with tempfile.TemporaryDirectory(prefix="lifelong-bench-") as directory:
        store = LmdbStore(Path(directory), StoreOptions(length=length))
        try:
            return _of_users(store, bundle, system, names, load)
        finally:
            store.close()


def _of_users(
    store: LmdbStore, bundle: Bundle, system: System, names: list[str], load: Load
) -> dict[str, float]:
    rng = np.random.default_rng(SEED)
    length = bundle.manifest.L
    users = {name: _behaviors(bundle, length, rng) for name in names}
    _append(store, users)
    records = _record(store, system, names)
    keys = _items(bundle, CANDIDATES, rng)
    candidates = Candidates(keys, bundle.rows(keys))

    def read(name: str) -> UserHistory:
        (sequence,) = store.sequences([name])
        assert sequence is not None
        return UserHistory(sequence.version, None, sequence.behaviors)

    def read_record(name: str) -> InterestState:
        (profile,) = store.profiles([name], system.digest)
        assert profile is not None
        assert profile.interests is not None
        return RECORD.decode(profile.interests)

    histories = {name: read(name) for name in names}
    acting = open_system(_seeing(bundle, ("action",), rng))
    seeing = open_system(_seeing(bundle, ("action", "dwell", "age"), rng))
    acted = {name: _acted(history, rng) for name, history in histories.items()}
    now_ms = START_MS + length * MINUTE_MS
    ways: dict[str, tuple[Callable[[str], object], int]] = {
        "read_sequence": (read, load.reads),
        "read_record": (read_record, load.reads),
        "feed": (lambda name: system.feed(histories[name], candidates, now_ms), 1),
        "feed_actions": (lambda name: acting.feed(acted[name], candidates, now_ms), 1),
        "feed_features": (lambda name: seeing.feed(acted[name], candidates, now_ms), 1),
    }
    for warmed in (acting, seeing):
        warmed.warm()
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(load.rounds):
        for way, (call, times) in ways.items():
            began = time.process_time()
            for name in names:
                for _ in range(times):
                    call(name)
            spent = time.process_time() - began
            rounds[way].append(1e6 * spent / (times * len(names)))
    segments = [
        len(encode_segment(of[at : at + SEGMENT].tobytes()))
        for of in users.values()
        for at in range(0, length - SEGMENT + 1, SEGMENT)
    ]
    return {
        **{f"{way}_us": round(median(spent), 1) for way, spent in rounds.items()},
        "sequence_bytes": round(sum(segments) / len(users)),
        "record_bytes": round(sum(map(len, records)) / len(records)),
    }


def _items(bundle: Bundle, n: int, rng: np.random.Generator) -> npt.NDArray[np.uint64]:
    """Item keys u64[n], each drawn as often as the item is bought."""
    slots = bundle.catalog.slots[bundle.catalog.slots["row"] > 0]
    shares = bundle.popularity[slots["row"]].astype(np.float64)
    return rng.choice(np.ascontiguousarray(slots["key"]), n, p=shares / shares.sum())


def _behaviors(bundle: Bundle, length: int, rng: np.random.Generator) -> Behaviors:
    behaviors = np.zeros(length, BEHAVIOR)
    behaviors["item"] = _items(bundle, length, rng)
    behaviors["time"] = START_MS + MINUTE_MS * np.arange(length)
    behaviors["action"] = DEFAULT_ACTIONS.codes["purchase"]
    return behaviors


def _seeing(bundle: Bundle, names: Sequence[str], rng: np.random.Generator) -> Bundle:
    """The bundle as if its network saw features of behaviors. Embeddings and biases are made up."""
    offline, seen = bundle.manifest.offline, Combinations.of(names, len(DEFAULT_ACTIONS.names))
    assert isinstance(offline, TWINOffline)
    biases = {
        name: rng.standard_normal((height, offline.heads)).astype(np.float16).tolist()
        for name, height in seen.heights.items()
    }
    manifest = msgspec.structs.replace(
        bundle.manifest,
        schema={**bundle.manifest.schema, "behavior": tuple(names)},
        actions=DEFAULT_ACTIONS.names,
        offline=offline.seeing(biases),
    )
    features = rng.standard_normal((seen.number, manifest.d)).astype(np.float32)
    return replace(bundle, manifest=manifest, features=features).declaring(DEFAULT_ACTIONS)


def _acted(history: UserHistory, rng: np.random.Generator) -> UserHistory:
    """The behaviors with drawn actions and dwell times."""
    behaviors = history.newer.copy()
    behaviors["action"] = rng.integers(1, ACTIONS + 1, len(behaviors))
    behaviors["dwell"] = 1000 * 2 ** rng.uniform(0, 10, len(behaviors))
    return history._replace(newer=behaviors)


def _append(store: LmdbStore, users: dict[str, Behaviors]) -> None:
    appends = [
        Append(
            name,
            behaviors.view(f"V{BEHAVIOR.itemsize}").tolist(),
            [0] * len(behaviors),
            list(range(len(behaviors))),
        )
        for name, behaviors in users.items()
    ]
    store.append([Group(SOURCE, appends)], START_MS)


def _record(store: LmdbStore, system: System, names: list[str]) -> list[bytes]:
    """Store a compact record of each user, as a worker would; the records."""
    records = []
    for name in names:
        (sequence,) = store.sequences([name])
        assert sequence is not None
        keys = np.ascontiguousarray(sequence.behaviors["item"])
        state = replace(system.extract(sequence), tensors={"items": keys})
        record = RECORD.encode(state)
        store.put_interests([InterestWrite(name, system.digest, state.version, record)], START_MS)
        records.append(record)
    return records
