"""What the four clusterings of ENCODE's Table 7 cost, and how tight their clusters are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, Final, get_args

import numpy as np
import torch
from torch import Tensor

from lifelong.experiments.tables import METHODS
from lifelong.experiments.timing import time_in_turns
from lifelong.machine import machine
from models.devices import one_thread
from models.modules.clusterings import (
    Clustering,
    agglomerate_sequences,
    cluster_sequences,
    route_sequences,
    scatter_sequences,
)
from models.modules.layers import unit

REFERENCE: Final[Clustering] = "k-means"
SPREAD: Final = 0.25
"""Spread of behaviors around their interest, for the users who have interests."""


def measure_clusterings(
    *,
    behaviors: int = 1000,
    m: int = 4,
    K: int = 30,
    T: int = 15,
    users: int = 20,
    rounds: int = 9,
    seed: int = 0,
) -> dict[str, Any]:
    """Time the clusterings of ENCODE's Table 7 on made-up users, on one core.

    K-means is the kernel that serves; the others are those of training. Half of the users have K
    interests around which their behaviors lie, the other half have none (a Gaussian), which takes
    every algorithm longest. No two behaviors are alike.

    Args:
        behaviors: L of every user.
        m: width of a projected behavior.
        K: clusters.
        T: iterations of k-means and of dynamic routing, at most.
        users: how many are clustered in a round.
        rounds: in which all alternate.
        seed: of the users.

    Returns:
        "methods": by name (`models.modules.clusterings.Clustering`) "ms", milliseconds a user, the
        median over rounds; "ms_all", a value a round; "ratio", how many times as long as k-means
        it took; "cosine", the mean cosine of a behavior to its cluster's center. Beside it "L",
        "m", "K", "T", "users", "rounds", "machine".
    """
    directions = _directions(users, behaviors, m, K, seed)
    mask = torch.ones(users, behaviors, dtype=torch.bool)
    scale = 1 / METHODS["ENCODE"]["beta"]  # as the paper writes Eq. 9
    ways: dict[Clustering, Callable[[], tuple[Tensor, Tensor]]] = {
        "k-means": partial(cluster_sequences, directions, mask, K, T),
        "dynamic-routing": partial(route_sequences, directions, mask, K, T, scale),
        "agglomerative": partial(agglomerate_sequences, directions, mask, K),
        "random": partial(scatter_sequences, directions, mask, K),
    }
    assert ways.keys() == set(get_args(Clustering))
    with one_thread(), torch.no_grad():
        cosines = {name: _tightness(directions, *way()) for name, way in ways.items()}
        times = time_in_turns(ways, rounds)
    methods = {}
    for name, taken in times.items():
        ms = [round(1000 * seconds / users, 4) for seconds in taken.processor]
        methods[name] = {
            "ms": median(ms),
            "ms_all": ms,
            "ratio": round(taken.ratio(times[REFERENCE]), 2),
            "cosine": round(cosines[name], 4),
        }
    return {
        "methods": methods,
        "L": behaviors,
        "m": m,
        "K": K,
        "T": T,
        "users": users,
        "rounds": rounds,
        "machine": machine(),
    }


def _directions(users: int, L: int, m: int, K: int, seed: int) -> Tensor:
    """f32[users, L, m], of unit length; every other user has interests."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((users, L, m), np.float32)
    for user in range(1, users, 2):
        interests = rng.standard_normal((K, m), np.float32)
        points[user] = interests[rng.integers(0, K, L)] + SPREAD * points[user]
    return unit(torch.from_numpy(points))


def _tightness(directions: Tensor, labels: Tensor, centers: Tensor) -> float:
    index = labels.unsqueeze(-1).expand(-1, -1, centers.shape[-1])
    return float((directions * centers.gather(1, index)).sum(-1).mean())
