"""``lifelong bench sampling``: what measuring live requests costs (`scorer.sampling`).

Untrained networks of usual sizes, made-up users in an LMDB store. First the processor time of one
sample, as the scorer's thread takes it: the sequence read once more where a state stood for it, and
the system's measures of 64 of 3,000 candidates, RI among them. Then rankings one after another as a
scorer makes them, with nobody, one in a thousand and everybody drawn, in turns: what the thread
takes from them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry

from extractor.system import Candidates, System, UserHistory
from extractor.systems import open_system
from infra.arrays import U64
from infra.behaviors import BEHAVIOR, Source
from infra.metrics import ScorerMetrics
from infra.store import (
    Append,
    Behaviors,
    Group,
    InterestWrite,
    Store,
    StoredSequence,
    StoreOptions,
)
from infra.stores.lmdb import LmdbStore
from lifelong.bench.requests import SERVED, START_MS, Shop, User
from lifelong.machine import machine
from models.bundle import Bundle, Reference
from models.devices import one_thread
from models.network import NetworkConfig
from scorer.ranking import Ranker
from scorer.sampling import Sample, Sampler, behaviors_of, some_of

LENGTHS: Final = (1000, 10_000)
B: Final = 3000
ITEMS: Final = 50_000
NETWORK: Final = NetworkConfig(d=32, hidden=(200, 80))
SHARES: Final = (0.0, 0.001, 1.0)
SOURCE: Final = Source(key=1, owner=1)
USER: Final = "somebody"


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured."""

    samples: int
    rounds: int
    requests: int
    """Of a round and share."""


FULL: Final = Load(samples=40, rounds=5, requests=2000)
QUICK: Final = Load(samples=10, rounds=3, requests=300)


def run(quick: bool) -> dict[str, Any]:
    """Measure; the bench's JSON object."""
    load = QUICK if quick else FULL
    figures: dict[str, float] = {}
    with one_thread():
        shop = Shop(ITEMS, NETWORK)
        for L in LENGTHS:
            for name in SERVED:
                figures[f"{name.lower()}_sample_ms_{L}"] = sample_ms(shop, name, L, load.samples)
        figures |= rankings(shop, load)
    return {
        "machine": machine(),
        "rounds": load.rounds,
        "peers": [],
        "results": [
            {"name": name.replace("_", " "), "value": value, "unit": "ms"}
            for name, value in figures.items()
        ],
        "ratios": {},
        "figures": figures,
    }


def sample_ms(shop: Shop, name: str, L: int, samples: int) -> float:
    """Milliseconds of processor time that the median sample takes."""
    user = shop.user(L)
    bundle = measured_bundle(shop, name, L)
    with served(bundle, user) as (store, system):
        keys, history = shop.candidates(B), history_of(store, system)
        candidates = some_of(Candidates(keys, bundle.rows(keys)))
        sample = Sample(USER, history, candidates, user.now_ms, 0.0)
        taken = []
        for _ in range(samples):
            began = time.thread_time()
            behaviors = behaviors_of(sample, store)
            assert behaviors is not None
            system.measure(history, behaviors, candidates, user.now_ms)
            taken.append(1000 * (time.thread_time() - began))
    return round(median(taken), 2)


def rankings(shop: Shop, load: Load) -> dict[str, float]:
    """p50 and p99 of ENCODE's rankings, wall time in milliseconds, by the share that is drawn."""
    (L, *_), taken = LENGTHS, {share: np.zeros((load.rounds, load.requests)) for share in SHARES}
    bundle, user, keys = measured_bundle(shop, "ENCODE", L), shop.user(L), shop.candidates(B)
    with served(bundle, user) as (store, system):
        for turn in range(load.rounds):
            for share, times in taken.items():
                times[turn] = ranked(store, bundle, system, keys, share, load.requests)
    figures = {}
    for share, times in taken.items():
        for q in (50, 99):
            of_rounds = np.percentile(times, q, axis=1)
            figures[f"rank_p{q}_ms_share_{share:g}"] = round(1000 * float(np.median(of_rounds)), 3)
    return figures


def ranked(
    store: Store, bundle: Bundle, system: System, keys: U64, share: float, requests: int
) -> list[float]:
    """Seconds that each ranking took."""
    metrics = ScorerMetrics(CollectorRegistry())
    sampler = Sampler(store, system, metrics, share)
    ranker = Ranker(store, bundle, system, metrics, sampler=sampler if share else None)
    sampler.start()
    try:
        taken = []
        for _ in range(requests):
            began = time.perf_counter()
            ranker.rank_keys(USER, keys)
            taken.append(time.perf_counter() - began)
    finally:
        sampler.close()
    return taken


def measured_bundle(shop: Shop, name: str, L: int) -> Bundle:
    """A bundle for sequences of another length, with a reference: any attention costs the same."""
    bundle = shop.bundles[name]
    manifest = msgspec.structs.replace(bundle.manifest, L=L)
    reference = Reference(bundle.embeddings, bundle.embeddings, None)
    return replace(bundle, manifest=manifest, reference=reference)


@contextmanager
def served(bundle: Bundle, user: User) -> Iterator[tuple[Store, System]]:
    """A store with the user, and their state where the system keeps one; and the system, warm."""
    system = open_system(bundle)
    system.warm()
    covered = user.covered.version.count
    with tempfile.TemporaryDirectory(prefix="lifelong-bench-") as directory:
        store = LmdbStore(Path(directory), StoreOptions(length=len(user.behaviors)))
        try:
            append(store, user.behaviors[:covered], 0)
            if system.keeps_state:
                state = system.extract(read(store))
                record = system.layout.encode(state)
                write = InterestWrite(USER, system.digest, state.version, record)
                store.put_interests([write], START_MS)
            append(store, user.behaviors[covered:], covered)
            yield store, system
        finally:
            store.close()


def append(store: Store, behaviors: Behaviors, offset: int) -> None:
    """Append a user's next behaviors."""
    packed = behaviors.view(f"V{BEHAVIOR.itemsize}").tolist()
    offsets = list(range(offset, offset + len(packed)))
    store.append([Group(SOURCE, [Append(USER, packed, [0] * len(packed), offsets)])], START_MS)


def read(store: Store) -> StoredSequence:
    """The user's whole sequence."""
    (sequence,) = store.sequences([USER])
    assert sequence is not None
    return sequence


def history_of(store: Store, system: System) -> UserHistory:
    """What a ranking of the user is fed."""
    sequence = read(store)
    if not system.keeps_state:
        return UserHistory(sequence.version, None, sequence.behaviors)
    (profile,) = store.profiles([USER], system.digest)
    assert profile is not None
    assert profile.interests is not None
    state = system.layout.decode(profile.interests)
    newer = sequence.version.count - state.count
    return UserHistory(sequence.version, state, sequence.behaviors[-newer:])
