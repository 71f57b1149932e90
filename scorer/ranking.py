"""From a user and candidates to CTRs: one read of the store, a few gathers, one run of the model.

`Ranker` brings the bundle's system (`extractor.system.System`) what the store has of the user, and
runs the scorer graph on what the system makes of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from extractor.state import InterestState
from extractor.system import Candidates, System, UserHistory
from infra.arrays import F32, I64, U64, Array, Bools
from infra.behaviors import BEHAVIOR
from infra.errors import StoreCorrupt, StoreError, StoreUnavailable
from infra.metrics import HISTORIES, STAGES, ScorerMetrics
from infra.settings import UnknownItems
from infra.store import Behaviors, Profile, Store, StoredSequence, Version, wall_clock_ms
from infra.telemetry import get_logger
from models.bundle import Bundle
from scorer.breaker import Breaker
from scorer.explaining import Explainer, Scored
from scorer.ids import item_keys
from scorer.ids import warm as warm_ids
from scorer.jobs import standing_aside
from scorer.limits import SHOWN_CHARS, Refused
from scorer.messages import Explained, HistoryKind
from scorer.ranked import warm as warm_ranked
from scorer.sampling import Sampler
from scorer.traces import this_trace

if TYPE_CHECKING:
    import onnxruntime

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ranking:
    """What one request got."""

    ctrs: F32
    """f32[B], click-through rates in the order of the candidates."""
    history: HistoryKind
    unknown: Bools
    """bool[B]: the bundle does not know the candidate."""
    as_of: Version | None = None
    """What the interests cover; None: nothing."""
    newer: int = 0
    """Behaviors newer than that, which counted as well."""
    degraded: bool = False
    """The store did not answer, so that nothing is known of the user."""
    unknown_items: list[str] = field(default_factory=list)
    """The distinct unknown candidates, in the order given. Empty when scored by key."""
    explained: Explained | None = None
    """Why the highest are the highest; None: nobody asked."""

    @property
    def known_user(self) -> bool:
        """Whether anything is known of the user."""
        return self.history != "none"


class _Found(NamedTuple):
    """What the store has of a user."""

    kind: HistoryKind
    history: UserHistory | None
    whole: StoredSequence | None = None
    """The sequence, where a state must be extracted from it within the request."""
    degraded: bool = False


class _Asked(NamedTuple):
    """What is asked about."""

    candidates: Candidates
    unknown: Bools
    """bool[B]: the bundle does not know the candidate."""
    last: bool
    """Whether those are ranked below all others."""
    names: Sequence[str] = ()
    """Their ids. Empty when asked by key."""
    explain: int = 0
    """How many of the highest to explain."""


WARMED: Final = (3, 1000)
"""Candidates of the requests with which a ranker is warmed: few, and as many as clients send, since
a session takes memory at the first of a size."""

NAMED: Final = 5
"""Unknown items that a refusal names, at most."""

STRANGER: Final = _Found("none", None)
DEGRADED: Final = _Found("none", None, degraded=True)

NO_BEHAVIORS: Final[Behaviors] = np.zeros(0, BEHAVIOR)


class Ranker:
    """Scores candidates for a user of a store by a bundle's model. Safe to use from threads."""

    def __init__(
        self,
        store: Store,
        bundle: Bundle,
        system: System,
        metrics: ScorerMetrics,
        clock_ms: Callable[[], int] = wall_clock_ms,
        *,
        degrade: bool = True,
        unknown_items: UnknownItems = "score",
        monotonic: Callable[[], float] = time.monotonic,
        sampler: Sampler | None = None,
    ) -> None:
        """Make a warm session. Do this after any fork.

        Args:
            store: where users are read.
            bundle, system: how they are scored.
            metrics: where all of it is counted.
            clock_ms: the time for which to score, ms since epoch.
            degrade: whether to score without history where the store does not answer; otherwise its
                error is raised.
            unknown_items: what becomes of candidates that the bundle does not know, where a request
                does not say.
            monotonic: seconds, by which a store that is away is asked again.
            sampler: what measures some of the requests; None: nothing does.

        Raises:
            BundleIncompatible: onnxruntime cannot run the bundle's scorer.
        """
        self.bundle = bundle
        self._store = store
        self._system = system
        self._session = session = bundle.scorer_session()
        self._explainer = Explainer(store, bundle, system, lambda feed: _run_session(session, feed))
        self._clock_ms = clock_ms
        self._degrade = degrade
        self._unknown_items: UnknownItems = unknown_items
        self._breaker = Breaker(monotonic)
        self._sampler = sampler
        self._metrics = metrics
        self._stage = {name: metrics.stage_seconds.labels(stage=name) for name in STAGES}
        self._kind = {kind: metrics.history.labels(kind=kind) for kind in HISTORIES}
        self._warm()

    @property
    def reads_locally(self) -> bool:
        """Whether users are read within the process, so that nobody need stand aside for it."""
        return self._store.local

    def rank(
        self,
        user: str,
        candidates: Sequence[str],
        time_ms: int | None = None,
        unknown_items: UnknownItems | None = None,
        explain: int = 0,
    ) -> Ranking:
        """CTRs of candidates for a user.

        Args:
            user: user id; an unknown one is scored without history.
            candidates: B item ids; duplicates are allowed.
            time_ms: the moment for which to score, ms since epoch; None: now.
            unknown_items: what becomes of candidates that the bundle does not know; None: what
                becomes of them in all requests.
            explain: of how many of the highest to tell why.

        Raises:
            RequestError: the bundle's attention cannot be explained.
            Refused: the bundle does not know candidates, and such requests are refused.
            StoreError: the store did not answer, and rankings are not to be degraded.
        """
        started = time.perf_counter()
        asked = self._asked(item_keys(candidates), unknown_items, candidates)
        if explain:
            asked = asked._replace(names=candidates, explain=explain)
        ranking = self._rank(user, asked, time_ms, time.perf_counter() - started)
        if not ranking.unknown.any():
            return ranking
        names = dict.fromkeys(candidates[i] for i in np.flatnonzero(ranking.unknown).tolist())
        return replace(ranking, unknown_items=list(names))

    def rank_keys(
        self,
        user: str,
        candidate_keys: U64,
        time_ms: int | None = None,
        unknown_items: UnknownItems | None = None,
        names: Sequence[str] | None = None,
    ) -> Ranking:
        """`rank` of candidates given as u64[B] item keys.

        Args:
            names: the candidates' ids, for a refusal that names some; None: their keys do.
        """
        started = time.perf_counter()
        asked = self._asked(candidate_keys, unknown_items, names)
        return self._rank(user, asked, time_ms, time.perf_counter() - started)

    def rank_each(
        self,
        users: Sequence[str],
        candidate_keys: U64,
        times_ms: Sequence[int | None],
        unknown_items: UnknownItems | None = None,
        names: Sequence[str] | None = None,
    ) -> list[Ranking]:
        """`rank_keys` of N users, who are read from the store at once.

        Args:
            users: of whom each has the same number of candidates.
            candidate_keys: u64[N * B], user by user.
            times_ms: of each user.
            names: the candidates' ids, in the same order.
        """
        if len(users) == 1:
            return [self.rank_keys(users[0], candidate_keys, times_ms[0], unknown_items, names)]
        each = len(candidate_keys) // len(users)
        asked, lookups_s = [], []
        for start in range(0, len(candidate_keys), each):
            started, row = time.perf_counter(), slice(start, start + each)
            named = None if names is None else names[row]
            asked.append(self._asked(candidate_keys[row], unknown_items, named))
            lookups_s.append(time.perf_counter() - started)
        found = self._stored(users)
        given = zip(users, found, asked, times_ms, lookups_s, strict=True)
        return [self._score(*of_user) for of_user in given]

    def _asked(
        self, keys: U64, unknown_items: UnknownItems | None, names: Sequence[str] | None = None
    ) -> _Asked:
        """The candidates, looked up; refused here if some are unknown and that is asked for."""
        rows = self.bundle.rows(keys)
        unknown = rows == 0
        if unknowns := int(np.count_nonzero(unknown)):
            self._metrics.unknown_items.inc(unknowns)
        policy = unknown_items or self._unknown_items
        if unknowns and policy == "refuse":
            raise self._refusal(np.flatnonzero(unknown), keys, names)
        return _Asked(Candidates(keys, rows), unknown, last=bool(unknowns) and policy == "last")

    def _refusal(self, unknown: I64, keys: U64, names: Sequence[str] | None) -> Refused:
        told = [f"{keys[i]:016x}" if names is None else repr(names[i]) for i in unknown]
        distinct = list(dict.fromkeys(told))
        shown = ", ".join(name[:SHOWN_CHARS] for name in distinct[:NAMED])
        more = f" and {len(distinct) - NAMED} more" if len(distinct) > NAMED else ""
        return Refused(
            422,
            "unknown_items",
            "candidates",
            f"holds items that bundle {self.bundle.version} does not know: {shown}{more}; leave"
            ' them out, or ask with unknown_items "score" or "last"',
        )

    def _rank(self, user: str, asked: _Asked, time_ms: int | None, lookup_s: float) -> Ranking:
        (found,) = self._stored([user])
        return self._score(user, found, asked, time_ms, lookup_s)

    def _score(
        self, user: str, found: _Found, asked: _Asked, time_ms: int | None, lookup_s: float
    ) -> Ranking:
        """The ranking by what the store has of the user."""
        started = time.perf_counter()
        history = found.history
        if found.whole is not None:
            history = self._extracted(found.whole)
        now_ms = self._clock_ms() if time_ms is None else time_ms
        feed = self._system.feed(history, asked.candidates, now_ms)
        gathered = time.perf_counter()
        trace = this_trace.get()
        if trace is not None:
            trace.passed("features")
        ctrs = _run_session(self._session, feed)
        if asked.last:
            ctrs = np.where(asked.unknown, np.float32(0), ctrs)
        self._stage["features"].observe(lookup_s + gathered - started)
        self._stage["model"].observe(time.perf_counter() - gathered)
        newer = 0 if history is None else len(history.newer)
        if trace is not None:
            trace.passed("model")
            trace.ranked(self.bundle, found.kind, newer, len(ctrs), degraded=found.degraded)
        self._count(found.kind, newer, len(ctrs))
        if self._sampler is not None and history is not None:
            self._sampler.offer(user, history, asked.candidates, now_ms)
        state = history.state if history is not None else None
        explained = None
        if asked.explain:
            scored = Scored(user, history, asked.candidates, asked.names, ctrs, now_ms)
            explained = self._explainer.explain(scored, asked.explain)
            if trace is not None:
                trace.passed("explain")
        return Ranking(
            ctrs=ctrs,
            history=found.kind,
            unknown=asked.unknown,
            as_of=state.version if state is not None else None,
            newer=newer,
            degraded=found.degraded,
            explained=explained,
        )

    def _stored(self, users: Sequence[str]) -> list[_Found]:
        """What the store has of users, a stage of their request."""
        started = time.perf_counter()
        trace = this_trace.get()
        if trace is not None:
            trace.passed("decode")
        if self._store.local:
            found = self._read_if_there(users)
        else:
            with standing_aside():
                found = self._read_if_there(users)
        self._stage["store"].observe(time.perf_counter() - started)
        if trace is not None:
            trace.passed("store")
        return found

    def _read_if_there(self, users: Sequence[str]) -> list[_Found]:
        """What the store has of users; if it does not answer, what there is without it."""
        try:
            self._breaker.check()
            return self._read_told(users)
        except StoreError as error:
            if len(users) > 1 and not isinstance(error, StoreUnavailable):
                # The record of one cannot be used, which is nothing to the others.
                return [found for user in users for found in self._read_if_there([user])]
            if not self._degrade:
                raise
            self._metrics.degraded.inc(len(users))
            return [DEGRADED] * len(users)

    def _read_told(self, users: Sequence[str]) -> list[_Found]:
        """`_read`, of which the breaker hears."""
        try:
            found = self._read(users)
        except StoreError as error:
            self._breaker.failed(error)
            raise
        self._breaker.answered()
        return found

    def _read(self, users: Sequence[str]) -> list[_Found]:
        """What the store has of users, as the system wants it, or nothing."""
        if self._system.reads == "sequence":
            return [
                STRANGER
                if sequence is None
                else _Found("sequence", UserHistory(sequence.version, None, sequence.behaviors))
                for sequence in self._store.sequences(users)
            ]
        distinct = list(dict.fromkeys(users))
        profiles = self._store.profiles(distinct, self._system.digest)
        found = {
            user: self._of_profile(user, profile)
            for user, profile in zip(distinct, profiles, strict=True)
        }
        if whole := [user for user, has in found.items() if has is None]:
            for user, sequence in zip(whole, self._store.sequences(whole), strict=True):
                found[user] = STRANGER if sequence is None else _Found("sequence", None, sequence)
        return [has for user in users if (has := found[user]) is not None]

    def _of_profile(self, user: str, profile: Profile | None) -> _Found | None:
        """What a profile tells of a user; None: their whole sequence is needed."""
        if profile is None:
            return STRANGER
        state = self._usable_state(user, profile)
        covered = state.count if state is not None else 0
        pending = max(0, profile.version.count - covered - profile.lost)
        if pending <= min(self._system.newest, len(profile.recent)):
            newer = profile.recent[len(profile.recent) - pending :]
            kind: HistoryKind = "interests" if state is not None else "sequence"
            return _Found(kind, UserHistory(profile.version, state, newer))
        # Without a state every kept behavior is "newer" and so already in the profile.
        if profile.interests is None or len(profile.recent) + profile.lost >= profile.version.count:
            whole = StoredSequence(profile.version, profile.recent, {}, profile.lost)
            return _Found("sequence", None, whole)
        return None

    def _extracted(self, sequence: StoredSequence) -> UserHistory:
        return UserHistory(sequence.version, self._system.extract(sequence), NO_BEHAVIORS)

    def _usable_state(self, user: str, profile: Profile) -> InterestState | None:
        """The stored state, if of this bundle and of this life of the user's record."""
        if profile.interests is None:
            return None
        try:
            state = self._system.layout.decode(profile.interests, user)
        except StoreCorrupt as error:
            # The sequence is intact and gives the same interests; the next clustering repairs it.
            self._metrics.store_damage.labels("state").inc()
            log.warning("interests corrupt", error=str(error))
            return None
        mine = (self._system.digest, profile.version.epoch)
        return state if (state.bundle, state.epoch) == mine else None

    def _count(self, kind: HistoryKind, newer: int, candidates: int) -> None:
        self._metrics.candidates.observe(candidates)
        self._kind[kind].inc()
        if self._system.keeps_state:  # else there are no interests that they could be newer than
            self._metrics.newer_behaviors.observe(newer)
        self._metrics.last_ranking_timestamp_seconds.set_to_current_time()

    def _warm(self) -> None:
        """Have every kernel compiled and every table built before the first request."""
        warm_ids()
        warm_ranked()
        self._system.warm()
        for B in WARMED:
            keys = np.arange(B, dtype=np.uint64)
            feed = self._system.feed(None, Candidates(keys, self.bundle.rows(keys)), 1)
            _run_session(self._session, feed)


def _run_session(session: onnxruntime.InferenceSession, feed: dict[str, Array]) -> F32:
    (ctrs,) = session.run(None, feed)
    return ctrs  # type: ignore[no-any-return]  # onnxruntime has no types
