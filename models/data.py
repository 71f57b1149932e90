"""From interactions to training batches: what a request would have seen, and nothing later.

A *request* is a moment of a user: right before their behavior at position p. Its positives are the
next items of the basket (behaviors of one user at one time), its negatives are items drawn by
popularity up to that moment. Two things differ between training and a live service, and both are
drawn at random here, so that serving sees what training saw:

- *staleness of interests*: behaviors newer than the last clustering stand beside the clusters as
  interests of their own;
- *age of the bundle*: a bundle in service is older than the newest items. Items that first
  appeared after its making have row 0, and popularity is what it was then.

Drawing requests is numpy; gathering a batch is one numba pass, ragged and
without Python per request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from models.features import cross_columns, user_columns
from models.interactions import Floats, Interactions, Ints, Rows
from models.kernels import kernel
from models.kmeans import cluster_requests
from models.readers import columns

MAX_NEWER: Final = 63
"""Most behaviors that training leaves newer than the clustering: the service reclusters at 64."""

DAY_S: Final = 86_400


def load_interactions(events: Path, items: Path | None = None, share: float = 1.0) -> Interactions:
    """Read interactions from parquet: columns user_id, item_id and time (a timestamp).

    Args:
        events: the behaviors; sorted by time here if they are not (stable).
        items: titles: columns item_id and description.
        share: the first part of the behaviors to read, by time; the rest is not looked at.

    Raises:
        TrainingError: a file cannot be read, lacks a column, or holds no behavior.
    """
    return columns.read(
        events, items=items, title=None if items is None else "description", share=share
    )


@dataclass(frozen=True)
class Sequences:
    """The same interactions by user: sequences laid end to end, each oldest first."""

    items: Rows
    """i32[N]."""
    times: Ints
    """i64[N], seconds since epoch."""
    position: Ints
    """i64[N]: where the behavior stands in the interactions' order of time."""
    start: Ints
    """i64[N]: where the behavior's user starts."""
    basket: Ints
    """i64[N]: where the behavior's basket (same user, same time) starts."""
    basket_end: Ints
    """i64[N]: where it ends, exclusive."""

    @classmethod
    def of(cls, interactions: Interactions) -> Self:
        order = np.argsort(interactions.users, kind="stable")
        users = interactions.users[order]
        times = interactions.times[order]
        index = np.arange(len(order))
        new_user = np.diff(users, prepend=-1) != 0
        new_basket = new_user | (np.diff(times, prepend=-1) != 0)
        number = np.cumsum(new_basket) - 1
        starts = index[new_basket]
        ends = np.append(starts[1:], len(order))
        return cls(
            items=interactions.items[order],
            times=times,
            position=order,
            start=np.maximum.accumulate(np.where(new_user, index, 0)),
            basket=starts[number] if len(order) else index,
            basket_end=ends[number] if len(order) else index,
        )


class Requests(NamedTuple):
    """R requests with B candidates each; indices point into `Sequences`."""

    cut: Ints
    """i64[R]: the request comes right before this behavior."""
    as_of: Ints
    """i64[R]: the clustering covers the user's behaviors before this index."""
    bundle: Ints
    """i64[R]: the bundle knows the interactions before this position."""
    candidates: Rows
    """i32[R, B], the rows the items have (or will have) in the vocabulary."""
    labels: Floats
    """f32[R, B]: 1 for positives."""
    weights: Floats
    """f32[R, B]: 0 for candidates that do not count."""

    def part(self, rows: slice | Ints) -> Requests:
        """Some of the requests."""
        return Requests(
            cut=self.cut[rows],
            as_of=self.as_of[rows],
            bundle=self.bundle[rows],
            candidates=self.candidates[rows],
            labels=self.labels[rows],
            weights=self.weights[rows],
        )


@dataclass(frozen=True)
class SamplingConfig:
    """How training requests are drawn."""

    positives: int = 4
    """Next items of the basket that a request predicts, at most."""
    negatives: int = 20
    """Items drawn by popularity a request."""
    behaviors_per_request: int = 4
    """A basket of n behaviors gives about n divided by this many requests an epoch."""
    bundle_age_share: float = 0.5
    """Share of requests that see a bundle older than the newest items."""
    bundle_age_days: float = 100.0
    """Greatest age of the bundle."""
    burn_in: float = 0.02
    """First part of the behaviors that gives no requests: there is nothing to learn from yet."""


def training_requests(
    interactions: Interactions,
    sequences: Sequences,
    config: SamplingConfig,
    rng: np.random.Generator,
) -> Requests:
    """An epoch's requests, in random order.

    Positives are the next items of the basket that it does not hold yet; negatives are never an
    item of the basket, be it bought before or after the request.
    """
    n = len(interactions)
    drawn = rng.random(n) < 1.0 / config.behaviors_per_request
    cut = np.flatnonzero(drawn & (sequences.position >= config.burn_in * n))
    rng.shuffle(cut)
    age = rng.random(len(cut)) * config.bundle_age_days * DAY_S
    age[rng.random(len(cut)) >= config.bundle_age_share] = 0
    oldest = np.searchsorted(interactions.times, sequences.times[cut] - age.astype(np.int64))
    bundle = np.where(age > 0, oldest, sequences.position[cut])
    ahead = cut[:, None] + np.arange(config.positives)
    inside = ahead < sequences.basket_end[cut][:, None]
    positives = np.where(inside, sequences.items[np.minimum(ahead, n - 1)], -1)
    negatives = _popular(interactions, sequences, cut, config.negatives, rng)
    candidates = np.concatenate([positives, negatives], axis=1).astype(np.int32)
    weights = np.empty(candidates.shape, np.float32)
    begin, end = sequences.basket[cut], sequences.basket_end[cut]
    _admit(sequences.items, begin, cut, end, candidates, config.positives, weights)
    labels = np.zeros(candidates.shape, np.float32)
    labels[:, : config.positives] = 1
    as_of = cut - _staleness(sequences, cut, rng)
    return Requests(cut, as_of, bundle, np.maximum(candidates, 0), labels, weights)


def evaluation_requests(
    interactions: Interactions,
    sequences: Sequences,
    begin: int,
    size: int,
    rng: np.random.Generator,
    negatives: int = 99,
) -> Requests:
    """Requests of the demo's kind: one item about to be bought among others drawn by popularity.

    Args:
        begin: the bundle knows the interactions before this position; requests come after it.
        size: requests, at most.
        negatives: other items, none of them in the basket so far, nor twice in the list.

    Returns:
        Requests whose first candidate is the positive. A behavior that repeats an item of its own
        basket gives none.
    """
    cut = np.flatnonzero(sequences.position >= begin)
    rng.shuffle(cut)
    cut = cut[: size + size // 4]  # some fall out below
    drawn = _popular(interactions, sequences, cut, 4 * negatives, rng)
    candidates = np.concatenate([sequences.items[cut][:, None], drawn], axis=1).astype(np.int32)
    weights = np.empty(candidates.shape, np.float32)
    _admit(sequences.items, sequences.basket[cut], cut, cut, candidates, 1, weights)
    chosen = np.argsort(-weights, axis=1, kind="stable")[:, : negatives + 1]
    kept = np.flatnonzero(np.take_along_axis(weights, chosen, 1).all(1) & (weights[:, 0] > 0))[
        :size
    ]
    cut, candidates = cut[kept], np.take_along_axis(candidates, chosen, 1)[kept]
    labels = np.zeros(candidates.shape, np.float32)
    labels[:, 0] = 1
    return Requests(
        cut=cut,
        as_of=cut - _staleness(sequences, cut, rng),
        bundle=np.full(len(cut), begin, np.int64),
        candidates=candidates,
        labels=labels,
        weights=np.ones(candidates.shape, np.float32),
    )


def _popular(
    interactions: Interactions,
    sequences: Sequences,
    cut: Ints,
    size: int,
    rng: np.random.Generator,
) -> Rows:
    """i32[R, size]: the items of random earlier behaviors, which is popularity up to then."""
    position = np.maximum(sequences.position[cut], 1)[:, None]
    return interactions.items[(rng.random((len(cut), size)) * position).astype(np.int64)]


def _staleness(sequences: Sequences, cut: Ints, rng: np.random.Generator) -> Ints:
    """Behaviors newer than the clustering: often none or few, at most MAX_NEWER."""
    few = rng.integers(0, 9, len(cut))
    many = rng.integers(0, MAX_NEWER + 1, len(cut))
    newer = np.where(rng.random(len(cut)) < 0.5, few, many)
    stale: Ints = np.minimum(newer, cut - sequences.start[cut])
    return stale


@kernel
def _admit(
    items: Rows,
    begin: Ints,
    cut: Ints,
    end: Ints,
    candidates: Rows,
    positives: int,
    weights: Floats,
) -> None:
    """Weigh candidates: 1, or 0 for those that may not stand in the request.

    A positive (the first columns) may not be among the items [begin, cut) of its basket, a negative
    not among those in [begin, end), and nothing may stand twice.
    """
    for r in range(len(cut)):
        for b in range(candidates.shape[1]):
            item = candidates[r, b]
            until = cut[r] if b < positives else end[r]
            good = item > 0
            for i in range(begin[r], until):
                good = good and items[i] != item
            for other in range(b):
                good = good and candidates[r, other] != item
            weights[r, b] = good


@dataclass(frozen=True)
class Batch:
    """R requests gathered: ragged clusters, dense rest (K' interest slots a request)."""

    member_rows: Ints
    """i64[N]: row of each cluster member."""
    member_counts: Floats
    """f32[N]: behaviors that it stands for."""
    member_cluster: Ints
    """i64[N], ascending."""
    centers: Floats
    """f32[C, m], unit length."""
    slot: Ints
    """i64[C]: request * K' + place among the request's interests."""
    interest_mask: Floats
    """f32[R, K']."""
    recent: Ints
    """i64[R, M]: rows, newest last."""
    recent_mask: Floats
    """f32[R, M]."""
    user: Floats
    """f32[R, u]."""
    candidates: Ints
    """i64[R, B]: rows, 0 for items newer than the bundle."""
    cross: Floats
    """f32[R, B, c]."""
    labels: Floats
    """f32[R, B]."""
    weights: Floats
    """f32[R, B]."""
    anchors: Ints
    """i64[A, 3]: member, and two other members of its request, for the triplet loss."""


@dataclass(frozen=True)
class BatchBuilder:
    """Gathers requests into batches."""

    interactions: Interactions
    sequences: Sequences
    K: int
    L: int
    M: int
    T: int

    def batches(
        self, requests: Requests, size: int, projected: Any, rng: np.random.Generator
    ) -> Iterator[Batch]:
        """Batches of ``size`` requests; ``projected()`` gives f32[n + 1, m] at the moment."""
        for begin in range(0, len(requests.cut), size):
            yield self.batch(requests.part(slice(begin, begin + size)), projected(), rng)

    def batch(self, requests: Requests, projected: Floats, rng: np.random.Generator) -> Batch:
        """Gather requests, clustering each user's behaviors in the projected space.

        Args:
            projected: f32[n + 1, m], the item table's projection.
            rng: chooses the anchors of the triplet loss.
        """
        sequences, interactions = self.sequences, self.interactions
        with np.errstate(over="ignore", invalid="ignore"):  # the loss tells of divergence
            norm = np.linalg.norm(projected, axis=1, keepdims=True)
            directions = (projected / np.maximum(norm, 1e-12)).astype(np.float32)
        start = sequences.start[requests.cut]
        window = np.maximum(start, requests.as_of - self.L)
        known = _known_rows(
            sequences.items, interactions.first_seen, window, requests.cut, requests.bundle
        )
        starts = np.cumsum(requests.cut - window) - (requests.cut - window)
        rows, counts, cluster, centers, owner, place = cluster_requests(
            known,
            starts,
            requests.as_of - window,
            requests.cut - window,
            directions,
            self.K,
            self.T,
        )
        bought, last = gather_counts(
            sequences.items,
            sequences.times,
            window,
            requests.cut,
            requests.candidates,
            len(interactions.item_ids),
        )
        recent, recent_mask = self._recent(requests)
        R = len(requests.cut)
        width = int(place.max(initial=0)) + 1
        slot = owner * width + place
        mask = np.zeros((R, width), np.float32)
        mask.reshape(-1)[slot] = 1
        now_s = sequences.times[requests.cut].astype(np.float64)
        count = requests.cut - start
        previous = sequences.times[np.maximum(requests.cut - 1, 0)].astype(np.float64)
        bundle = requests.bundle[:, None]
        unknown = interactions.first_seen[requests.candidates] >= bundle
        popularity = interactions.popularity(requests.candidates, bundle)
        return Batch(
            member_rows=rows,
            member_counts=counts,
            member_cluster=cluster,
            centers=centers,
            slot=slot,
            interest_mask=mask,
            recent=recent,
            recent_mask=recent_mask,
            user=user_columns(count, previous, now_s),
            candidates=np.where(unknown, 0, requests.candidates).astype(np.int64),
            cross=cross_columns(bought, last, popularity, now_s[:, None]),
            labels=requests.labels,
            weights=requests.weights,
            anchors=_anchors(owner[cluster], rng),
        )

    def _recent(self, requests: Requests) -> tuple[Ints, Floats]:
        """Rows i64[R, M] of the newest behaviors, newest last, and their mask f32[R, M]."""
        index = requests.cut[:, None] + np.arange(-self.M, 0)
        mask = index >= self.sequences.start[requests.cut][:, None]
        items = self.sequences.items[np.maximum(index, 0)]
        known = self.interactions.first_seen[items] < requests.bundle[:, None]
        return np.where(mask & known, items, 0).astype(np.int64), mask.astype(np.float32)


def _anchors(owner: Ints, rng: np.random.Generator, share: int = 4) -> Ints:
    """A part of the members, each with two random others of the same request (Eq. 5).

    Args:
        owner: i64[N], ascending: the request of each member.
        share: one member in so many becomes an anchor; their loss is a mean, so that a part of
            them estimates it.
    """
    sizes = np.bincount(owner) if len(owner) else np.zeros(1, np.int64)
    starts = np.cumsum(sizes) - sizes
    anchor = np.flatnonzero((rng.random(len(owner)) < 1.0 / share) & (sizes[owner] >= 3))
    size, start = sizes[owner[anchor]], starts[owner[anchor]]
    place = anchor - start
    step = rng.integers(1, size)
    skip = rng.integers(1, size - 1)
    skip += skip >= step
    first = start + (place + step) % size
    second = start + (place + skip) % size
    return np.stack([anchor, first, second], axis=1).astype(np.int64)


@kernel
def _known_rows(items: Rows, first_seen: Ints, begin: Ints, end: Ints, bundle: Ints) -> Rows:
    """The rows of items [begin, end) of every request, end to end; 0 for items newer than the
    request's bundle.
    """
    rows = np.empty((end - begin).sum(), np.int32)
    at = 0
    for r in range(len(begin)):
        for i in range(begin[r], end[r]):
            rows[at] = items[i] if first_seen[items[i]] < bundle[r] else 0
            at += 1
    return rows


@kernel
def gather_counts(
    items: Rows, times: Ints, begin: Ints, end: Ints, candidates: Rows, n_items: int
) -> tuple[Floats, npt.NDArray[np.float64]]:
    """How often (f32[R, B]) and when last (f64[R, B], seconds) each candidate occurs in
    [begin, end) of its request, whether or not the bundle knows the item.
    """
    counts = np.zeros(candidates.shape, np.float32)
    last = np.zeros(candidates.shape, np.float64)
    count_of = np.zeros(n_items, np.float32)
    last_of = np.zeros(n_items, np.float64)
    for r in range(len(begin)):
        for i in range(begin[r], end[r]):
            count_of[items[i]] += 1
            last_of[items[i]] = times[i]
        for b in range(candidates.shape[1]):
            counts[r, b] = count_of[candidates[r, b]]
            last[r, b] = last_of[candidates[r, b]]
        for i in range(begin[r], end[r]):
            count_of[items[i]] = 0
            last_of[items[i]] = 0
    return counts, last
