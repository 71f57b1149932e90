"""Whether behavior weights go where a reference's do: ENCODE's RI, and hits of a search.

The offline measures (`models.measures.relevance`) and those that a service takes of its requests
have these in common. Numpy alone, no loop over rows; what the data cannot tell is not a number.
L behaviors.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infra.arrays import F32, Array

NAN: Final = float("nan")

SMOOTHING: Final = 0.01
"""Smoothing of `relevance_indicator` by default; say it beside the figures."""


def products(queries: F32, keys: F32) -> F32:
    """f32[B, n]: the products of queries f32[B, d] with keys f32[n, d], on the caller's core alone:
    with ``@`` numpy takes others, which a service has better use for.
    """
    found: F32 = np.einsum("bd,nd->bn", queries, keys)
    return found


def softmax(scores: F32) -> F32:
    """The attention weights of scores [..., L]: they sum to 1 along the last axis."""
    weights: F32 = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights


def relevance_indicator(
    weights: Array, reference: Array, mask: Array | None = None, smoothing: float = SMOOTHING
) -> float:
    """ENCODE's relevance indicator RI: cross-entropy of a method's behavior weights and DIN-L's.

    ENCODE, section 4.6.1: the attention weights of DIN-L are the truth p, a method's the guess q
    (ENCODE's: within-cluster times between-cluster weight), and RI = -sum_l p_l ln q_l, in nats;
    smaller is better, and p's own entropy is the least. Uniform weights have ln L, 6.9 at the
    paper's L = 1,000.

    Both are divided by their sums here. A method that retrieves gives the rest of the behaviors no
    weight at all, which makes RI infinite as soon as DIN-L gives them some; the paper reports
    finite values and does not say how. Here every q is mixed with a little of the uniform
    distribution, q' = (1 - s) q + s / n over the request's n behaviors. What retrieving methods get
    depends on s, so say it beside the figures; methods that weigh every behavior hardly notice.

    Args:
        weights: [..., L], non-negative: a method's, one row a (request, candidate).
        reference: [..., L], non-negative: DIN-L's.
        mask: bool[..., L] (or one that broadcasts), False where padded.
        smoothing: s.

    Returns:
        The mean over the rows that have a reference; a row without any weight of its own counts as
        uniform.

    >>> round(relevance_indicator(np.full((1, 1000), 0.001), np.full((1, 1000), 0.001)), 3)
    6.908
    """
    shape = np.broadcast_shapes(weights.shape, reference.shape)
    shown = np.ones(shape, bool) if mask is None else np.broadcast_to(mask, shape)
    truth = np.where(shown, reference, 0.0).astype(np.float64)
    guess = np.where(shown, weights, 0.0).astype(np.float64)
    uniform = shown / np.maximum(shown.sum(-1, keepdims=True), 1)
    total = guess.sum(-1, keepdims=True)
    guess = np.divide(guess, total, out=uniform.copy(), where=total > 0)
    guess = (1 - smoothing) * guess + smoothing * uniform
    needed = truth > 0
    logs = np.log(guess, out=np.zeros(shape), where=needed & (guess > 0))
    logs[needed & (guess <= 0)] = -np.inf
    mass = truth.sum(-1)
    rows = mass > 0
    if not rows.any():
        return NAN
    terms = np.multiply(truth, logs, out=np.zeros(shape), where=needed)
    return float((-terms.sum(-1)[rows] / mass[rows]).mean())


def hit_rate_of_retrieval(
    retrieved: Array, oracle_weights: Array, k: int = 100, mask: Array | None = None
) -> float:
    """TWIN's consistency of GSU and ESU: the share of the oracle's top k that was retrieved.

    TWIN, section 4.5 and Figure 4: the oracle ranks all behaviors by the method's own ESU. Times k
    it is the figure's number of hits. Behaviors that tie for the oracle's last places count at
    their expectation. Requests with no more than k behaviors are left out: retrieving all is a hit
    by whatever method.

    Args:
        retrieved: bool[..., L]: what the GSU returned, of any size, for each (request, candidate).
        oracle_weights: [..., L]: the ESU's relevance of every behavior, logits or weights.
        k: behaviors that the oracle would choose.
        mask: bool[..., L] (or one that broadcasts), False where padded.

    >>> hit_rate_of_retrieval(np.array([[True, False, True]]), np.array([[0.5, 0.3, 0.2]]), k=2)
    0.5
    """
    L = oracle_weights.shape[-1]
    shown = np.ones(oracle_weights.shape, bool) if mask is None else mask
    shown = np.broadcast_to(shown, oracle_weights.shape).reshape(-1, L)
    rows = np.flatnonzero(shown.sum(1) > k)
    if not len(rows):
        return NAN
    found = np.broadcast_to(retrieved, oracle_weights.shape).reshape(-1, L)[rows]
    relevance = np.where(shown, oracle_weights.reshape(-1, L), -np.inf)[rows]
    found = found & shown[rows]
    least = np.partition(relevance, L - k, axis=1)[:, L - k, None]
    above, tied = relevance > least, (relevance == least) & shown[rows]
    places = (k - above.sum(1)) / tied.sum(1)
    hits = (found & above).sum(1) + places * (found & tied).sum(1)
    return float((hits / k).mean())
