"""Learning for a live service: what its requests will have seen, staleness and age included.

A *request* is a moment of a user: right before their behavior at position p. Its positives are the
next items of the basket (behaviors of one user at one time), its negatives are others that could
have been chosen at that moment. Two things differ between training and a live service, and both are
drawn at random here, so that serving sees what training saw:

- *staleness of interests*: behaviors newer than the last clustering stand beside the clusters as
  interests of their own;
- *age of the bundle*: a bundle in service is older than the newest items. Items that first
  appeared after its making have row 0, and popularity is what it was then.

Negatives are drawn from what was chosen before: items that the bundle knows by their popularity as
it knows it, newer ones by theirs in the last days. So newer items are among the negatives as often
as among the choices of that time, and what row 0 learns to say is what they earn there. Drawn by
popularity over all time they would hardly ever be negatives, for want of a past, and whatever is
unknown would be taken for a sure success.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Final

import msgspec
import numpy as np

from infra.arrays import F32, I32, I64
from infra.compiling import fast_kernel
from infra.errors import TrainingError
from models.data.interactions import Interactions
from models.data.requests import Requests, Sequences, sampling_rate
from models.data.sections import TaggedSection

MAX_NEWER: Final = 63
"""Most behaviors that training leaves newer than the clustering: the service reclusters at 64."""

DAY_S: Final = 86_400

RECENT_S: Final = 7 * DAY_S
"""Time over which it counts how often newer items are chosen. They become more and more while a
bundle is in service, so it is short; and long enough that every day of the week is in it."""


Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Live(TaggedSection, frozen=True, tag="live"):
    """Protocol: the next items of a basket, as a live service would be asked for them."""

    positives: Count = 4
    """Next items of the basket that a request predicts, at most."""
    negatives: Count = 20
    """Other items drawn a request."""
    behaviors_per_request: Count = 4
    """A basket of n behaviors gives about n divided by this many requests an epoch."""
    bundle_age_share: Share = 0.5
    """Share of requests that see a bundle older than the newest items."""
    bundle_age_days: Annotated[float, msgspec.Meta(ge=0)] = 100.0
    """Greatest age of the bundle."""
    burn_in: Share = 0.02
    """First part of the behaviors that gives no requests: there is nothing to learn from yet."""
    validation: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.1
    """Last part of the behaviors, by time, that validates and is not learned from at first."""
    evaluated: Count = 3000
    """Requests of validation, at most."""
    evaluation_negatives: Count = 99
    """Other items a request of validation, beside one positive. So long are the lists that CTRs are
    probabilities of."""
    refit: bool = True
    """Learn again, on everything, for the number of epochs found best: a model for tomorrow should
    know yesterday."""


@dataclass(frozen=True)
class LiveSplit:
    """A data set's live requests: those before ``n_training`` teach, later ones validate.

    It is one kind of `models.data.splits.AnySplit`.
    """

    interactions: Interactions
    """All behaviors, by time."""
    sequences: Sequences
    """The same behaviors by user."""
    n_training: int
    """Behaviors, in order of time, that are learned from."""
    validation: Requests
    config: Live
    seed: int

    @property
    def test(self) -> None:
        """None: the live stream is the test."""
        return

    @cached_property
    def sampling_rate(self) -> float:
        """`models.data.requests.sampling_rate` of the first epoch."""
        return sampling_rate(self.epoch(0), self.validation)

    def users(self, requests: Requests) -> I32:
        """i32[R]: the user of each request."""
        return self.interactions.users[self.sequences.position[requests.cut]]

    def history(self, requests: Requests) -> I64:
        """i64[R]: behaviors that each request sees."""
        return requests.cut - self.sequences.start[requests.cut]

    def epoch(self, number: int) -> Requests:
        """The requests of an epoch (0, 1, ...), in random order; the same number gives the same."""
        rng = np.random.default_rng([self.seed, 2, number])
        requests = training_requests(
            self.interactions, self.sequences, self.config, rng, self.n_training
        )
        if not len(requests.cut):
            raise TrainingError(
                f"{self.n_training} behaviors give no request to learn from; "
                "train on more, or lower protocol.behaviors_per_request"
            )
        return requests

    def whole(self) -> LiveSplit:
        """The split with everything to learn from."""
        return replace(self, n_training=len(self.interactions))


def split_live(interactions: Interactions, config: Live, seed: int) -> LiveSplit:
    """Divide a data set by time.

    Raises:
        TrainingError: the last part gives no request to validate on.
    """
    sequences = Sequences.of(interactions)
    n_training = int(len(interactions) * (1 - config.validation))
    rng = np.random.default_rng([seed, 1])
    validation = evaluation_requests(
        interactions, sequences, n_training, config.evaluated, rng, config.evaluation_negatives
    )
    if not len(validation.cut):
        raise TrainingError(
            f"the last {config.validation:.0%} of {len(interactions)} behaviors give no "
            "request to validate on; train on more behaviors or raise protocol.validation"
        )
    return LiveSplit(interactions, sequences, n_training, validation, config, seed)


def training_requests(
    interactions: Interactions,
    sequences: Sequences,
    config: Live,
    rng: np.random.Generator,
    until: int | None = None,
) -> Requests:
    """An epoch's requests, in random order.

    Args:
        until: requests come before this position of the interactions; None: before their end.

    Positives are the next items of the basket that it does not hold yet; negatives are never an
    item of the basket, be it bought before or after the request. Where the bundle was made right
    before the request no negative can be unknown to it, so that an unknown positive does not count.
    """
    n = len(interactions) if until is None else until
    size = len(interactions)
    drawn = rng.random(size) < 1.0 / config.behaviors_per_request
    inside = (sequences.position >= config.burn_in * n) & (sequences.position < n)
    cut = np.flatnonzero(drawn & inside)
    rng.shuffle(cut)
    age = rng.random(len(cut)) * config.bundle_age_days * DAY_S
    age[rng.random(len(cut)) >= config.bundle_age_share] = 0
    oldest = np.searchsorted(interactions.times, sequences.times[cut] - age.astype(np.int64))
    bundle = np.where(age > 0, oldest, sequences.position[cut])
    ahead = cut[:, None] + np.arange(config.positives)
    ahead_inside = ahead < sequences.basket_end[cut][:, None]
    positives = np.where(ahead_inside, sequences.items[np.minimum(ahead, size - 1)], -1)
    negatives = _others(interactions, sequences, cut, bundle, config.negatives, rng)
    candidates = np.concatenate([positives, negatives], axis=1).astype(np.int32)
    weights = np.empty(candidates.shape, np.float32)
    begin, end = sequences.basket[cut], sequences.basket_end[cut]
    _admit(sequences.items, begin, cut, end, candidates, config.positives, weights)
    fresh = bundle == sequences.position[cut]
    weights[fresh[:, None] & (interactions.first_seen[candidates] >= bundle[:, None])] = 0
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
    """Requests of the demo's kind: one item about to be bought among others, drawn as in training.

    Args:
        begin: the bundle knows the interactions before this position; requests come after it.
        size: requests, at most.
        negatives: other items, none of them in the basket, before or after, nor twice in the list.

    Returns:
        Requests whose first candidate is the positive. A behavior that repeats an item of its own
        basket gives none.
    """
    cut = np.flatnonzero(sequences.position >= begin)
    rng.shuffle(cut)
    cut = cut[: size + size // 4]  # some fall out below
    bundle = np.full(len(cut), begin, np.int64)
    drawn = _others(interactions, sequences, cut, bundle, 4 * negatives, rng)
    candidates = np.concatenate([sequences.items[cut][:, None], drawn], axis=1).astype(np.int32)
    weights = np.empty(candidates.shape, np.float32)
    basket, end = sequences.basket[cut], sequences.basket_end[cut]
    _admit(sequences.items, basket, cut, end, candidates, 1, weights)
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


def _others(
    interactions: Interactions,
    sequences: Sequences,
    cut: I64,
    bundle: I64,
    size: int,
    rng: np.random.Generator,
) -> I32:
    """i32[R, size]: items of random earlier behaviors. That of one of the last days, if it is newer
    than the bundle; otherwise that of one before the bundle.
    """
    items, bundle = interactions.items, bundle[:, None]
    position = np.maximum(sequences.position[cut], 1)[:, None]
    recent = np.searchsorted(interactions.times, sequences.times[cut] - RECENT_S)[:, None]
    begin = np.minimum(np.maximum(recent, bundle), position - 1)
    shape = (len(cut), size)
    newer = items[begin + (rng.random(shape) * (position - begin)).astype(np.int64)]
    known = items[(rng.random(shape) * np.maximum(bundle, 1)).astype(np.int64)]
    drawn: I32 = np.where(interactions.first_seen[newer] >= bundle, newer, known)
    return drawn


def _staleness(sequences: Sequences, cut: I64, rng: np.random.Generator) -> I64:
    """Behaviors newer than the clustering: often none or few, at most MAX_NEWER."""
    few = rng.integers(0, 9, len(cut))
    many = rng.integers(0, MAX_NEWER + 1, len(cut))
    newer = np.where(rng.random(len(cut)) < 0.5, few, many)
    stale: I64 = np.minimum(newer, cut - sequences.start[cut])
    return stale


@fast_kernel
def _admit(
    items: I32,
    begin: I64,
    cut: I64,
    end: I64,
    candidates: I32,
    positives: int,
    weights: F32,
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
