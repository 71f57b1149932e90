"""Clustering of a batch of sequences in training (ENCODE, section 3.2.2 and Table 7).

Four ways, with one contract. Assignments and centers are constants as far as gradients go; with no
more behaviors than clusters, each behavior is a cluster of its own; a center is the direction in
which its cluster's members point together.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from infra.compiling import on_threads
from models.kernels.clustering import cluster_each
from models.modules.agglomeration import agglomerate_each

Clustering = Literal["k-means", "dynamic-routing", "agglomerative", "random"]

ROUTED: Final = 2**24
"""Routing logits that are held at once: 64 MiB, a fraction of what a batch of long sequences would
need."""


def cluster_sequences(
    directions: Tensor, mask: Tensor, K: int, T: int, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """K-means by cosine for each of a batch of sequences; constants as far as gradients go.

    On a processor each sequence is clustered by the kernel that serves, on all threads; on a GPU
    all are clustered together. Either way an item that is met n times counts n times, and is in one
    cluster.

    Args:
        directions: f32[R, L, m], of unit length.
        mask: bool[R, L]; what it leaves out has label 0.
        rows: i64[R, L]: equal where behaviors are of the same item, hence of equal direction;
            None: all are different.

    Returns:
        Labels i64[R, L] in [0, K) and centers f32[R, K, m] of unit length.
    """
    if rows is None:
        rows = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    if directions.device.type != "cpu":
        first, counts = first_met(rows, mask)
        labels, centers = _cluster_together(directions, counts, K, T)
        return labels.gather(1, first) * mask, centers
    found = np.zeros(mask.shape, np.int64)
    at = np.zeros((len(mask), K, directions.shape[-1]), np.float32)
    points, items, valid = directions.numpy(), rows.contiguous().numpy(), mask.numpy()

    def run(begin: int, end: int) -> None:
        part = slice(begin, end)
        cluster_each(points[part], items[part], valid[part], T, found[part], at[part])

    on_threads(run, len(mask), torch.get_num_threads())
    return torch.from_numpy(found), torch.from_numpy(at)


def agglomerate_sequences(directions: Tensor, mask: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """Bottom-up clustering of each of a batch of sequences, see `models.modules.agglomeration`.

    Always on the processor: which clusters merge next depends on the merge before, one by one.

    Arguments and what is returned are those of `cluster_sequences`.
    """
    points, valid = directions.cpu().numpy(), mask.cpu().numpy()
    labels = np.zeros(valid.shape, np.int64)

    def run(begin: int, end: int) -> None:
        part = slice(begin, end)
        agglomerate_each(points[part], valid[part], K, labels[part])

    on_threads(run, len(valid), torch.get_num_threads())
    return _with_centers(directions, mask, torch.from_numpy(labels).to(mask.device), K)


def route_sequences(
    directions: Tensor, mask: Tensor, K: int, T: int, scale: float
) -> tuple[Tensor, Tensor]:
    """MIND's dynamic routing (Li et al., CIKM 2019, algorithm 1) with ENCODE's metric.

    A behavior's routing logits start as normal draws. An iteration points each cluster where the
    behaviors point together, each weighted by the softmax of its logits over the clusters, and
    adds the similarity of each behavior and cluster (Eq. 9) to the logits. A behavior belongs to
    the cluster of its greatest logit in the end.

    The draws depend on how many behaviors ago a behavior was, and on nothing else: the same
    sequence is routed in the same way every time.

    Args:
        scale: what cosines are multiplied with, 1 / beta as the paper has it.
        directions, mask, K, T: as of `cluster_sequences`, and so is what is returned.
    """
    R, L, _ = directions.shape
    drawn = np.random.default_rng(0).standard_normal((L, K), np.float32)[::-1]
    start = torch.from_numpy(drawn.copy()).to(directions.device)
    labels = torch.empty(R, L, dtype=torch.long, device=directions.device)
    size = max(ROUTED // max(L * K, 1), 1)
    for begin in range(0, R, size):
        part = slice(begin, begin + size)
        h = directions[part]
        real = mask[part].unsqueeze(-1).to(h.dtype)
        logits = start.expand(len(h), -1, -1)
        for _ in range(T):
            pulled = (torch.softmax(logits, -1) * real).transpose(1, 2) @ h
            centers = pulled / pulled.norm(dim=-1, keepdim=True).clamp(min=1e-6)
            logits = logits + scale * (h @ centers.transpose(1, 2))
        labels[part] = logits.argmax(-1)
    return _with_centers(directions, mask, _alone_if_few(labels, mask, K), K)


def scatter_sequences(directions: Tensor, mask: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """Random clusters: drawn uniformly, by how many behaviors ago a behavior was, so that the same
    sequence is scattered in the same way every time.

    Arguments and what is returned are those of `cluster_sequences`.
    """
    drawn = np.random.default_rng(0).integers(K, size=mask.shape[1])[::-1]
    labels = torch.from_numpy(drawn.copy()).to(mask.device).expand(mask.shape)
    return _with_centers(directions, mask, _alone_if_few(labels, mask, K), K)


def _alone_if_few(labels: Tensor, mask: Tensor, K: int) -> Tensor:
    """Labels of masked behaviors set to 0, and where no more behaviors than K are left, each with
    a label of its own.
    """
    own = (mask.cumsum(1) - 1).clamp(min=0)
    return torch.where((mask.sum(1) <= K).unsqueeze(1), own, labels) * mask


def _with_centers(
    directions: Tensor, mask: Tensor, labels: Tensor, K: int
) -> tuple[Tensor, Tensor]:
    R, _, m = directions.shape
    weights = mask.to(directions.dtype).unsqueeze(-1)
    return labels, _moved(directions, weights, labels, directions.new_zeros(R, K, m))


def first_met(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where each item is first met in its sequence, and how often it is.

    Args:
        rows: i64[R, L].
        mask: bool[R, L].

    Returns:
        i64[R, L]: the place of the first behavior of the same item; i64[R, L]: at such a place the
        number of behaviors, elsewhere 0.

    >>> first_met(torch.tensor([[7, 9, 7, 7]]), torch.tensor([[True, True, True, False]]))
    (tensor([[0, 1, 0, 3]]), tensor([[2, 1, 0, 0]]))
    """
    places = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    keys, order = torch.sort(torch.where(mask, rows, -1 - places), dim=1, stable=True)
    begins = torch.ones_like(mask)
    begins[:, 1:] = keys[:, 1:] != keys[:, :-1]
    begin = torch.cummax(torch.where(begins, places, 0), dim=1).values
    first = torch.empty_like(rows).scatter(1, order, order.gather(1, begin))
    return first, torch.zeros_like(rows).scatter_add(1, first, mask.long())


def _cluster_together(directions: Tensor, counts: Tensor, K: int, T: int) -> tuple[Tensor, Tensor]:
    """K-means of all sequences at once, from the kernel's start; what has count 0 is left out."""
    R, L, m = directions.shape
    mask = counts > 0
    sizes = mask.sum(1)
    nowhere = torch.finfo(directions.dtype).max
    each = torch.arange(R, device=mask.device)
    best = torch.full((R, L), -2.0, device=mask.device)
    labels = torch.zeros(R, L, dtype=torch.long, device=mask.device)
    centers = torch.zeros(R, K, m, device=mask.device)
    start = counts.argmax(1)
    for k in range(K):
        live = (k < sizes).unsqueeze(1)
        centers[:, k] = torch.where(live, directions[each, start], centers[:, k])
        similarity = (directions * centers[:, k : k + 1]).sum(-1)
        nearer = (similarity > best) & live
        best = torch.where(nearer, similarity, best)
        labels = torch.where(nearer, k, labels)
        start = best.masked_fill(~mask, nowhere).argmin(1)
    small = (sizes <= K).unsqueeze(1)
    labels = _alone_if_few(labels, mask, K)
    weights = counts.to(directions.dtype).unsqueeze(-1)
    # With few behaviors the start stands in another order; a zero vector's center is zero.
    centers = centers.masked_fill(small.unsqueeze(-1), 0.0)
    for _ in range(T - 1):
        centers = _moved(directions, weights, labels, centers)
        similarity = directions @ centers.transpose(1, 2)
        dead = torch.arange(K, device=mask.device) >= sizes.unsqueeze(1)
        labels_next = similarity.masked_fill(dead.unsqueeze(1), -2.0).argmax(-1) * mask
        labels_next = torch.where(small, labels, labels_next)
        if torch.equal(labels_next, labels):
            return labels, centers
        labels = labels_next
    return labels, _moved(directions, weights, labels, centers)


def _moved(directions: Tensor, weights: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    index = labels.unsqueeze(-1).expand(-1, -1, directions.shape[-1])
    sums = torch.zeros_like(centers).scatter_add(1, index, directions * weights)
    norm = sums.norm(dim=-1, keepdim=True)
    return torch.where(norm > 1e-6, sums / norm.clamp(min=1e-6), centers)
