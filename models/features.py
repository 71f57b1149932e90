"""Features of a user and of a (user, candidate) pair, by one code for training and for serving.

Target attention compares embeddings and forgets how often an item was bought: "bought before" is
the strongest signal of a repeat purchase and needs features of its own. All values are scaled to
[0, 1] (ENCODE, section 3, embedding layer).

Where data tell actions apart and some of them are positive (a like, a right answer), each item has
a rate, the share of positive ones among its behaviors, and so has each user, over the last L of
theirs (`Rates`). How good an item is and how easily a user is pleased is known before any
attention, and embeddings learn it slowly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from infra.arrays import F32, F64, I8, I64, U32, U64, Bools
from infra.compiling import kernel
from models.kernels.lookup import fill_kernel, find_kernel

CROSS_FEATURES: Final = ("bought", "count", "recency_day", "recency_month", "popularity")
"""Columns of `cross_features`."""

USER_FEATURES: Final = ("known", "count", "gap_hour", "gap_month")
"""Columns of `user_features`."""

RATE: Final = "rate"
"""The column behind those of `cross_features`, the item's rate, and behind those of
`user_features`, the user's; both or none."""

DWELL_BUCKETS: Final = 16
"""Dwell times in powers of two, from below a second to nine hours; bucket 0: not recorded."""

AGE_BUCKETS: Final = 24
"""Ages of behaviors in powers of two seconds, from below 2 s to half a year and more; bucket 0: of
no behavior."""

ITEM_PRIOR: Final = 20.0
"""Behaviors of an average item by which an item's rate is smoothed."""

USER_PRIOR: Final = 10.0
"""Behaviors of an average user by which a user's rate is smoothed."""

PER_MILLION: Final = 1e6
"""Unit of popularity: how many of a million training behaviors are of the item."""

_DAY_S: Final = 86_400.0
_MONTH_S: Final = 30 * _DAY_S
_LOG_COUNT: Final = float(np.log1p(10_000))
_LOG_POPULARITY: Final = float(np.log1p(PER_MILLION))


class History(NamedTuple):
    """How often and when last a user had to do with each distinct item (n of them)."""

    item_keys: U64
    """u64[n], ascending: `infra.behaviors.item_key` of the items."""
    counts: npt.NDArray[np.unsignedinteger]
    """Unsigned [n]: behaviors on the item."""
    last: U32
    """u32[n]: time of the latest of them, seconds since epoch."""


class Rates(msgspec.Struct, frozen=True):
    """What makes a rate: the positive actions, and what smooths their share.

    A behavior whose action is unknown counts for no rate.

    >>> rates = Rates(positive=("right",), base=0.6, item_prior=20.0, user_prior=10.0)
    >>> rates.of_users(np.array([0, 8]), np.array([0, 10])).round(3)
    array([0.6, 0.7], dtype=float32)
    """

    positive: tuple[str, ...]
    """Names of the positive actions."""
    base: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """Share of positive ones among the training behaviors: the rate of whom nothing is known."""
    item_prior: Annotated[float, msgspec.Meta(ge=0)] = ITEM_PRIOR
    """Behaviors at the rate ``base`` that each item has besides."""
    user_prior: Annotated[float, msgspec.Meta(gt=0)] = USER_PRIOR
    """Behaviors at the rate ``base`` that each user has besides."""

    def kinds(self, actions: Sequence[str]) -> tuple[Bools, Bools]:
        """Which actions are positive, and which count at all.

        Args:
            actions: A names, that of the unknown action ("") first.

        Returns:
            bool[A] each.
        """
        return np.isin(actions, self.positive), np.array([bool(name) for name in actions])

    def of_items(self, positive: npt.NDArray[np.integer], counted: npt.NDArray[np.integer]) -> F32:
        """Rates of items from what was positive of their behaviors, and what counts; [...]."""
        return _smoothed(positive, counted, self.base, self.item_prior)

    def of_users(self, positive: npt.NDArray[np.integer], counted: npt.NDArray[np.integer]) -> F32:
        """Rates of users from what was positive of their last L behaviors, and what counts; [...].

        Training and services both ask this, and nothing else, for the user's rate.
        """
        return _smoothed(positive, counted, self.base, self.user_prior)


def _smoothed(
    positive: npt.NDArray[np.integer], counted: npt.NDArray[np.integer], base: float, prior: float
) -> F32:
    rate: F32 = ((positive + prior * base) / (counted + prior)).astype(np.float32)
    return rate


def dwell_bucket(dwell_s: F32) -> I8:
    """Bucket of each dwell time: 0 for none, else 1 + log2 of the seconds, clipped; any shape.

    >>> dwell_bucket(np.array([0, 0.5, 1, 5, 1e6], np.float32)).tolist()
    [0, 1, 1, 3, 15]
    """
    bucket = 1 + np.floor(np.log2(np.maximum(dwell_s, 1.0)))
    return np.where(dwell_s > 0, np.minimum(bucket, DWELL_BUCKETS - 1), 0).astype(np.int8)


def age_bucket(age_s: I64) -> I8:
    """Bucket of each age in whole seconds, from 1: 1 + log2 of them, clipped; 0 for 0; any shape.

    >>> age_bucket(np.array([0, 1, 2, 3, 4, 10**9])).tolist()
    [0, 1, 2, 2, 3, 23]
    """
    _, exponents = np.frexp(age_s.astype(np.float64))
    return np.minimum(exponents, AGE_BUCKETS - 1).astype(np.int8)


def ages_s(times_s: I64, now_s: int | I64) -> I64:
    """Ages of behaviors in whole seconds, 1 at least: of what is from the same second, or the
    future.
    """
    return np.maximum(now_s - times_s, 1)


def feature_names(rates: Rates | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns of `user_features` and of `cross_features`, with rates or without."""
    more = () if rates is None else (RATE,)
    return (*USER_FEATURES, *more), (*CROSS_FEATURES, *more)


EMPTY_HISTORY: Final = History(
    np.empty(0, np.uint64), np.empty(0, np.uint16), np.empty(0, np.uint32)
)
"""The history of a user of whom nothing is known."""


def cross_features(
    candidate_keys: U64,
    popularity: F32,
    history: History,
    now_ms: int,
    rates: F32 | None = None,
) -> F32:
    """Features of pairs: what the user's history says about each candidate itself.

    Items are compared by key, so that an item outside the bundle's vocabulary counts as bought
    before like any other.

    Args:
        candidate_keys: u64[B].
        popularity: f32[B], behaviors per million (`models.bundle.Bundle.popularity`), 0 if unknown.
        history: the user's history over the last L behaviors.
        now_ms: time of the request, ms since epoch.
        rates: f32[B], the candidates' rates; None: the network sees none.

    Returns:
        f32[B, c], columns as in CROSS_FEATURES: bought before (0 or 1); logarithm of the number of
        times; nearness of the last time at the scale of days and of months (1: now, 0: never);
        logarithm of popularity. Behind them RATE, if any.
    """
    counts = np.zeros(len(candidate_keys), np.float32)
    last_s = np.zeros(len(candidate_keys), np.float64)
    _met_kernel(
        # One kind of array each, since every other would be compiled for anew.
        np.array(candidate_keys, np.uint64),
        np.array(history.item_keys, np.uint64),
        history.counts.astype(np.float32),
        history.last.astype(np.float64),
        counts,
        last_s,
    )
    return cross_columns(counts, last_s, popularity, now_ms / 1000.0, rates)


@kernel
def _met_kernel(  # kernels take nothing by name
    candidate_keys: U64, item_keys: U64, counts: F32, last_s: F64, met: F32, latest_s: F64
) -> None:
    """How often each candidate was met, into f32[B], and when last, into f64[B]; both are 0.

    The history is put into a hash table first: candidates come in no order, and a search among
    sorted keys mispredicts nearly every step.
    """
    size = 2
    while size < 2 * len(item_keys):
        size *= 2
    slot_keys, slot_rows = np.empty(size, np.uint64), np.zeros(size, np.int32)
    fill_kernel(item_keys, slot_keys, slot_rows)
    rows = np.empty(len(candidate_keys), np.int32)
    find_kernel(candidate_keys, slot_keys, slot_rows, rows)
    for i in range(len(rows)):
        if rows[i]:
            met[i], latest_s[i] = counts[rows[i] - 1], last_s[rows[i] - 1]


def cross_columns(
    counts: F32,
    last_s: F64,
    popularity: F32,
    now_s: float | F64,
    rates: F32 | None = None,
) -> F32:
    """`cross_features` of pairs whose counts (0: never) and last times are known; any shape [...].

    Returns:
        f32[..., c].
    """
    shape = counts.shape
    features = np.zeros((*shape, len(CROSS_FEATURES) + (rates is not None)), np.float32)
    _cross_kernel(
        np.array(counts, np.float32).reshape(-1),
        np.array(last_s, np.float64).reshape(-1),
        np.array(popularity, np.float32).reshape(-1),
        np.array(np.broadcast_to(now_s, shape), np.float64).reshape(-1),
        features.reshape(-1, features.shape[-1]),
    )
    if rates is not None:
        features[..., 5] = rates
    return features


@kernel
def _cross_kernel(counts: F32, last_s: F64, popularity: F32, now_s: F64, features: F32) -> None:
    """The loop of `cross_columns` over n pairs, into zeros f32[n, c]: one pass where numpy makes a
    dozen.
    """
    for i in range(len(counts)):
        if counts[i] > 0:  # which few are
            age_s = max(now_s[i] - last_s[i], 0.0)
            features[i, 0] = 1.0
            features[i, 1] = math.log1p(counts[i]) / _LOG_COUNT
            features[i, 2] = 1.0 / (1.0 + age_s / _DAY_S)
            features[i, 3] = 1.0 / (1.0 + age_s / _MONTH_S)
        features[i, 4] = math.log1p(popularity[i]) / _LOG_POPULARITY


def user_features(count: int, last_time_ms: int, now_ms: int, rate: F32 | None = None) -> F32:
    """Features of the user, which do not depend on the candidate.

    Args:
        count: behaviors of the user ever applied; 0: unknown user.
        last_time_ms: event time of the newest behavior, ms since epoch (ignored if count is 0).
        now_ms: time of the request, ms since epoch.
        rate: f32[], the user's rate (`Rates.of_users`); None: the network sees none.

    Returns:
        f32[u], columns as in USER_FEATURES: known user (0 or 1); logarithm of the number of
        behaviors; nearness of the last behavior at the scale of hours and of months. Behind them
        RATE, if any.
    """
    times = np.array(last_time_ms / 1000.0), np.array(now_ms / 1000.0)
    return user_columns(np.array(count), *times, rate)


def user_columns(
    counts: npt.NDArray[np.integer],
    last_s: F64,
    now_s: F64,
    rates: F32 | None = None,
) -> F32:
    """`user_features` of many users at once; any shape [...], times in seconds.

    Returns:
        f32[..., u].
    """
    features = np.zeros((*counts.shape, len(USER_FEATURES) + (rates is not None)), np.float32)
    _user_kernel(
        np.array(counts, np.int64).reshape(-1),
        np.array(last_s, np.float64).reshape(-1),
        np.array(now_s, np.float64).reshape(-1),
        features.reshape(-1, features.shape[-1]),
    )
    if rates is not None:
        features[..., 4] = rates
    return features


@kernel
def _user_kernel(counts: I64, last_s: F64, now_s: F64, features: F32) -> None:
    """The loop of `user_columns` over n users, into zeros f32[n, u]."""
    for i in range(len(counts)):
        if counts[i] > 0:
            gap_s = max(now_s[i] - last_s[i], 0.0)
            features[i, 0] = 1.0
            features[i, 1] = math.log1p(counts[i]) / _LOG_COUNT
            features[i, 2] = 1.0 / (1.0 + gap_s / 3600.0)
            features[i, 3] = 1.0 / (1.0 + gap_s / _MONTH_S)
