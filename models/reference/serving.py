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

from infra.arrays import F32, I64, U8, U64, Array
from models.bundle import Bundle
from models.data.requests import Requests, Sequences
from models.features import EMPTY_HISTORY, History, cross_features, user_features
from models.reference import encode, sdim, twin

if TYPE_CHECKING:
    import onnxruntime


class PlainSystem(NamedTuple):
    """What is of one system."""

    extract: Callable[..., dict[str, Array]]
    """A state's tensors, of the bundle and the rows i32[n] of the behaviors' items."""
    feed: Callable[..., dict[str, Array]]
    """The scorer graph's own inputs, of the bundle, a state's tensors (or none), and the rows of
    newer behaviors and of candidates. Both are told ``actions`` u8[n], the rows of the behaviors'
    actions, where the network sees them."""
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
    actions: StoredActions | None = None
    """What is stored of their actions; None: all are unknown."""


class StoredActions(NamedTuple):
    """What is stored of the actions of a user's behaviors, as rows of the bundle's."""

    recent: U8
    """u8[<= M]: of `StoredUser.recent`."""
    covered: U8
    """u8[<= L]: of the behaviors that the state covers."""
    newer: U8
    """u8: of `StoredUser.newer`."""

    @classmethod
    def unknown(cls, user: StoredUser) -> StoredActions:
        """As many as there are behaviors, all unknown."""
        sizes = len(user.recent), int(user.history.counts.sum()), len(user.newer)
        return cls(*(np.zeros(size, np.uint8) for size in sizes))


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
    history, count, last_time_ms = EMPTY_HISTORY, 0, 0
    of_newer = acted = seen = np.empty(0, np.uint8)
    if user is not None:
        actions = user.actions or StoredActions.unknown(user)
        of_newer = actions.newer
        acted = np.concatenate([actions.covered, of_newer])
        seen = np.concatenate([actions.recent, of_newer])[-M:]
        tensors, newer = user.tensors, user.newer
        keys = np.concatenate([user.recent, newer])[-M:]
        history = add_to_history(user.history, newer, user.newer_times)
        count, last_time_ms = user.count, user.last_time_ms
    rate, rates = None, bundle.manifest.rates
    if rates is not None:
        positive, counted = rates.kinds(("", *bundle.manifest.actions))
        rate = rates.of_users(positive[acted].sum(), counted[acted].sum())
    recent, recent_mask = bundle.embeddings[bundle.rows(keys)], np.ones(len(keys), np.float32)
    if bundle.actions is not None:
        recent = recent + bundle.actions[seen]
    if not len(keys):
        recent, recent_mask = np.zeros((1, d), np.float32), np.zeros(1, np.float32)
    feed = {
        **PLAIN[bundle.manifest.system].feed(
            bundle, tensors, bundle.rows(newer), rows, **_told(bundle, of_newer)
        ),
        "recent": recent,
        "recent_mask": recent_mask,
        "user": user_features(count, last_time_ms, now_ms, rate),
        "candidates": bundle.embeddings[rows],
        "cross": cross_features(
            candidates,
            bundle.popularity[rows],
            history,
            now_ms,
            None if bundle.rates is None else bundle.rates[rows],
        ),
    }
    (ctrs,) = session.run(None, feed)
    return np.asarray(ctrs, np.float32)


def _told(bundle: Bundle, actions: U8) -> dict[str, U8]:
    return {} if bundle.actions is None else {"actions": actions}


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
    bundle: Bundle,
    item_keys: U64,
    times_ms: I64,
    count: int | None = None,
    actions: U8 | None = None,
) -> StoredUser:
    """A user's state made from nothing but their exact sequence (oldest first), nothing newer.

    Args:
        count: behaviors ever applied, where ``item_keys`` is not all of them.
        actions: rows of the behaviors' actions; None: all are unknown.
    """
    manifest = bundle.manifest
    kept = item_keys[-manifest.L :]
    acted = np.zeros(len(kept), np.uint8) if actions is None else actions[-manifest.L :]
    return StoredUser(
        tensors=PLAIN[manifest.system].extract(bundle, bundle.rows(kept), **_told(bundle, acted)),
        recent=kept[-manifest.M :],
        history=add_to_history(EMPTY_HISTORY, kept, times_ms[-manifest.L :]),
        newer=np.empty(0, np.uint64),
        newer_times=np.empty(0, np.int64),
        count=len(item_keys) if count is None else count,
        last_time_ms=int(times_ms[-1]) if len(times_ms) else 0,
        actions=StoredActions(acted[-manifest.M :], acted, acted[:0]),
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
    actions: U8 | None = None,
) -> Iterable[OfflineRequest]:
    """Requests with states extracted plainly as of each request's clustering; where nothing is
    stored, as of the request.

    Args:
        item_keys: u64[n + 1], keys of the interactions' items (`Interactions.item_ids`).
        actions: u8[N], rows of the actions of the sequences' behaviors in the bundle's own list;
            None: all are unknown.
    """
    if actions is None:
        actions = np.zeros(len(sequences.items), np.uint8)
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
            acted = actions[start:cut]
            state = extract_plainly(
                bundle, keys[:covered], times_ms[:covered], actions=acted[:covered]
            )
            assert state.actions is not None
            user = StoredUser(
                tensors=state.tensors,
                recent=state.recent,
                history=state.history,
                newer=keys[covered:],
                newer_times=times_ms[covered:],
                count=len(keys),
                last_time_ms=int(times_ms[-1]),
                actions=state.actions._replace(newer=acted[covered:]),
            )
        yield OfflineRequest(user, item_keys[candidates], int(now_s) * 1000)
