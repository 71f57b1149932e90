"""Serving's arithmetic stated a second time, plainly: a user's state, and CTRs from it.

It uses numpy and onnxruntime, and nothing of `extractor` and `scorer`, so that the services can be
held against it. Requests of a data set are scored alike, with states as of their clustering.
No torch here: the demo compares, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from infra.arrays import F32, I32, I64, U64, Array
from models.bundle import Bundle
from models.data.requests import Requests, Sequences
from models.features import EMPTY_HISTORY, History, cross_features, user_features
from models.reference import encode, sdim, twin

if TYPE_CHECKING:
    import onnxruntime


class PlainSystem(NamedTuple):
    """What is of one system."""

    extract: Callable[[Bundle, I32], dict[str, Array]]
    """A state's tensors, of the rows of the behaviors' items."""
    feed: Callable[[Bundle, Mapping[str, Array], I32, I32], dict[str, Array]]
    """The scorer graph's own inputs, of a state's tensors (or none), and of the rows of newer
    behaviors and of candidates."""
    keeps_state: bool = True
    """Whether anything is stored of a user besides the behaviors."""


PLAIN: Final[Mapping[str, PlainSystem]] = {
    "encode": PlainSystem(encode.extract, encode.feed),
    "sdim": PlainSystem(sdim.extract, sdim.feed),
    "twin": PlainSystem(twin.extract, twin.feed, keeps_state=False),
}


@dataclass(frozen=True)
class StoredUser:
    """What is stored of a user: an interest state, and the behaviors newer than it."""

    tensors: Mapping[str, Array]
    """What the system stores besides; none where there is no state."""
    recent: U64
    """u64[<= M]: item keys of the newest behaviors that the state covers, newest last."""
    history: History
    """Items of the last L behaviors that the state covers."""
    newer: U64
    """u64: item keys of the behaviors newer than the state, oldest first."""
    newer_times: I64
    """i64, ms since epoch: their event times."""
    count: int
    """Behaviors of the user ever applied, the newer ones included."""
    last_time_ms: int
    """Event time of the newest behavior, ms since epoch."""


def score_stored(
    bundle: Bundle,
    session: onnxruntime.InferenceSession,
    user: StoredUser | None,
    candidates: U64,
    now_ms: int,
) -> F32:
    """CTRs f32[B] of candidates (item keys u64[B]) for a stored user, or (None) for a stranger."""
    rows = bundle.rows(candidates)
    M, d = bundle.manifest.M, bundle.manifest.d
    keys = newer = np.empty(0, np.uint64)
    tensors: Mapping[str, Array] = {}
    history, features = EMPTY_HISTORY, user_features(0, 0, now_ms)
    if user is not None:
        tensors, newer = user.tensors, user.newer
        keys = np.concatenate([user.recent, newer])[-M:]
        history = add_to_history(user.history, newer, user.newer_times)
        features = user_features(user.count, user.last_time_ms, now_ms)
    recent, recent_mask = bundle.embeddings[bundle.rows(keys)], np.ones(len(keys), np.float32)
    if not len(keys):
        recent, recent_mask = np.zeros((1, d), np.float32), np.zeros(1, np.float32)
    feed = {
        **PLAIN[bundle.manifest.system].feed(bundle, tensors, bundle.rows(newer), rows),
        "recent": recent,
        "recent_mask": recent_mask,
        "user": features,
        "candidates": bundle.embeddings[rows],
        "cross": cross_features(candidates, bundle.popularity[rows], history, now_ms),
    }
    (ctrs,) = session.run(None, feed)
    return np.asarray(ctrs, np.float32)


def add_to_history(history: History, item_keys: U64, times_ms: I64) -> History:
    """A history with further behaviors counted in; a repeated item keeps its later time."""
    if not len(item_keys):
        return history
    keys = np.concatenate([history.item_keys, item_keys])
    counts = np.concatenate([history.counts.astype(np.int64), np.ones(len(item_keys), np.int64)])
    last = np.concatenate([history.last.astype(np.int64), times_ms // 1000])
    distinct, place = np.unique(keys, return_inverse=True)
    total = np.zeros(len(distinct), np.uint32)
    np.add.at(total, place, counts.astype(np.uint32))
    latest = np.zeros(len(distinct), np.uint32)
    np.maximum.at(latest, place, last.astype(np.uint32))
    return History(distinct, total, latest)


def extract_plainly(
    bundle: Bundle, item_keys: U64, times_ms: I64, count: int | None = None
) -> StoredUser:
    """A user's state made from nothing but their exact sequence (oldest first), nothing newer.

    Args:
        count: behaviors ever applied, where ``item_keys`` is not all of them.
    """
    manifest = bundle.manifest
    kept = item_keys[-manifest.L :]
    return StoredUser(
        tensors=PLAIN[manifest.system].extract(bundle, bundle.rows(kept)),
        recent=kept[-manifest.M :],
        history=add_to_history(EMPTY_HISTORY, kept, times_ms[-manifest.L :]),
        newer=np.empty(0, np.uint64),
        newer_times=np.empty(0, np.int64),
        count=len(item_keys) if count is None else count,
        last_time_ms=int(times_ms[-1]) if len(times_ms) else 0,
    )


@dataclass(frozen=True)
class OfflineRequest:
    """One request to evaluate; its first candidate is the positive."""

    user: StoredUser | None
    """What is stored of the user; None: a stranger."""
    candidates: U64
    """u64[B]: item keys."""
    now_ms: int
    """Time of the request, ms since epoch."""


def score_requests(bundle: Bundle, requests: Iterable[OfflineRequest]) -> Iterator[F32]:
    """CTRs f32[B] of each request by a bundle's own graphs."""
    session = bundle.scorer_session()
    for request in requests:
        yield score_stored(bundle, session, request.user, request.candidates, request.now_ms)


def sequence_requests(
    bundle: Bundle,
    sequences: Sequences,
    requests: Requests,
    item_keys: U64,
) -> Iterable[OfflineRequest]:
    """Requests with states extracted plainly as of each request's clustering; where nothing is
    stored, as of the request.

    Args:
        item_keys: u64[n + 1], keys of the interactions' items (`Interactions.item_ids`).
    """
    stale = PLAIN[bundle.manifest.system].keeps_state
    now = sequences.times[requests.cut] if requests.times is None else requests.times
    for cut, as_of, candidates, now_s in zip(
        requests.cut, requests.as_of, requests.candidates, now, strict=True
    ):
        start = int(sequences.start[cut])
        keys = item_keys[sequences.items[start:cut]]
        times_ms = sequences.times[start:cut] * 1000
        covered = int(as_of) - start if stale else len(keys)
        user = None
        if len(keys):
            state = extract_plainly(bundle, keys[:covered], times_ms[:covered])
            user = StoredUser(
                tensors=state.tensors,
                recent=state.recent,
                history=state.history,
                newer=keys[covered:],
                newer_times=times_ms[covered:],
                count=len(keys),
                last_time_ms=int(times_ms[-1]),
            )
        yield OfflineRequest(user, item_keys[candidates], int(now_s) * 1000)
