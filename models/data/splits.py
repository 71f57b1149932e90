"""Samples in three parts, for training, validation and test, and the data that they point into.

`split_requests` applies a protocol (`models.data.protocols`) and a division
(`models.data.divisions`). Nothing leaks:

- A sample sees the behaviors of its user before it, and no other.
- The training part ends before validation begins and that before the test: for all users at one
  time (`ByTime`), or for each user (`LastOfUser`, where one user's training may be later than
  another's test, as in the papers that divide so).
- Statistics of items, and the popularity that negatives are drawn by, are those of the training
  part. An item that has no behavior in it is unknown (row 0): a model has never met it, and a
  bundle would not hold it. As a candidate it is replaced here; among behaviors by whoever gathers
  a batch, as in a service: `Split.interactions` has the training part's behaviors in front, and
  every request's `Requests.bundle` is the end of it, so an item first seen later counts as unknown.

Sequences are stored once and samples point into them: a sample costs 16 bytes and 12 a candidate,
whatever the length of its sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import msgspec
import numpy as np

from infra.arrays import F32, I8, I32, I64, Bools
from infra.errors import TrainingError
from models.data.divisions import PARTS, Division, Part, divide, training_first
from models.data.impressions import Impressions
from models.data.interactions import Interactions
from models.data.negatives import Negatives
from models.data.protocols import AnyProtocol, DrawnSamples, NextItem, Rated, Shown, draw_samples
from models.data.requests import Requests, Sequences, sampling_rate
from models.data.selection import Selection, sample_users
from models.data.withholding import Withholding


class AnySplit(Protocol):
    """Samples to learn from and to be measured on: `Split` or `models.data.live.LiveSplit`."""

    @property
    def interactions(self) -> Interactions: ...
    @property
    def sequences(self) -> Sequences: ...
    @property
    def n_training(self) -> int: ...
    @property
    def validation(self) -> Requests: ...
    @property
    def test(self) -> Requests | None: ...
    def epoch(self, number: int) -> Requests: ...
    def users(self, requests: Requests) -> I32: ...
    def history(self, requests: Requests) -> I64: ...
    @property
    def sampling_rate(self) -> float: ...


@dataclass(frozen=True)
class Split:
    """Samples in three parts, and the data that they point into."""

    interactions: Interactions
    """The behaviors of the training part in order of time, then the others in order of time; with
    `Selection.users`, those of the users drawn."""
    sequences: Sequences
    """The same behaviors by user. For impressions each user has one more entry behind their
    behaviors, which no request sees: a request after all behaviors comes right before it."""
    train: Requests
    """Training requests, in no random order; see `epoch`."""
    validation: Requests
    test: Requests
    n_training: int
    """Behaviors of the training part: `Requests.bundle` of every request."""
    selection: Selection
    """How the samples were chosen."""
    negatives: Negatives | None = None
    """Negatives of the next-item protocol; None for the others."""

    @property
    def n_items(self) -> int:
        """Items of the vocabulary, the unknown one (row 0) not counted."""
        return len(self.interactions.item_ids) - 1

    @cached_property
    def known(self) -> Bools:
        """bool[n + 1]: items with a behavior in the training part."""
        return _known(self.interactions.items[: self.n_training], self.n_items)

    @cached_property
    def popularity(self) -> F32:
        """f32[n + 1]: behaviors per million of each item in the training part."""
        rows = np.arange(self.n_items + 1, dtype=np.int32)
        return self.interactions.popularity(rows, self.n_training)

    def users(self, requests: Requests) -> I32:
        """i32[R]: the user of each request, for the GAUC."""
        return self.interactions.users[self.sequences.position[requests.cut]]

    def history(self, requests: Requests) -> I64:
        """i64[R]: behaviors that each request sees."""
        return requests.cut - self.sequences.start[requests.cut]

    @cached_property
    def sampling_rate(self) -> float:
        """`sampling_rate` of the next-item protocol; 1 where the negatives are real."""
        return 1.0 if self.negatives is None else sampling_rate(self.train, self.validation)

    def order(self, number: int) -> I64:
        """i64[R]: the order of training requests in an epoch (0, 1, ...)."""
        rng = np.random.default_rng([self.selection.seed, 10, number])
        return rng.permutation(len(self.train.cut))

    def epoch(self, number: int) -> Requests:
        """The training requests of an epoch (0, 1, ...): in `order`, with negatives and withheld
        items of its own.

        The same number gives the same requests, so that a run can be taken up again.
        """
        requests = self.train.part(self.order(number))
        if self.selection.withheld:
            rng = np.random.default_rng([self.selection.seed, 12, number])
            withheld = Withholding.draw(len(requests.cut), self.selection.withheld, rng)
            requests = requests._replace(withheld=withheld)
        if self.negatives is None or number == 0:
            return requests
        rng = np.random.default_rng([self.selection.seed, 11, number])
        count = requests.candidates.shape[1] - 1
        candidates, weights = self.negatives.draw(
            requests.cut, requests.candidates[:, 0], count, rng
        )
        return requests._replace(candidates=candidates, weights=weights)


def split_requests(
    interactions: Interactions,
    protocol: AnyProtocol,
    division: Division,
    selection: Selection | None = None,
    impressions: Impressions | None = None,
) -> Split:
    """Divide a data set's samples into training, validation and test.

    Args:
        interactions: all behaviors.
        protocol: what a sample is.
        division: which samples are for what.
        selection: which samples are used; None: the defaults of `Selection`.
        impressions: for the protocol `Shown`.

    Raises:
        TrainingError: a part has no sample, or labels of one class, or the data lack what the
            protocol needs.
    """
    selection = selection or Selection()
    if selection.users:
        interactions, impressions = sample_users(interactions, impressions, selection)
    sequences = Sequences.of(interactions)
    drawn = draw_samples(interactions, sequences, protocol, impressions)
    if not len(drawn.cut):
        raise TrainingError(
            f"{len(interactions)} behaviors of {len(interactions.user_ids)} users give no sample; "
            "give more, or another protocol"
        )
    part, learned = divide(sequences, drawn, division)
    interactions, sequences, n_training = training_first(interactions, sequences, learned)
    known = _known(interactions.items[:n_training], len(interactions.item_ids) - 1)
    used = drawn.cut - drawn.start >= selection.min_history
    if isinstance(protocol, NextItem) and protocol.unknown_positives == "skip":
        used &= known[drawn.items]
    rows = [_chosen(part, used, number, selection) for number in range(3)]
    _check_parts(rows, division, selection)
    negatives = None
    if isinstance(protocol, NextItem):
        negatives = Negatives.of(interactions, sequences, n_training, known, protocol)
    if isinstance(protocol, Shown):
        sequences, drawn = _with_ends(sequences, drawn)
    drawn = drawn._replace(items=np.where(known[drawn.items], drawn.items, np.int32(0)))
    train, validation, test = (
        _requests(number, chosen, drawn, n_training, protocol, negatives, selection.seed)
        for number, chosen in enumerate(rows)
    )
    return Split(interactions, sequences, train, validation, test, n_training, selection, negatives)


def _requests(
    number: int,
    chosen: I64,
    drawn: DrawnSamples,
    n_training: int,
    protocol: AnyProtocol,
    negatives: Negatives | None,
    seed: int,
) -> Requests:
    """The requests of one part."""
    cut, items = drawn.cut[chosen], drawn.items[chosen]
    bundle = np.full(len(chosen), n_training, np.int64)
    if negatives is None or not isinstance(protocol, NextItem):
        labels = drawn.labels[chosen, None]
        _check_classes(PARTS[number], labels, protocol)
        weights = np.ones(labels.shape, np.float32)
        times = drawn.times[chosen] if isinstance(protocol, Shown) else None
        return Requests(cut, cut, bundle, items[:, None], labels, weights, times)
    count = protocol.evaluation_negatives if number else protocol.negatives
    rng = np.random.default_rng([seed, number])
    candidates, weights = negatives.draw(cut, items, count, rng)
    labels = np.zeros(candidates.shape, np.float32)
    labels[:, 0] = 1
    return Requests(cut, cut, bundle, candidates, labels, weights)


def _chosen(part: I8, used: Bools, number: int, selection: Selection) -> I64:
    """i64[R]: the samples of a part that are used, ascending."""
    rows = np.flatnonzero((part == number) & used)
    if number and 0 < selection.evaluated < len(rows):
        rng = np.random.default_rng([selection.seed, 30, number])
        rows = np.sort(rng.choice(rows, selection.evaluated, replace=False))
    return rows


def _with_ends(sequences: Sequences, drawn: DrawnSamples) -> tuple[Sequences, DrawnSamples]:
    """Sequences with an entry behind each user's behaviors, and the samples moved along.

    Without it a cut behind a user's last behavior would be the next user's first.
    """
    starts = np.unique(sequences.start)
    ends = np.append(starts[1:], len(sequences.start))
    users = np.arange(len(starts))
    owner = np.repeat(users, ends - starts)
    drawn_owner = np.searchsorted(starts, drawn.start)
    latest = sequences.times[ends - 1]
    np.maximum.at(latest, drawn_owner, drawn.times)
    moved = Sequences(
        items=np.insert(sequences.items, ends, 0),
        times=np.insert(sequences.times, ends, latest),
        # That of the last behavior: whoever looks up the user finds the right one.
        position=np.insert(sequences.position, ends, sequences.position[ends - 1]),
        start=np.insert(sequences.start + owner, ends, starts + users),
        basket=np.insert(sequences.basket + owner, ends, ends + users),
        basket_end=np.insert(sequences.basket_end + owner, ends, ends + users + 1),
    )
    return moved, drawn._replace(cut=drawn.cut + drawn_owner, start=drawn.start + drawn_owner)


def _known(items: I32, n_items: int) -> Bools:
    known = np.zeros(n_items + 1, bool)
    known[items] = True
    known[0] = False
    return known


def _check_parts(rows: list[I64], division: Division, selection: Selection) -> None:
    for name, chosen in zip(PARTS, rows, strict=True):
        if not len(chosen):
            raise TrainingError(
                f"the {name} part has no sample ({msgspec.json.encode(division).decode()}, "
                f"min_history {selection.min_history}); divide otherwise, or give more data"
            )


def _check_classes(name: Part, labels: F32, protocol: AnyProtocol) -> None:
    if labels.min() == labels.max():
        advice = (
            f"value >= {protocol.threshold:g}; set protocol.threshold otherwise"
            if isinstance(protocol, Rated)
            else "give impressions that were taken and others that were not"
        )
        raise TrainingError(
            f"all {len(labels)} labels of the {name} part are {labels.flat[0]:g}: {advice}"
        )
