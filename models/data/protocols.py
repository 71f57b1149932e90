"""What is predicted, and what is learned from: a data set's samples in three parts.

A *protocol* says what a sample is: the user's next item among items drawn at random (`NextItem`),
whether they liked what they rated (`Rated`), or whether they took what they were shown (`Shown`).
A *division* says which samples are for training, validation and test: by time (`ByTime`) or the
last of each user (`LastOfUser`). `split_requests` applies both. All are sections of a TOML file.

Nothing leaks:

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

import typing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np

from infra.arrays import F32, F64, I8, I32, I64, Bools
from infra.errors import TrainingError
from models.data.interactions import Attribute, Interactions
from models.data.requests import Requests, Sequences
from models.kernels.compiling import fast_kernel

Part = Literal["training", "validation", "test"]

PARTS: Final[tuple[Part, ...]] = ("training", "validation", "test")

TRIES: Final = 200
"""Draws of one negative before the user's remaining items are looked up instead."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """A section of a TOML file whose key ``kind`` says which one it is."""


class NextItem(Section, frozen=True, tag="next_item"):
    """The item of the next behavior, among items that the user did not choose at that time.

    Every behavior is a positive, except one that repeats an item of its own basket (same user, same
    time). The positive is each request's first candidate.
    """

    negatives: int = 1
    """Negatives a training request."""
    evaluation_negatives: int = 99
    """Negatives a request of validation and test."""
    sampling: Literal["uniform", "popularity"] = "popularity"
    """Draw negatives from the items, or from the behaviors, of the training part."""
    exclude: Literal["auto", "seen", "basket"] = "auto"
    """What is never a negative. "seen": items of the user's whole data, later ones too. Where users
    never repeat an item a positive is never among the behaviors, so negatives must not be either,
    or attention learns that "already in the history" means no. "basket": items of the positive's
    basket; where items are repeated, one from the history may well be a negative. "auto": "seen" if
    nobody repeats an item."""
    see_basket: bool = True
    """Whether a sample sees the part of its basket that stands before it."""
    unknown_positives: Literal["skip", "keep"] = "skip"
    """Positives that the training part does not know: none of the negatives is of that kind, so
    to keep them measures how row 0 was initialized."""

    def __post_init__(self) -> None:
        _at_least("protocol.negatives", self.negatives, 1)
        _at_least("protocol.evaluation_negatives", self.evaluation_negatives, 1)


class Rated(Section, frozen=True, tag="rated"):
    """Whether a user likes an item that they rate: one candidate a request.

    Every behavior with a value is a sample; all behaviors are seen, whatever their value.
    """

    threshold: float = 4.0
    """The label is 1 if the value is this or more."""


class Shown(Section, frozen=True, tag="shown"):
    """Whether a user takes an item that they are shown: one candidate a request, from impressions.

    A sample sees the behaviors before its time, strictly: what it led to has its own time or later.
    """


Protocol: TypeAlias = NextItem | Rated | Shown


class ByTime(Section, frozen=True, tag="time"):
    """The last samples of all users; samples of one time are never divided."""

    validation: float = 0.1
    """Share of the samples, right before the test."""
    test: float = 0.1
    """Share of the samples, the latest."""

    def __post_init__(self) -> None:
        for key in ("validation", "test"):
            if not 0 < getattr(self, key) < 1:
                raise TrainingError(
                    f"split.{key} is {getattr(self, key)}; it is a share between 0 and 1"
                )
        if self.validation + self.test >= 1:
            raise TrainingError(
                f"split.validation and split.test are {self.validation + self.test:g} together; "
                "leave a share for training"
            )


class LastOfUser(Section, frozen=True, tag="last"):
    """The last samples of each user."""

    validation: int = 1
    """Samples of each user right before their test."""
    test: int = 1
    """Samples of each user, the latest."""

    def __post_init__(self) -> None:
        _at_least("split.validation", self.validation, 1)
        _at_least("split.test", self.test, 1)


Division: TypeAlias = ByTime | LastOfUser


class Samples(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which of the samples are used."""

    users: int = 0
    """Users drawn at random, as if there were no others; 0: all."""
    min_history: int = 1
    """Samples that see fewer behaviors are left out."""
    evaluated: int = 0
    """Requests of validation, and of test, at most (drawn at random); 0: all."""
    seed: int = 0
    """Of users, negatives, evaluated requests and the order of an epoch."""

    def __post_init__(self) -> None:
        _at_least("samples.users", self.users, 0)
        _at_least("samples.min_history", self.min_history, 0)
        _at_least("samples.evaluated", self.evaluated, 0)


class Impressions(typing.Protocol):
    """What users were shown, S items in any order; `models.readers.logs` reads them."""

    @property
    def users(self) -> I32:
        """i32[S]: rows of `Interactions.user_ids`, -1 for others.

        Users without behaviors are left out: there is nothing to learn from their sequences.
        """

    @property
    def items(self) -> I32:
        """i32[S]: rows of `Interactions.item_ids`, 0 for others."""

    @property
    def times(self) -> I64:
        """i64[S], seconds since epoch."""

    @property
    def labels(self) -> F32:
        """f32[S]: 1 if taken, else 0."""


class ShownItems(NamedTuple):
    """Impressions as plain arrays."""

    users: I32
    items: I32
    times: I64
    labels: F32


@dataclass(frozen=True)
class Negatives:
    """Draws negatives: from a pool, without the excluded, none twice in a request."""

    pool: I32
    """i32[P]: an item occurs as often as it should be drawn."""
    excluded: I32
    """i32[X]: runs of items that are never drawn together, each run ascending."""
    begin: I64
    """i64[N]: where the run of each behavior of the sequences begins."""
    end: I64
    """i64[N]: where it ends, exclusive."""

    def draw(
        self, cut: I64, positives: I32, count: int, rng: np.random.Generator
    ) -> tuple[I32, F32]:
        """Candidates i32[R, 1 + count], the positive first, and their weights f32[R, 1 + count].

        Where a user leaves fewer items to draw, the missing ones are row 0 of weight 0.

        Args:
            cut: i64[R].
            positives: i32[R].
            count: negatives a request.
        """
        candidates = np.zeros((len(cut), 1 + count), np.int32)
        candidates[:, 0] = positives
        weights = np.zeros(candidates.shape, np.float32)
        weights[:, 0] = 1
        begin, end = self.begin[cut], self.end[cut]
        _draw(self.pool, self.excluded, begin, end, rng, candidates, weights)
        for r in np.flatnonzero(weights.min(axis=1) == 0):  # few: nearly everything is excluded
            taken = np.concatenate([self.excluded[begin[r] : end[r]], candidates[r]])
            items, chances = self._shares
            chances = np.where(np.isin(items, taken), 0.0, chances)
            missing = np.flatnonzero(weights[r] == 0)[: np.count_nonzero(chances)]
            if len(missing):
                drawn = rng.choice(items, len(missing), replace=False, p=chances / chances.sum())
                candidates[r, missing] = drawn
                weights[r, missing] = 1
        return candidates, weights

    @cached_property
    def _shares(self) -> tuple[I32, F64]:
        items, counts = np.unique(self.pool, return_counts=True)
        return items, counts / len(self.pool)


@dataclass(frozen=True)
class Split:
    """Samples in three parts, and the data that they point into."""

    interactions: Interactions
    """The behaviors of the training part in order of time, then the others in order of time; to
    users and items of `Samples.users` alone."""
    sequences: Sequences
    """The same by user. For impressions each user has one more entry behind their behaviors, which
    no request sees: a request after all behaviors comes right before it."""
    train: Requests
    """In no random order; see `epoch`."""
    validation: Requests
    test: Requests
    n_training: int
    """Behaviors of the training part: `Requests.bundle` of every request."""
    samples: Samples
    """How they were chosen."""
    negatives: Negatives | None = None
    """Of the next-item protocol."""

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

    def order(self, number: int) -> I64:
        """i64[R]: the order of training requests in an epoch (0, 1, ...)."""
        rng = np.random.default_rng([self.samples.seed, 10, number])
        return rng.permutation(len(self.train.cut))

    def epoch(self, number: int) -> Requests:
        """The training requests of an epoch (0, 1, ...): in `order`, with negatives of its own.

        The same number gives the same requests, so that a run can be taken up again.
        """
        requests = self.train.part(self.order(number))
        if self.negatives is None or number == 0:
            return requests
        rng = np.random.default_rng([self.samples.seed, 11, number])
        count = requests.candidates.shape[1] - 1
        candidates, weights = self.negatives.draw(
            requests.cut, requests.candidates[:, 0], count, rng
        )
        return requests._replace(candidates=candidates, weights=weights)


def split_requests(
    interactions: Interactions,
    protocol: Protocol,
    division: Division,
    samples: Samples | None = None,
    impressions: Impressions | None = None,
) -> Split:
    """Divide a data set's samples into training, validation and test.

    Args:
        interactions: all behaviors.
        protocol: what a sample is.
        division: which of them are for what.
        samples: which are used; None: as `Samples` has it.
        impressions: for the protocol `Shown`.

    Raises:
        TrainingError: a part has no sample, or labels of one class, or the data lack what the
            protocol needs.
    """
    samples = samples or Samples()
    if samples.users:
        interactions, impressions = sample_users(interactions, impressions, samples)
    sequences = Sequences.of(interactions)
    drawn = _draw_samples(interactions, sequences, protocol, impressions)
    if not len(drawn.cut):
        raise TrainingError(
            f"{len(interactions)} behaviors of {len(interactions.user_ids)} users give no sample; "
            "give more, or another protocol"
        )
    part, learned = _divide(sequences, drawn, division)
    interactions, sequences, n_training = _training_first(interactions, sequences, learned)
    known = _known(interactions.items[:n_training], len(interactions.item_ids) - 1)
    used = drawn.cut - drawn.start >= samples.min_history
    if isinstance(protocol, NextItem) and protocol.unknown_positives == "skip":
        used &= known[drawn.items]
    rows = [_chosen(part, used, number, samples) for number in range(3)]
    _check_parts(rows, division, samples)
    negatives = None
    if isinstance(protocol, NextItem):
        negatives = _negatives(interactions, sequences, n_training, known, protocol)
        _check_pool(protocol, int(np.count_nonzero(known)))
    if isinstance(protocol, Shown):
        sequences, drawn = _with_ends(sequences, drawn)
    drawn = drawn._replace(items=np.where(known[drawn.items], drawn.items, np.int32(0)))
    train, validation, test = (
        _requests(number, chosen, drawn, n_training, protocol, negatives, samples.seed)
        for number, chosen in enumerate(rows)
    )
    return Split(interactions, sequences, train, validation, test, n_training, samples, negatives)


def _requests(
    number: int,
    chosen: I64,
    drawn: _Drawn,
    n_training: int,
    protocol: Protocol,
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


def sample_users(
    interactions: Interactions, impressions: Impressions | None, samples: Samples
) -> tuple[Interactions, Impressions | None]:
    """The data of ``samples.users`` users, as if there were no others: a small data set.

    Users and items are numbered anew by their first behavior; items that only others chose are
    gone, and impressions of them show row 0.
    """
    present = np.unique(interactions.users)
    if samples.users >= len(present):
        return interactions, impressions
    rng = np.random.default_rng([samples.seed, 20])
    kept = np.zeros(len(interactions.user_ids), bool)
    kept[rng.choice(present, samples.users, replace=False)] = True
    rows = np.flatnonzero(kept[interactions.users])
    users, user_of = _renumber(interactions.users[rows], len(interactions.user_ids))
    items, item_of = _renumber(interactions.items[rows], len(interactions.item_ids))
    items_and_unknown = np.append(0, items)
    sampled = replace(
        interactions,
        user_ids=[interactions.user_ids[row] for row in users],
        item_ids=[interactions.item_ids[row] for row in items_and_unknown],
        titles=[interactions.titles[row] for row in items_and_unknown],
        users=user_of[interactions.users[rows]],
        items=item_of[interactions.items[rows]] + np.int32(1),
        times=interactions.times[rows],
        actions=None if interactions.actions is None else interactions.actions[rows],
        dwell_s=None if interactions.dwell_s is None else interactions.dwell_s[rows],
        values=None if interactions.values is None else interactions.values[rows],
        item_attributes=_rows_of(interactions.item_attributes, items_and_unknown),
        user_attributes=_rows_of(interactions.user_attributes, users),
    )
    if impressions is None:
        return sampled, None
    # -1, a user without behaviors, would be the last one.
    mine = np.flatnonzero((impressions.users >= 0) & kept[impressions.users])
    return sampled, ShownItems(
        users=user_of[impressions.users[mine]],
        items=item_of[impressions.items[mine]] + np.int32(1),
        times=impressions.times[mine],
        labels=impressions.labels[mine],
    )


def _renumber(rows: I32, size: int) -> tuple[I64, I32]:
    """Distinct rows by first occurrence, and each old row's new number (-1 for the others)."""
    values, first = np.unique(rows, return_index=True)
    distinct: I64 = values[np.argsort(first)].astype(np.int64)
    number = np.full(size, -1, np.int32)
    number[distinct] = np.arange(len(distinct))
    return distinct, number


def _rows_of(attributes: dict[str, Attribute], rows: I64) -> dict[str, Attribute]:
    return {name: Attribute(each.values, each.rows[rows]) for name, each in attributes.items()}


class _Drawn(NamedTuple):
    """S samples by user and then by time; indices are of the sequences."""

    target: I64
    """i64[S]: behaviors before it are earlier than the sample."""
    start: I64
    """i64[S]: where the sample's user starts."""
    cut: I64
    """i64[S]: behaviors before it are seen."""
    items: I32
    """i32[S]: what is predicted."""
    times: I64
    """i64[S], seconds since epoch."""
    labels: F32
    """f32[S]."""


def _draw_samples(
    interactions: Interactions,
    sequences: Sequences,
    protocol: Protocol,
    impressions: Impressions | None,
) -> _Drawn:
    if isinstance(protocol, Shown):
        if impressions is None:
            raise TrainingError(
                'protocol.kind is "shown", but the data hold no impressions; read logs of them, '
                'or take "next_item"'
            )
        return _shown(interactions, sequences, impressions)
    if isinstance(protocol, Rated):
        if interactions.values is None:
            raise TrainingError(
                'protocol.kind is "rated", but the behaviors have no values; name the column that '
                'holds them, or take "next_item"'
            )
        values = interactions.values[sequences.position]
        target = np.flatnonzero(~np.isnan(values))
        labels, cut = (values[target] >= protocol.threshold).astype(np.float32), target
    else:
        target = np.flatnonzero(~_repeats(sequences, len(interactions.item_ids)))
        labels = np.ones(len(target), np.float32)
        cut = target if protocol.see_basket else sequences.basket[target]
    return _Drawn(
        target=target,
        start=sequences.start[target],
        cut=cut,
        items=sequences.items[target],
        times=sequences.times[target],
        labels=labels,
    )


def _shown(interactions: Interactions, sequences: Sequences, impressions: Impressions) -> _Drawn:
    """Samples of impressions: behaviors before their time, found by one search for all users."""
    users = interactions.users[sequences.position]
    present = np.isin(impressions.users, users)
    order = np.flatnonzero(present)
    order = order[np.lexsort((impressions.times[order], impressions.users[order]))]
    owner, times = impressions.users[order].astype(np.int64), impressions.times[order]
    # Times become ranks among both, so that (user, time) fits into one integer.
    moments = np.unique(np.concatenate([sequences.times, times]))
    behaviors = users.astype(np.int64) * len(moments) + np.searchsorted(moments, sequences.times)
    cut = np.searchsorted(behaviors, owner * len(moments) + np.searchsorted(moments, times))
    return _Drawn(
        target=cut,
        start=np.searchsorted(users, owner),
        cut=cut,
        items=impressions.items[order],
        times=times,
        labels=impressions.labels[order].astype(np.float32),
    )


def _repeats(sequences: Sequences, n: int) -> Bools:
    """bool[N]: whether each behavior's item stands before it in its basket."""
    key = sequences.basket * n + sequences.items
    order = np.argsort(key, kind="stable")
    repeated = np.zeros(len(key), bool)
    repeated[order[1:]] = key[order[1:]] == key[order[:-1]]
    return repeated


def _divide(sequences: Sequences, drawn: _Drawn, division: Division) -> tuple[I8, Bools]:
    """Each sample's part, i8[S] (0, 1, 2), and the behaviors of the training part, bool[N]."""
    size = len(drawn.cut)
    part = np.zeros(size, np.int8)
    if isinstance(division, ByTime):
        ordered = np.sort(drawn.times)
        validation = ordered[int(size * (1 - division.validation - division.test))]
        test = ordered[int(size * (1 - division.test))]
        part += drawn.times >= validation
        part += (drawn.times >= test) & (test > validation)
        return part, sequences.times < validation
    last = np.append(drawn.start[1:] != drawn.start[:-1], True)
    ends = np.flatnonzero(last)
    from_end = np.repeat(ends, np.diff(ends, prepend=-1)) - np.arange(size)
    part += from_end < division.validation + division.test
    part += from_end < division.test
    held_out = np.flatnonzero(part)
    until = np.full(len(sequences.items), len(sequences.items), np.int64)
    np.minimum.at(until, drawn.start[held_out], drawn.target[held_out])
    return part, np.arange(len(until)) < until[sequences.start]


def _training_first(
    interactions: Interactions, sequences: Sequences, learned: Bools
) -> tuple[Interactions, Sequences, int]:
    """The interactions with those of the training part in front.

    Each user's training part is the beginning of their sequence, so the sequences stay as they are,
    but for the positions.
    """
    first = np.empty(len(learned), bool)
    first[sequences.position] = learned
    order = np.argsort(~first, kind="stable")
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    ordered = replace(
        interactions,
        users=interactions.users[order],
        items=interactions.items[order],
        times=interactions.times[order],
        actions=None if interactions.actions is None else interactions.actions[order],
        dwell_s=None if interactions.dwell_s is None else interactions.dwell_s[order],
        values=None if interactions.values is None else interactions.values[order],
    )
    n_training = int(np.count_nonzero(learned))
    return ordered, replace(sequences, position=number[sequences.position]), n_training


def _chosen(part: I8, used: Bools, number: int, samples: Samples) -> I64:
    """i64[R]: the samples of a part that are used, ascending."""
    rows = np.flatnonzero((part == number) & used)
    if number and 0 < samples.evaluated < len(rows):
        rng = np.random.default_rng([samples.seed, 30, number])
        rows = np.sort(rng.choice(rows, samples.evaluated, replace=False))
    return rows


def _negatives(
    interactions: Interactions,
    sequences: Sequences,
    n_training: int,
    known: Bools,
    protocol: NextItem,
) -> Negatives:
    if protocol.sampling == "uniform":
        pool = np.flatnonzero(known).astype(np.int32)
    else:
        pool = interactions.items[:n_training]
    n = len(known)
    by_user = sequences.start * n + sequences.items
    by_user.sort()
    exclude = protocol.exclude
    if exclude == "auto":
        exclude = "basket" if (by_user[1:] == by_user[:-1]).any() else "seen"
    if exclude == "seen":
        # As many entries as behaviors: the runs of users stand where their sequences do.
        begin, end = sequences.start, _user_ends(sequences)
        return Negatives(pool, (by_user % n).astype(np.int32), begin, end)
    by_basket = sequences.basket * n + sequences.items
    by_basket.sort()
    excluded = (by_basket % n).astype(np.int32)
    return Negatives(pool, excluded, sequences.basket, sequences.basket_end)


def _user_ends(sequences: Sequences) -> I64:
    """i64[N]: where the behavior's user ends, exclusive."""
    starts = np.unique(sequences.start)
    ends = np.append(starts[1:], len(sequences.start))
    return np.repeat(ends, ends - starts)


def _with_ends(sequences: Sequences, drawn: _Drawn) -> tuple[Sequences, _Drawn]:
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
        # Of the last behavior: whoever looks up the user finds the right one.
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


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise TrainingError(f"{key} is {value}; it is at least {least}")


def _check_parts(rows: list[I64], division: Division, samples: Samples) -> None:
    for name, chosen in zip(PARTS, rows, strict=True):
        if not len(chosen):
            raise TrainingError(
                f"the {name} part has no sample ({msgspec.json.encode(division).decode()}, "
                f"min_history {samples.min_history}); divide otherwise, or give more data"
            )


def _check_pool(protocol: NextItem, n_known: int) -> None:
    wanted = max(protocol.negatives, protocol.evaluation_negatives)
    if n_known <= wanted:
        raise TrainingError(
            f"the training part has {n_known} items, too few for {wanted} negatives; "
            "lower protocol.negatives and protocol.evaluation_negatives"
        )


def _check_classes(name: Part, labels: F32, protocol: Protocol) -> None:
    if labels.min() == labels.max():
        advice = (
            f"value >= {protocol.threshold:g}; set protocol.threshold otherwise"
            if isinstance(protocol, Rated)
            else "give impressions that were taken and others that were not"
        )
        raise TrainingError(
            f"all {len(labels)} labels of the {name} part are {labels.flat[0]:g}: {advice}"
        )


@fast_kernel
def _draw(
    pool: I32,
    excluded: I32,
    begin: I64,
    end: I64,
    rng: np.random.Generator,
    candidates: I32,
    weights: F32,
) -> None:
    """Fill the candidates behind the first with items of the pool that are neither among
    ``excluded[begin:end]`` (ascending) nor in the request already; weight 0 where none was found.
    """
    for r in range(len(begin)):
        for b in range(1, candidates.shape[1]):
            for _ in range(TRIES):
                item = pool[int(rng.random() * len(pool))]
                low, high = begin[r], end[r]
                while low < high:
                    middle = (low + high) // 2
                    if excluded[middle] < item:
                        low = middle + 1
                    else:
                        high = middle
                good = low == end[r] or excluded[low] != item
                for other in range(b):
                    good = good and candidates[r, other] != item
                if good:
                    candidates[r, b] = item
                    weights[r, b] = 1
                    break
