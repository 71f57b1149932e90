"""From a user and candidates to CTRs: one read of the store, a few gathers, one run of the model.

`score` is the arithmetic and touches nothing outside; `Ranker` brings it the user's state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import xxhash

from extractor.extract import Extractor
from extractor.state import InterestState
from infra.arrays import F32, I32, U64, Bools
from infra.behaviors import BEHAVIOR
from infra.errors import StoreCorrupt
from infra.metrics import HISTORIES, STAGES, ScorerMetrics
from infra.store import Behaviors, Profile, Store, StoredSequence, Version, wall_clock_ms
from infra.telemetry import get_logger
from models.bundle import Bundle
from models.features import EMPTY_HISTORY, cross_features, user_features
from scorer.messages import HistoryKind

if TYPE_CHECKING:
    import onnxruntime


MAX_NEWER: Final = 256
"""Most behaviors newer than the interest state that become interests of their own. Each costs as
much attention as a cluster; beyond this many, which only an outage of the workers brings about,
clustering the whole sequence on the spot (~0.1 ms) is cheaper than attending to them all."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ranking:
    """CTRs of the candidates of one request, and what they were computed from."""

    ctrs: F32
    """f32[B], click-through rates in the order of the candidates."""
    history: HistoryKind
    """What was known of the user."""
    unknown: Bools
    """bool[B]: the bundle does not know the candidate and scored it as an unknown item."""
    as_of: Version | None = None
    """What the interests cover; None: nothing."""
    newer: int = 0
    """Behaviors newer than that, which counted as well."""
    unknown_items: list[str] = field(default_factory=list)
    """The distinct unknown candidates, in the order given. Empty when scored by key."""

    @property
    def known_user(self) -> bool:
        """Whether anything is known of the user."""
        return self.history != "none"


class UserHistory(NamedTuple):
    """What is known of one user: interests, and behaviors that they do not cover."""

    kind: HistoryKind
    state: InterestState | None
    newer: Behaviors


NO_BEHAVIORS: Final[Behaviors] = np.zeros(0, BEHAVIOR)
NO_HISTORY: Final = UserHistory("none", None, NO_BEHAVIORS)


class Ranker:
    """Scores candidates for a user of a store by a bundle's model. Safe to use from threads."""

    def __init__(
        self,
        store: Store,
        bundle: Bundle,
        extractor: Extractor,
        metrics: ScorerMetrics,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        """Make a warm session. Do this after any fork.

        Raises:
            BundleIncompatible: onnxruntime cannot run the bundle's scorer.
        """
        self.bundle = bundle
        self._store = store
        self._extractor = extractor
        self._session = bundle.scorer_session()
        self._clock_ms = clock_ms
        self._metrics = metrics
        self._stage = {name: metrics.stage_seconds.labels(stage=name) for name in STAGES}
        self._kind = {kind: metrics.history.labels(kind=kind) for kind in HISTORIES}
        self._warm()

    def rank(self, user: str, candidates: Sequence[str], time_ms: int | None = None) -> Ranking:
        """CTRs of candidates for a user.

        Args:
            user: user id; an unknown one is scored without history.
            candidates: B item ids; unknown ones are scored as unknown, duplicates are allowed.
            time_ms: the moment for which to score, ms since epoch; None: now.

        Raises:
            StoreError: the user's record could not be read.
        """
        started = time.perf_counter()
        keys = item_keys(candidates)
        ranking = self._rank(user, keys, time_ms, time.perf_counter() - started)
        if not ranking.unknown.any():
            return ranking
        names = dict.fromkeys(candidates[i] for i in np.flatnonzero(ranking.unknown).tolist())
        return replace(ranking, unknown_items=list(names))

    def rank_keys(self, user: str, candidate_keys: U64, time_ms: int | None = None) -> Ranking:
        """`rank` of candidates given as u64[B] item keys."""
        return self._rank(user, candidate_keys, time_ms, 0.0)

    def _rank(
        self, user: str, candidate_keys: U64, time_ms: int | None, hashing_s: float
    ) -> Ranking:
        started = time.perf_counter()
        found = self._read(user)
        read = time.perf_counter()
        history = self._extracted(found) if isinstance(found, StoredSequence) else found
        now_ms = self._clock_ms() if time_ms is None else time_ms
        rows = self.bundle.rows(candidate_keys)
        feed = scorer_inputs(
            self.bundle, history.state, history.newer, candidate_keys, now_ms, rows
        )
        gathered = time.perf_counter()
        ctrs = _run_session(self._session, feed)
        self._stage["store"].observe(read - started)
        self._stage["features"].observe(hashing_s + gathered - read)
        self._stage["model"].observe(time.perf_counter() - gathered)
        unknown = rows == 0
        self._count(history, unknown)
        return Ranking(
            ctrs=ctrs,
            history=history.kind,
            unknown=unknown,
            as_of=history.state.version if history.state is not None else None,
            newer=len(history.newer),
        )

    def _read(self, user: str) -> UserHistory | StoredSequence:
        """What the store has of the user: usable interests, or else the sequence, or nothing."""
        (profile,) = self._store.profiles([user])
        if profile is None:
            return NO_HISTORY
        state = self._usable_state(user, profile)
        if state is not None:
            pending = max(0, profile.version.count - state.count)
            if pending <= min(MAX_NEWER, len(profile.recent)):
                newer = profile.recent[len(profile.recent) - pending :]
                return UserHistory("interests", state, newer)
        # Without interests every kept behavior is "newer" and so already in the profile.
        if profile.interests is None or len(profile.recent) >= profile.version.count:
            return StoredSequence(profile.version, profile.recent, {})
        return self._store.sequences([user])[0] or NO_HISTORY

    def _extracted(self, sequence: StoredSequence) -> UserHistory:
        return UserHistory("sequence", self._extractor.extract(sequence), NO_BEHAVIORS)

    def _usable_state(self, user: str, profile: Profile) -> InterestState | None:
        """The stored interests, if of this bundle and of this life of the user's record."""
        if profile.interests is None:
            return None
        try:
            state = InterestState.decode(profile.interests, user)
        except StoreCorrupt as error:
            # The sequence is intact and gives the same interests; the next clustering repairs it.
            log.warning("interests corrupt", error=str(error))
            return None
        if state.bundle != self.bundle.digest or state.epoch != profile.version.epoch:
            return None
        return state

    def _count(self, history: UserHistory, unknown: Bools) -> None:
        self._metrics.candidates.observe(len(unknown))
        self._kind[history.kind].inc()
        self._metrics.newer_behaviors.observe(len(history.newer))
        if unknowns := int(np.count_nonzero(unknown)):
            self._metrics.unknown_items.inc(unknowns)

    def _warm(self) -> None:
        """Have every kernel compiled and every table built before the first request."""
        behaviors = np.zeros(self.bundle.manifest.K + 1, BEHAVIOR)
        behaviors["item"] = np.arange(len(behaviors))
        sequence = StoredSequence(Version(1, len(behaviors)), behaviors, {})
        state = self._extractor.extract(sequence)
        keys = behaviors["item"].copy()
        score(self._session, self.bundle, state, behaviors[:1], keys, now_ms=1)


def score(
    session: onnxruntime.InferenceSession,
    bundle: Bundle,
    state: InterestState | None,
    newer: Behaviors,
    candidate_keys: U64,
    now_ms: int,
) -> F32:
    """CTRs of B candidates for one user (ENCODE, Eqs. 10-11, with the newest behaviors).

    Args:
        session: of the bundle's scorer (`Bundle.scorer_session`).
        state: the user's interests; None: an unknown user.
        newer: BEHAVIOR[n], oldest first, applied after the state was made: each is an interest of
            its own, a cluster of one, whose u is its embedding.
        candidate_keys: u64[B], item keys.
        now_ms: the moment for which to score, ms since epoch.

    Returns:
        f32[B].
    """
    rows = bundle.rows(candidate_keys)
    feed = scorer_inputs(bundle, state, newer, candidate_keys, now_ms, rows)
    return _run_session(session, feed)


def scorer_inputs(
    bundle: Bundle,
    state: InterestState | None,
    newer: Behaviors,
    candidate_keys: U64,
    now_ms: int,
    rows: I32,
) -> dict[str, F32]:
    """Inputs of scorer.onnx (`models.bundle.SCORER_INPUTS`); ``rows`` i32[B] are those of the
    candidates, the rest is as in `score`.
    """
    candidates = bundle.embeddings[rows]
    popularity = bundle.popularity[rows]
    if state is None:
        nothing = np.zeros((1, bundle.manifest.d), np.float32)
        masked = np.zeros(1, np.float32)
        return {
            "interests": nothing,
            "interest_mask": masked,
            "recent": nothing,
            "recent_mask": masked,
            "user": user_features(0, 0, now_ms),
            "candidates": candidates,
            "cross": cross_features(candidate_keys, popularity, EMPTY_HISTORY, now_ms),
        }
    merged = state.with_newer(newer)
    interests, mask = state.interests, state.sizes.astype(np.float32)
    if len(newer):
        singletons = bundle.embeddings[bundle.rows(np.ascontiguousarray(newer["item"]))]
        interests = np.concatenate((interests, singletons))
        mask = np.concatenate((mask, np.ones(len(newer), np.float32)))
    recent = bundle.embeddings[bundle.rows(merged.recent)]
    recent_mask = np.ones(len(recent), np.float32)
    if not len(recent):
        recent, recent_mask = np.zeros((1, bundle.manifest.d), np.float32), np.zeros(1, np.float32)
    return {
        "interests": interests,
        "interest_mask": mask,
        "recent": recent,
        "recent_mask": recent_mask,
        "user": user_features(merged.count, merged.last_time_ms, now_ms),
        "candidates": candidates,
        "cross": cross_features(candidate_keys, popularity, merged.history, now_ms),
    }


def item_keys(items: Sequence[str]) -> U64:
    """u64[n], `infra.behaviors.item_key` of each item, without a Python call for each.

    >>> from infra.behaviors import item_key
    >>> int(item_keys(["85123A"])[0]) == item_key("85123A")
    True
    """
    hashed = map(xxhash.xxh3_64_intdigest, map(str.encode, items))
    return np.fromiter(hashed, np.uint64, len(items))


def _run_session(session: onnxruntime.InferenceSession, feed: dict[str, F32]) -> F32:
    (ctrs,) = session.run(None, feed)
    return ctrs  # type: ignore[no-any-return]  # onnxruntime has no types
