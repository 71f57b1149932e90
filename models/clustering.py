"""Clustering of a batch of sequences in training; on a GPU all of them together.

Assignments and centers are constants as far as gradients go (ENCODE, section 3.2.2).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.kernels import on_threads
from models.kmeans import cluster_each


def cluster_sequences(directions: Tensor, mask: Tensor, K: int, T: int) -> tuple[Tensor, Tensor]:
    """`models.kmeans.cluster` for each of a batch of sequences; constants as far as gradients go.

    On a processor each sequence is clustered by the kernel above, on all threads; on a GPU all
    are clustered together.

    Args:
        directions: f32[R, L, m], of unit length.
        mask: bool[R, L]; what it leaves out has label 0.

    Returns:
        Labels i64[R, L] in [0, K) and centers f32[R, K, m] of unit length.
    """
    if directions.device.type != "cpu":
        return _cluster_together(directions, mask, K, T)
    labels = np.zeros(mask.shape, np.int64)
    centers = np.zeros((len(mask), K, directions.shape[-1]), np.float32)
    points, valid = directions.numpy(), mask.numpy()

    def run(begin: int, end: int) -> None:
        part = slice(begin, end)
        cluster_each(points[part], valid[part], T, labels[part], centers[part])

    on_threads(run, len(mask), torch.get_num_threads())
    return torch.from_numpy(labels), torch.from_numpy(centers)


def _cluster_together(directions: Tensor, mask: Tensor, K: int, T: int) -> tuple[Tensor, Tensor]:
    """`spherical_kmeans` for all sequences at once, from the same start."""
    R, L, m = directions.shape
    sizes = mask.sum(1)
    nowhere = torch.finfo(directions.dtype).max
    each = torch.arange(R, device=mask.device)
    best = torch.full((R, L), -2.0, device=mask.device)
    labels = torch.zeros(R, L, dtype=torch.long, device=mask.device)
    centers = torch.zeros(R, K, m, device=mask.device)
    start = mask.int().argmax(1)
    for k in range(K):
        live = (k < sizes).unsqueeze(1)
        centers[:, k] = torch.where(live, directions[each, start], centers[:, k])
        similarity = (directions * centers[:, k : k + 1]).sum(-1)
        nearer = (similarity > best) & live
        best = torch.where(nearer, similarity, best)
        labels = torch.where(nearer, k, labels)
        start = best.masked_fill(~mask, nowhere).argmin(1)
    small = (sizes <= K).unsqueeze(1)
    own = mask.cumsum(1) - 1
    labels = torch.where(small, own.clamp(min=0), labels) * mask
    weights = mask.to(directions.dtype).unsqueeze(-1)
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
