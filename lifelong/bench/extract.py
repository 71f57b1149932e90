"""``lifelong bench extract``: one user's thousand behaviors into thirty clusters, ours and peers.

All systems cluster the same users at ENCODE's sizes, one core each, and alternate in rounds. Peers
are handed the start that ours has to find, and are not asked for assignments where their interface
leaves them out: whatever is uneven is in their favor. Half of the users have interests (grouped
behaviors), the other half have none (a Gaussian), which takes every algorithm longest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from extractor.state import InterestState
from extractor.systems.encode import PROJECTED, Extractor
from infra.arrays import F32, I32, U64, Array
from infra.behaviors import BEHAVIOR
from infra.store import StoredSequence, Version
from lifelong.bench.report import compose
from models.bundle import EncodeOffline
from models.kernels.clustering import cluster, farthest_first

L: Final = 1000
d: Final = 32
m: Final = 4
K: Final = 30
T: Final = 15

OURS: Final = "lifelong"
SEED: Final = 20
ITEMS: Final = 5000
NEWER: Final = 64
"""Behaviors that came since the last clustering, in the warm rows (the worker's default)."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured."""

    rounds: int
    users: int
    passes: int
    """How often ours goes over the users in a round: a round should outlast the clock's noise."""


FULL: Final = Load(rounds=25, users=20, passes=20)
QUICK: Final = Load(rounds=7, users=10, passes=20)


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
    extract, extract_warm = _whole_extraction()
    ours: dict[str, Callable[[User], object]] = {
        OURS: lambda user: cluster(user.h, K, T),
        "lifelong, warm start": lambda user: cluster(user.h, K, T, start=user.old),
        "lifelong, whole state": lambda _: extract(),
        "lifelong, whole state, warm start": lambda _: extract_warm(),
    }
    rounds: dict[str, list[float]] = {name: [] for name in (*ours, *peers)}
    with threadpool_limits(1):  # scikit-learn's and faiss's OpenMP, numpy's BLAS
        for system in (*ours.values(), *peers.values()):
            _users_per_second(system, users[:2], 1)  # compiled, loaded, in the cache
        for _ in range(load.rounds):
            for name, system in ours.items():
                rounds[name].append(_users_per_second(system, users, load.passes))
            for name, peer in peers.items():
                rounds[name].append(_users_per_second(peer, users, 1))
        tightness = {name: _tightness(peer, users) for name, peer in peers.items()}
    return {**compose(OURS, rounds, "users/s", list(peers)), "tightness": tightness}


def _users_per_second(system: Callable[[User], object], users: list[User], passes: int) -> float:
    """Users a second of processor time, of all threads together: what else the machine does at the
    moment, or a peer's thread on another core, does not count as speed.
    """
    began = time.process_time()
    for _ in range(passes):
        for user in users:
            system(user)
    return passes * len(users) / (time.process_time() - began)


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


# --- the whole of it: from a stored sequence to an interest state ---


@dataclass(frozen=True, slots=True)
class _Dimensions:
    L: int = L
    M: int = 50


@dataclass(frozen=True, slots=True)
class _Table:
    """An item table of random embeddings; item key i has row i."""

    embeddings: F32
    tables: Mapping[str, Array]
    keys: U64
    digest: bytes = bytes(16)
    manifest: _Dimensions = _Dimensions()

    def rows(self, item_keys: U64) -> I32:
        """Rows of items by their keys, as a bundle looks them up."""
        place = np.searchsorted(self.keys, item_keys)
        return (place + 1).astype(np.int32)


def _whole_extraction() -> tuple[Callable[[], InterestState], Callable[[], InterestState]]:
    """A user's whole extraction, cold and warm, as the worker runs it."""
    rng = np.random.default_rng(SEED)
    embeddings = rng.normal(size=(ITEMS + 1, d)).astype(np.float32)
    projected = (embeddings @ rng.normal(size=(d, m))).astype(np.float32)
    keys = np.sort(rng.integers(0, 2**64, ITEMS, dtype=np.uint64))
    table = _Table(embeddings, {PROJECTED: projected}, keys)
    extractor = Extractor(table, EncodeOffline(m=m, K=K, T=T, scale=1 / 20))
    behaviors = np.zeros(L, BEHAVIOR)
    behaviors["item"] = rng.choice(keys, L)
    behaviors["time"] = 1_300_000_000_000 + 60_000 * np.arange(L)
    now = StoredSequence(Version(1, L), behaviors, {})
    before = StoredSequence(Version(1, L - NEWER), behaviors[: L - NEWER], {})
    old = extractor.extract(before)
    return lambda: extractor.extract(now), lambda: extractor.extract(now, old)
