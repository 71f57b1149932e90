"""Protocols: what is predicted, and the samples that this makes of a data set.

A sample is the user's next item among items drawn at random (`NextItem`), whether they liked what
they rated (`Rated`), or whether they took what they were shown (`Shown`). Protocols are sections of
a TOML file; what is asked of a live service is another, `models.data.live`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from infra.arrays import F32, I32, I64, Bools
from infra.errors import TrainingError
from models.data.impressions import Impressions
from models.data.interactions import Interactions
from models.data.requests import Sequences
from models.data.sections import TaggedSection, at_least


class NextItem(TaggedSection, frozen=True, tag="next_item"):
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
    that an unknown item is always the right one where they are kept."""

    def __post_init__(self) -> None:
        at_least("protocol.negatives", self.negatives, 1)
        at_least("protocol.evaluation_negatives", self.evaluation_negatives, 1)


class Rated(TaggedSection, frozen=True, tag="rated"):
    """Whether a user likes an item that they rate: one candidate a request.

    Every behavior with a value is a sample; all behaviors are seen, whatever their value.
    """

    threshold: float = 4.0
    """The label is 1 if the value is this or more."""


class Shown(TaggedSection, frozen=True, tag="shown"):
    """Whether a user takes an item that they are shown: one candidate a request, from impressions.

    A sample sees the behaviors before its time, strictly: what it led to has its own time or later.
    """


AnyProtocol: TypeAlias = NextItem | Rated | Shown


class DrawnSamples(NamedTuple):
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
    """f32[S]: 1 for positives, else 0."""


def draw_samples(
    interactions: Interactions,
    sequences: Sequences,
    protocol: AnyProtocol,
    impressions: Impressions | None,
) -> DrawnSamples:
    """The samples that a protocol makes of a data set, whatever they will be for.

    Args:
        interactions: all behaviors.
        sequences: the same by user.
        protocol: what a sample is.
        impressions: for the protocol `Shown`.

    Raises:
        TrainingError: the data lack what the protocol needs.
    """
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
    return DrawnSamples(
        target=target,
        start=sequences.start[target],
        cut=cut,
        items=sequences.items[target],
        times=sequences.times[target],
        labels=labels,
    )


def _shown(
    interactions: Interactions, sequences: Sequences, impressions: Impressions
) -> DrawnSamples:
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
    return DrawnSamples(
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
