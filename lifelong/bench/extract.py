"""``lifelong bench extract``: a user's thousand behaviors into thirty clusters, ours and peers; and
the worker's whole way with them, from store to store.

All systems cluster the same users at ENCODE's sizes, one core each, and alternate in rounds. Peers
are handed the start that ours has to find, and are not asked for assignments where their interface
leaves them out: whatever is uneven is in their favor. Half of the users have interests (grouped
behaviors), the other half have none (a Gaussian), which takes every algorithm longest.

Whole states, of ENCODE and of SDIM, are those of the shipped purchases' users with a thousand and
more, by the shipped bundles.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, Final, cast

import numpy as np
from prometheus_client import CollectorRegistry

from extractor.system import System
from extractor.systems import open_system
from infra.arrays import F32
from infra.behaviors import BEHAVIOR, DEFAULT_ACTIONS, Source, item_key
from infra.metrics import WorkerMetrics
from infra.segments import SEGMENT
from infra.settings import WorkerSettings
from infra.store import Append, Group, StoreOptions, wall_clock_ms
from infra.stores.lmdb import LmdbStore
from lifelong.bench import sdim
from lifelong.bench.report import compose
from lifelong.shipped import BUNDLE, BUNDLES
from models.bundle import Bundle
from models.kernels.clustering import cluster, farthest_first
from streaming.schedule import Reclusterer

L: Final = 1000
m: Final = 4
K: Final = 30
T: Final = 15

OURS: Final = "lifelong"
SEED: Final = 20
NEWER: Final = SEGMENT
"""Behaviors that came since the last clustering, in the warm rows."""

STATES: Final = {
    "SDIM, a state": sdim.WHOLE,
    "SDIM, buckets": sdim.ANEW,
    "SDIM, up to date": sdim.UP_TO_DATE,
}
"""SDIM's rows, and which way of `lifelong.bench.sdim` each is: a whole state, its buckets alone,
and those brought up to date by a segment that came and one that left."""
ENCODE: Final = "ENCODE, a state"

STORE: Final = "store to store"
STORE_WARM: Final = "store to store, warm start"

_SOURCE: Final = Source(key=1, owner=7)


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured."""

    rounds: int
    users: int
    passes: int
    """How often ours goes over the users in a round: a round should outlast the clock's noise."""
    stored: int
    """Users in the store."""


FULL: Final = Load(rounds=25, users=20, passes=20, stored=256)
QUICK: Final = Load(rounds=7, users=10, passes=20, stored=64)


@dataclass(frozen=True, slots=True)
class User:
    """One user as the clustering sees them."""

    h: F32
    """f32[L,m], unit length."""
    start: F32
    """f32[K,m]: the farthest-first start."""
    old: F32
    """f32[K,m]: centers from before the last NEWER behaviors."""


def run(quick: bool) -> dict[str, Any]:
    """Measure; the bench's JSON object. "tightness" holds, per peer, the sum of distances to its
    centers over that to ours (above 1: ours are tighter).

    Raises:
        ModuleNotFoundError: a peer is not installed (extra `bench`).
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    load = QUICK if quick else FULL
    users = [_user(number) for number in range(load.users)]
    peers = {"scikit-learn": _scikit_learn(), "faiss": _faiss(), "torch": _torch()}
    ours: dict[str, Callable[[User], object]] = {
        OURS: lambda user: cluster(user.h, K, T),
        "lifelong, warm start": lambda user: cluster(user.h, K, T, start=user.old),
    }
    states, bytes_of = _states()
    names = (*ours, *states, STORE, STORE_WARM, *peers)
    rounds: dict[str, list[float]] = {name: [] for name in names}
    with (
        threadpool_limits(1),  # scikit-learn's and faiss's OpenMP, numpy's BLAS
        tempfile.TemporaryDirectory(prefix="lifelong-bench-") as directory,
        closing(_StoreToStore(Path(directory) / "store", load.stored)) as stored,
    ):
        for system in (*ours.values(), *peers.values()):
            _users_per_second(system, users[:2], 1)  # compiled, loaded, in the cache
        stored.cold()
        stored.warm()
        for _ in range(load.rounds):
            for name, system in ours.items():
                rounds[name].append(_users_per_second(system, users, load.passes))
            for name, calls in states.items():
                rounds[name].append(_calls_per_second(calls, load.passes))
            rounds[STORE].append(stored.cold())
            rounds[STORE_WARM].append(stored.warm())
            for name, peer in peers.items():
                rounds[name].append(_users_per_second(peer, users, 1))
        tightness = {name: _tightness(peer, users) for name, peer in peers.items()}
        record_bytes = stored.record_bytes()
    figures = {
        "store_to_store_users_per_second": round(median(rounds[STORE])),
        "store_to_store_warm_users_per_second": round(median(rounds[STORE_WARM])),
        "state_record_bytes": record_bytes,
        **bytes_of,
    }
    result = compose(OURS, rounds, "users/s", list(peers))
    return {**result, "tightness": tightness, "figures": figures}


def _users_per_second(system: Callable[[User], object], users: list[User], passes: int) -> float:
    """Users a second of processor time, of all threads together: what else the machine does at the
    moment, or a peer's thread on another core, does not count as speed.
    """
    began = time.process_time()
    for _ in range(passes):
        for user in users:
            system(user)
    return passes * len(users) / (time.process_time() - began)


def _calls_per_second(calls: Sequence[Callable[[], object]], passes: int) -> float:
    """Calls a second of processor time, of one call a user."""
    began = time.process_time()
    for _ in range(passes):
        for call in calls:
            call()
    return passes * len(calls) / (time.process_time() - began)


def _states() -> tuple[dict[str, list[Callable[[], object]]], dict[str, int]]:
    """What makes states, by row a call for each user; and bytes of their records, on average."""
    bundles = {name: Bundle.load(BUNDLES[name]) for name in ("encode", "sdim")}
    systems = {name: open_system(bundle) for name, bundle in bundles.items()}
    sequences = sdim.sequences(L)
    of_sdim = [sdim.ways_of(bundles["sdim"], sequence) for sequence in sequences]
    states: dict[str, list[Callable[[], object]]] = {
        ENCODE: [partial(systems["encode"].extract, sequence) for sequence in sequences]
    }
    states |= {row: [ways[way] for ways in of_sdim] for row, way in STATES.items()}
    for calls in states.values():
        calls[0]()  # compiled
    bytes_of = {
        f"{name}_state_bytes": round(
            mean(len(system.layout.encode(system.extract(sequence))) for sequence in sequences)
        )
        for name, system in systems.items()
    }
    return states, bytes_of


def _user(number: int) -> User:
    rng = np.random.default_rng((SEED, number))
    points = rng.normal(size=(L, m))
    if number % 2:
        points = rng.normal(size=(K, m))[rng.integers(0, K, L)] + 0.25 * points
    h = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    old = cluster(np.ascontiguousarray(h[: L - NEWER]), K, T).centers
    return User(h, farthest_first(h, K), old)


# --- peers: from a user to centers f32[K,m] ---


def _scikit_learn() -> Callable[[User], F32]:
    """k-means on unit vectors, whose squared distance is twice the cosine distance."""
    from sklearn.cluster import KMeans

    def fit(user: User) -> F32:
        fitted = KMeans(K, init=user.start, n_init=1, max_iter=T).fit(user.h)
        return np.asarray(fitted.cluster_centers_, np.float32)

    return fit


def _faiss() -> Callable[[User], F32]:
    import faiss

    faiss.omp_set_num_threads(1)

    def train(user: User) -> F32:
        # Its warning about few points a cluster would be written for every user.
        kmeans = faiss.Kmeans(m, K, niter=T, spherical=True, min_points_per_centroid=1)
        kmeans.train(user.h, init_centroids=user.start)
        return np.asarray(kmeans.centroids, np.float32)

    return train


def _torch() -> Callable[[User], F32]:
    """What one writes in torch: two matrix products and a scatter an iteration."""
    import torch

    torch.set_num_threads(1)

    @torch.inference_mode()
    def fit(user: User) -> F32:
        h, centers = torch.from_numpy(user.h), torch.from_numpy(user.start)
        for _ in range(T):
            assign = (h @ centers.T).argmax(dim=1)
            sums = torch.zeros_like(centers).index_add_(0, assign, h)
            centers = torch.nn.functional.normalize(sums, dim=1)
        return np.asarray(centers.numpy(), np.float32)

    return fit


def _tightness(peer: Callable[[User], F32], users: list[User]) -> float:
    theirs = sum(_inertia(user.h, peer(user)) for user in users)
    return round(theirs / sum(_inertia(user.h, cluster(user.h, K, T).centers) for user in users), 4)


def _inertia(h: F32, centers: F32) -> float:
    """Sum of the behaviors' cosine distances to their nearest centers."""
    directions = centers / np.maximum(np.linalg.norm(centers, axis=1, keepdims=True), 1e-12)
    return float((1 - (h @ directions.T).max(axis=1)).sum())


# --- the whole of it: from a store to the store ---


class _Renamed:
    """A system under a digest of which the store has no states yet: every user is new to it."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.digest = bytes(16)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)


class _StoreToStore:
    """A worker's reclustering on an LMDB store with default settings, on one thread."""

    def __init__(self, directory: Path, users: int) -> None:
        """Fill the store with users of L behaviors and more, in full segments."""
        bundle = Bundle.load(BUNDLE)
        self._keys = np.array([item_key(item_id) for item_id in bundle.item_ids[1:]], np.uint64)
        self._rng = np.random.default_rng(SEED)
        system = open_system(bundle)
        system.warm()
        self._system = _Renamed(system)
        # One state a user, so that the store does not grow from round to round.
        self._store = LmdbStore(directory, StoreOptions(length=bundle.manifest.L, states=1))
        self._users = [f"user-{number}" for number in range(users)]
        self._behaviors = 0
        while self._behaviors < bundle.manifest.L:
            self._seal()
        settings = WorkerSettings(recluster_threads=1)
        metrics = WorkerMetrics(CollectorRegistry())
        self._reclusterer = Reclusterer(
            self._store, cast("System", self._system), settings, metrics
        )
        self._reclusterer.set_owners({_SOURCE.owner})

    def cold(self) -> float:
        """Users a second of processor time whose states are made from nothing."""
        digest = int.from_bytes(self._system.digest, "little") + 1
        self._system.digest = digest.to_bytes(16, "little")
        self._store.mark_due(_SOURCE.owner, self._system.digest, self._users, wall_clock_ms())
        return self._reclustered()

    def warm(self) -> float:
        """Users a second of whom one more segment was sealed since their last state."""
        self._seal()
        return self._reclustered()

    def record_bytes(self) -> int:
        """Bytes of a user's state, on average."""
        records = self._store.interests(self._users, self._system.digest)
        return round(sum(len(record or b"") for record in records) / len(records))

    def close(self) -> None:
        self._store.close()

    def _seal(self) -> None:
        """Give each user a segment more."""
        offsets = list(range(self._behaviors, self._behaviors + SEGMENT))
        appends = []
        for user in self._users:
            behaviors = np.zeros(SEGMENT, BEHAVIOR)
            behaviors["item"] = self._rng.choice(self._keys, SEGMENT)
            behaviors["time"] = 1_300_000_000_000 + 60_000 * np.array(offsets)
            behaviors["action"] = DEFAULT_ACTIONS.codes["purchase"]
            packed = behaviors.view(f"V{BEHAVIOR.itemsize}").tolist()
            appends.append(Append(user, packed, [0] * SEGMENT, offsets))
        self._store.append([Group(_SOURCE, appends)], wall_clock_ms())
        self._behaviors += SEGMENT

    def _reclustered(self) -> float:
        began = time.process_time()
        done = 0
        while done < len(self._users):
            done += self._reclusterer.run_once()
        return done / (time.process_time() - began)
