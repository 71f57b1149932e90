"""The paper's equations, one by one, slow and literal: what the extractor must come to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infra.arrays import F64

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]


def distance(a: Floats, b: Floats) -> float:
    """ENCODE, Eq. 11: dis(a, b) = 1 - a.b / (|a| |b|)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(1.0 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def similarity(a: Floats, b: Floats, beta: float, beta_mode: str) -> float:
    """ENCODE, Eq. 9 as written (beta divides), or with a beta that multiplies."""
    cosine = 1.0 - distance(a, b)
    return cosine / beta if beta_mode == "divide" else cosine * beta


def distances(h: Floats, centers: Floats) -> F64:
    """Eq. 11 between all behaviors and all centers, [L,K]."""
    h, centers = h.astype(np.float64), centers.astype(np.float64)
    lengths = np.outer(np.linalg.norm(h, axis=1), np.linalg.norm(centers, axis=1))
    result: F64 = 1.0 - h @ centers.T / lengths
    return result


def farthest_first(h: Floats, K: int) -> Floats:
    """The first behavior, then always the one whose nearest center is farthest."""
    chosen = [0]
    while len(chosen) < K:
        chosen.append(int(distances(h, h[chosen]).min(axis=1).argmax()))
    return h[chosen]


def kmeans(h: Floats, centers: Floats, T: int) -> tuple[Ints, Floats]:
    """Algorithm 1, line 11: T assignments, each followed by new centers; stops when none moves.

    A center is the direction of the mean of its members' directions. Nothing else is handled: no
    empty cluster, no behavior without a direction.
    """
    directions = h / np.linalg.norm(h, axis=1, keepdims=True)
    assign = np.full(len(h), -1)
    for _ in range(T):
        nearest = distances(h, centers).argmin(axis=1)
        if (nearest == assign).all():
            break
        assign = nearest
        centers = np.array([directions[assign == k].mean(axis=0) for k in range(len(centers))])
    return assign, centers / np.linalg.norm(centers, axis=1, keepdims=True)


def interests(
    h: Floats, s: Floats, assign: Ints, centers: Floats, beta: float, beta_mode: str
) -> Floats:
    """Eq. 8: u_k = sum over the cluster of exp(sim(h_i, c_k)) s_i, over the sum of the exps."""
    u = np.zeros((len(centers), s.shape[1]))
    for k, center in enumerate(centers):
        members = np.flatnonzero(assign == k)
        if len(members):
            sims = np.array([similarity(h[i], center, beta, beta_mode) for i in members])
            weights = np.exp(sims - sims.max())
            u[k] = weights @ s[members] / weights.sum()
    return u


def inertia(h: Floats, assign: Ints, centers: Floats) -> float:
    """Sum of the distances of behaviors to the centers of their clusters."""
    return float(distances(h, centers)[np.arange(len(h)), assign].sum())
