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

from infra.arrays import F32, I64, U8, U16, U64, Array
from infra.behaviors import BEHAVIOR
from infra.store import Behaviors
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
    newer behaviors and of candidates. Both are told ``features`` u16[n], the rows of the behaviors
    in `Bundle.features`, where the network sees some."""
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
    known: StoredFeatures | None = None
    """What is stored of them beside their items; None: nothing is known."""


class StoredFeatures(NamedTuple):
    """What is stored of a user's behaviors beside their items, as rows of the bundle's."""

    recent: U16
    """u16[<= M]: of `StoredUser.recent`, in `Bundle.features`."""
    newer: U16
    """u16: of `StoredUser.newer`, likewise."""
    acted: U8
    """u8: the actions of the last L behaviors that the state covers, and of newer ones."""

    @classmethod
    def of(
        cls, bundle: Bundle, covered: Behaviors, newer: Behaviors, now_ms: int = 0
    ) -> StoredFeatures:
        """That of behaviors that a state covers, and of those newer than it.

        Args:
            now_ms: the moment for which to score, where nothing is stored.
        """
        recent = covered[max(len(covered) - bundle.manifest.M, 0) :]
        last = covered[max(len(covered) - bundle.manifest.L, 0) :]
        acted = bundle.action_rows(np.concatenate([last["action"], newer["action"]]))
        if bundle.features is None:
            none = np.zeros(0, np.uint16)
            return cls(none, none, acted)
        of_recent, of_newer = (bundle.feature_rows(each, now_ms) for each in (recent, newer))
        return cls(of_recent, of_newer, acted)

    @classmethod
    def unknown(cls, bundle: Bundle, user: StoredUser) -> StoredFeatures:
        """As many as there are behaviors, of which nothing is known."""
        covered = np.zeros(int(user.history.counts.sum()), BEHAVIOR)
        return cls.of(bundle, covered, np.zeros(len(user.newer), BEHAVIOR))


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
    known = StoredFeatures(np.empty(0, np.uint16), np.empty(0, np.uint16), np.empty(0, np.uint8))
    if user is not None:
        known = user.known or StoredFeatures.unknown(bundle, user)
        tensors, newer = user.tensors, user.newer
        keys = np.concatenate([user.recent, newer])[-M:]
        history = add_to_history(user.history, newer, user.newer_times)
        count, last_time_ms = user.count, user.last_time_ms
    rate, rates = None, bundle.manifest.rates
    if rates is not None:
        positive, counted = rates.kinds(("", *bundle.manifest.actions))
        rate = rates.of_users(positive[known.acted].sum(), counted[known.acted].sum())
    recent, recent_mask = bundle.embeddings[bundle.rows(keys)], np.ones(len(keys), np.float32)
    if bundle.features is not None:
        recent = recent + bundle.features[np.concatenate([known.recent, known.newer])[-M:]]
    if not len(keys):
        recent, recent_mask = np.zeros((1, d), np.float32), np.zeros(1, np.float32)
    told = {} if bundle.features is None else {"features": known.newer}
    feed = {
        **PLAIN[bundle.manifest.system].feed(bundle, tensors, bundle.rows(newer), rows, **told),
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
    known: Behaviors | None = None,
    now_ms: int = 0,
) -> StoredUser:
    """A user's state made from nothing but their exact sequence (oldest first), nothing newer.

    Args:
        count: behaviors ever applied, where ``item_keys`` is not all of them.
        known: BEHAVIOR, the same behaviors; None: nothing is known of them beside their items.
        now_ms: the moment for which to score, where nothing is stored.
    """
    manifest = bundle.manifest
    kept = item_keys[-manifest.L :]
    if known is None:
        known = np.zeros(len(item_keys), BEHAVIOR)
    told = {}
    if bundle.features is not None:
        told["features"] = bundle.feature_rows(known[-manifest.L :], now_ms)
    return StoredUser(
        tensors=PLAIN[manifest.system].extract(bundle, bundle.rows(kept), **told),
        recent=kept[-manifest.M :],
        history=add_to_history(EMPTY_HISTORY, kept, times_ms[-manifest.L :]),
        newer=np.empty(0, np.uint64),
        newer_times=np.empty(0, np.int64),
        count=len(item_keys) if count is None else count,
        last_time_ms=int(times_ms[-1]) if len(times_ms) else 0,
        known=StoredFeatures.of(bundle, known, known[:0], now_ms),
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
    known: Behaviors | None = None,
) -> Iterable[OfflineRequest]:
    """Requests with states extracted plainly as of each request's clustering; where nothing is
    stored, as of the request.

    Args:
        item_keys: u64[n + 1], keys of the interactions' items (`Interactions.item_ids`).
        known: BEHAVIOR[N], the sequences' behaviors, their actions by place in the bundle's own
            list; None: nothing is known of them beside their items.
    """
    if known is None:
        known = np.zeros(len(sequences.items), BEHAVIOR)
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
            mine, now_ms = known[start:cut], int(now_s) * 1000
            state = extract_plainly(
                bundle, keys[:covered], times_ms[:covered], known=mine[:covered], now_ms=now_ms
            )
            user = StoredUser(
                tensors=state.tensors,
                recent=state.recent,
                history=state.history,
                newer=keys[covered:],
                newer_times=times_ms[covered:],
                count=len(keys),
                last_time_ms=int(times_ms[-1]),
                known=StoredFeatures.of(bundle, mine[:covered], mine[covered:], now_ms),
            )
        yield OfflineRequest(user, item_keys[candidates], int(now_s) * 1000)
