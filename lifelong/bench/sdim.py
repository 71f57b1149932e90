"""``lifelong bench sdim``: what SDIM's buckets cost the services, on the shipped SDIM bundle.

Users are the shipped purchases of those with a thousand and more. Their buckets are summed anew
from the last L behaviors, as it is done; and, beside it, brought up to date by one sealed segment
that came and one that left, as it could be done if the store still had what left. A whole
extraction also counts items, and a whole request also copies the state and adds newer behaviors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np

from extractor.system import Candidates, UserHistory
from extractor.systems import open_system
from extractor.systems.sdim import SIGNATURES, buckets_of
from infra.segments import SEGMENT
from infra.store import StoredSequence, Version
from lifelong.machine import machine
from lifelong.shipped import BUNDLES, Purchases, rows_by_user
from models.bundle import Bundle, SDIMOffline
from models.kernels.buckets import fill_buckets, read_buckets

CANDIDATES: Final = 3000
NEWER: Final = 32
"""Behaviors newer than the state, half of a segment: as many as there are on average."""

SEED: Final = 20

WHOLE: Final = "extract, whole"
ANEW: Final = "extract, buckets anew"
UP_TO_DATE: Final = "extract, buckets brought up to date"


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured."""

    rounds: int
    passes: int
    """Calls a user and round."""


FULL: Final = Load(rounds=25, passes=20)
QUICK: Final = Load(rounds=7, passes=5)


def run(quick: bool) -> dict[str, Any]:
    """Measure; the bench's JSON object. Microseconds of processor time, medians over rounds."""
    load = QUICK if quick else FULL
    bundle = Bundle.load(BUNDLES["sdim"], verify=False)
    system = open_system(bundle)
    system.warm()
    ways = [ways_of(bundle, sequence) for sequence in sequences(bundle.manifest.L)]
    rounds: dict[str, list[float]] = {name: [] for name in ways[0]}
    for _ in range(load.rounds):
        for name, times in rounds.items():
            began = time.process_time()
            for user in ways:
                for _ in range(load.passes):
                    user[name]()
            spent = time.process_time() - began
            times.append(1e6 * spent / (load.passes * len(ways)))
    figures = {name: round(median(times), 1) for name, times in rounds.items()}
    state = system.extract(sequences(bundle.manifest.L)[0])
    tensors = sum(tensor.nbytes for tensor in state.tensors.values())
    return {
        "machine": machine(),
        "rounds": load.rounds,
        "peers": [],
        "results": [
            {"name": name, "value": value, "unit": "µs"} for name, value in figures.items()
        ],
        "ratios": {},
        "figures": {
            **{name.replace(", ", "_").replace(" ", "_"): value for name, value in figures.items()},
            "buckets_bytes": tensors,
            "state_bytes": len(system.layout.encode(state)),
        },
    }


def sequences(L: int) -> list[StoredSequence]:
    """The last L behaviors of whoever has as many."""
    purchases = Purchases.load()
    behaviors = purchases.behaviors()
    kept = [behaviors[rows[-L:]] for rows in rows_by_user(purchases.user) if len(rows) >= L]
    return [StoredSequence(Version(1, len(rows)), rows, {}) for rows in kept]


def ways_of(bundle: Bundle, sequence: StoredSequence) -> dict[str, Callable[[], object]]:
    """What is measured of one user, by name."""
    system, offline = open_system(bundle), bundle.manifest.offline
    assert isinstance(offline, SDIMOffline)
    by_length = offline.normalization == "l2"
    signatures, embeddings = bundle.tables[SIGNATURES], bundle.embeddings
    state = system.extract(sequence)
    of = buckets_of(state)
    sums, sizes = of.buckets.astype(np.float32), of.sizes.copy()
    rows = bundle.rows(np.ascontiguousarray(sequence.behaviors["item"]))
    items, counts = np.unique(rows, return_counts=True)
    moved = rows[: 2 * SEGMENT]  # what came and what left
    weights, ones = counts.astype(np.uint32), np.ones(len(moved), np.uint32)

    def sum_anew() -> None:
        buckets = np.zeros_like(sums), np.zeros_like(sizes)
        fill_buckets(items, weights, signatures, embeddings, *buckets)

    def bring_up_to_date() -> None:
        fill_buckets(moved, ones, signatures, embeddings, sums.copy(), sizes.copy())

    rng = np.random.default_rng(SEED)
    known = bundle.catalog.slots["key"][bundle.catalog.slots["row"] > 0]
    keys = rng.choice(known, CANDIDATES)
    candidates = Candidates(keys, bundle.rows(keys))
    version = Version(1, len(rows) + NEWER)
    history = UserHistory(version, state, sequence.behaviors[:NEWER])
    now_ms = int(sequence.behaviors["time"].max())
    return {
        WHOLE: lambda: system.extract(sequence),
        ANEW: sum_anew,
        UP_TO_DATE: bring_up_to_date,
        "request, whole feed": lambda: system.feed(history, candidates, now_ms),
        "request, buckets read": lambda: read_buckets(
            sums, sizes, by_length, signatures, candidates.rows
        ),
    }
