"""Agglomerative clustering of behaviors (ENCODE, Table 7): bottom up, average linkage, by cosine.

The mean cosine between the members of two clusters is the inner product of the clusters' means, so
that no matrix of all pairs is kept. Nearest-neighbor chains find the same merges as always joining
the two most similar clusters does, in O(n^2 m) instead of O(n^3 m).
"""

from __future__ import annotations

import numpy as np

from infra.arrays import F32, I64, Bools
from infra.compiling import fast_kernel


@fast_kernel
def agglomerate_each(directions: F32, mask: Bools, K: int, labels: I64) -> None:
    """Cluster each of R sequences.

    Args:
        directions: f32[R, L, m], of unit length.
        mask: bool[R, L]: behaviors that are clustered.
        K: clusters that are left; with no more behaviors than that each stays alone.
        labels: i64[R, L], written: clusters in the order of their first behaviors; 0 where masked.
    """
    for r in range(len(mask)):
        n = mask[r].sum()
        means = np.empty((directions.shape[2], n), np.float32)
        at = 0
        for i in range(mask.shape[1]):
            if mask[r, i]:
                means[:, at] = directions[r, i]
                at += 1
        parent = _cut(*_merges(means), n, K)
        label = np.full(n, -1, np.int64)
        made = at = 0
        for i in range(mask.shape[1]):
            if mask[r, i]:
                root = _root(parent, at)
                if label[root] < 0:
                    label[root] = made
                    made += 1
                labels[r, i] = label[root]
                at += 1


@fast_kernel
def _merges(means: F32) -> tuple[I64, I64, F32]:
    """All n - 1 merges of n points f32[m, n], which are overwritten: a point of either cluster,
    and how similar the two were. In no order.
    """
    m, n = means.shape
    sizes, owner = np.ones(n, np.float32), np.arange(n)
    left, right = np.empty(max(n - 1, 0), np.int64), np.empty(max(n - 1, 0), np.int64)
    height = np.empty(max(n - 1, 0), np.float32)
    chain, similarity = np.empty(n, np.int64), np.empty(n, np.float32)
    depth, live = 0, n
    while live > 1:
        if depth == 0:
            chain[0], depth = 0, 1
        top = chain[depth - 1]
        similarity[:live] = 0
        for j in range(m):
            for i in range(live):
                similarity[i] += means[j, i] * means[j, top]
        similarity[top] = np.float32(-3.0)
        near = int(np.argmax(similarity[:live]))
        if depth > 1 and similarity[chain[depth - 2]] >= similarity[near]:
            near = chain[depth - 2]
        if near == top:  # nothing compares: not numbers
            near = 1 if top == 0 else 0
        at = depth - 1
        while at >= 0 and chain[at] != near:
            at -= 1
        if at < 0:
            chain[depth] = near
            depth += 1
            continue
        # Two that are nearest to each other. Exactly computed, the chain's last two; with rounding
        # maybe one further down, and what stood above it starts anew.
        depth = at
        merged = n - live
        left[merged], right[merged], height[merged] = owner[top], owner[near], similarity[near]
        kept, gone, last = min(top, near), max(top, near), live - 1
        size = sizes[kept] + sizes[gone]
        for j in range(m):
            means[j, kept] = means[j, kept] * (sizes[kept] / size) + means[j, gone] * (
                sizes[gone] / size
            )
            means[j, gone] = means[j, last]
        sizes[kept], sizes[gone], owner[gone] = size, sizes[last], owner[last]
        for a in range(depth):
            if chain[a] == last:
                chain[a] = gone
        live = last
    return left, right, height


@fast_kernel
def _cut(left: I64, right: I64, height: F32, n: int, K: int) -> I64:
    """Undo the last K - 1 merges; -> i64[n], each point's parent in a forest of K trees."""
    parent = np.arange(n)
    order = np.argsort(-height, kind="mergesort")
    for a in range(n - K):
        merge = order[a]
        parent[_root(parent, left[merge])] = _root(parent, right[merge])
    return parent


@fast_kernel
def _root(parent: I64, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
