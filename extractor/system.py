"""The seam between the service and its systems: what each of ENCODE, SDIM and TWIN must be able to.

Record, store, schedule, scorer and inspection know states as a header and named tensors, and a
system as what this protocol says; whatever is particular to one lies behind it, in
`extractor.systems`. The bundle's manifest names the system, `extractor.systems.open_system` opens
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from extractor.explanation import Explanation
from extractor.features import feature_tensors, recent_features, user_rate
from extractor.history import ItemCounts, add_behaviors, count_items
from extractor.state import InterestState, Layout
from infra.arrays import F32, I32, U64, Array
from infra.behaviors import BEHAVIOR
from infra.errors import BundleIncompatible
from infra.store import Behaviors, StoredSequence, Version
from models.bundle import MANIFEST, Bundle, StateTensor, TableEntry
from models.features import EMPTY_HISTORY, cross_features, user_features


class UserHistory(NamedTuple):
    """What is known of a user when they are ranked for."""

    version: Version
    """Of the sequence, as of its newest behavior."""
    state: InterestState | None
    """The state in use; None: everything that is known is in ``newer``."""
    newer: Behaviors
    """BEHAVIOR[n], oldest first: the behaviors that the state does not cover."""


class Candidates(NamedTuple):
    """What is to be ranked, B items."""

    keys: U64
    """u64[B]: item keys."""
    rows: I32
    """i32[B]: their rows in the bundle's tables; 0 for items it does not know."""


class NamedPart(NamedTuple):
    """One part of a state as a person can read it: an interest, a bucket."""

    share: float
    """Share of the covered behaviors that belong to it."""
    rows: list[int]
    """Rows of its most typical items, the most typical first."""


class System(Protocol):
    """One loaded bundle's way from behaviors to what its scorer graph is fed. Thread-safe."""

    @property
    def digest(self) -> bytes:
        """16 bytes that name the bundle's content; its states carry them."""

    @property
    def reads(self) -> Literal["profile", "sequence"]:
        """What a request needs of the store: a stored state with the behaviors newer than it, or
        the whole kept sequence.
        """

    @property
    def keeps_state(self) -> bool:
        """Whether `extract` makes states worth storing; without it no user is ever due."""

    @property
    def newest(self) -> int:
        """Most behaviors newer than a state, or without one, that `feed` should be given. Beyond
        it a state extracted on the spot from the whole sequence is cheaper.
        """

    @property
    def layout(self) -> Layout:
        """How its states are recorded."""

    @property
    def measures(self) -> tuple[str, ...]:
        """What `measure` can tell, by names in `infra.metrics.MEASURES`; often nothing."""

    def warm(self) -> None:
        """Have every kernel compiled and every table built before the first user waits."""

    def extract(
        self, sequence: StoredSequence, previous: InterestState | None = None
    ) -> InterestState:
        """The state of a sequence's last L behaviors; called from several threads at once.

        Args:
            sequence: the user's behaviors, oldest first; none is fine.
            previous: the user's last state, of this bundle or another; used where it helps.
        """

    def extract_many(
        self, sequences: Sequence[StoredSequence], previous: Sequence[InterestState | None]
    ) -> Iterator[InterestState]:
        """The states of several users, each as by `extract`, as they are asked for: whoever encodes
        one at once has it in the processor's caches still. A system that gains nothing by having
        users together is `one_by_one`.
        """

    def feed(
        self, history: UserHistory | None, candidates: Candidates, now_ms: int
    ) -> dict[str, Array]:
        """What scorer.onnx is fed for one user and B candidates.

        Args:
            history: None: a stranger.
            candidates: what is ranked.
            now_ms: the moment for which to score, ms since epoch.
        """

    def measure(
        self, history: UserHistory, behaviors: Behaviors, candidates: Candidates, now_ms: int
    ) -> dict[str, float]:
        """How well a request's long-term part saw the user's behaviors: means over the candidates.

        Args:
            history: what the request was fed of the user.
            behaviors: BEHAVIOR[n], all that the history is made of and that are still kept, oldest
                first; the newer ones are the last of them.
            candidates: some of those that were ranked.
            now_ms: the moment for which they were scored, ms since epoch.

        Returns:
            Of `measures` those that these behaviors give; none where there are too few.
        """

    def explain(
        self, history: UserHistory, behaviors: Behaviors, candidates: Candidates, now_ms: int
    ) -> Explanation:
        """What the long-term part of a request attended to, for some of its candidates.

        Args:
            history: what the request was fed of the user.
            behaviors: as for `measure`; where the older ones are not to be had, the newer alone.
            candidates: what to explain, at least one.
            now_ms: as for `measure`.

        Raises:
            RequestError: the bundle's attention cannot be told apart from its scorer graph.
        """

    def describe(
        self, state: InterestState, sequence: StoredSequence, most: int
    ) -> list[NamedPart]:
        """The ``most`` largest parts of a state, largest first, each by its most typical items."""

    def summarize(self, state: InterestState) -> dict[str, Any]:
        """A state in a few plain numbers, for `lifelong inspect`."""


def check_table(bundle: Bundle, name: str, table: TableEntry) -> None:
    """Refuse a bundle without the item table that its system needs.

    Raises:
        BundleIncompatible: it lists no such table, or another one under the name.
    """
    if bundle.manifest.tables.get(name) != table:
        raise BundleIncompatible(
            f"{bundle.path / MANIFEST} lists no item table {name!r} of {table.dtype} and width"
            f" {table.width}; export the bundle again"
        )


def check_stored(bundle: Bundle, layouts: Sequence[Mapping[str, StateTensor]]) -> None:
    """Refuse a bundle whose states are laid out in none of the ways that its system knows.

    Args:
        layouts: of what the system keeps; what is kept of features stands behind it.

    Raises:
        BundleIncompatible: they are not.
    """
    of_features = bundle.manifest.of_features()
    if bundle.manifest.stored not in [{**layout, **of_features} for layout in layouts]:
        raise BundleIncompatible(
            f"{bundle.path / MANIFEST} lays out states otherwise than this version stores them;"
            " export the bundle again"
        )


def one_by_one(
    extract: Callable[[StoredSequence, InterestState | None], InterestState],
    sequences: Sequence[StoredSequence],
    previous: Sequence[InterestState | None],
) -> Iterator[InterestState]:
    """`System.extract_many` by ``extract`` alone."""
    return map(extract, sequences, previous)


def common_state(
    bundle: Bundle,
    version: Version,
    behaviors: Behaviors,
    counted: ItemCounts | None = None,
    own: Mapping[str, Array] = MappingProxyType({}),
    *,
    now_ms: int = 0,
) -> InterestState:
    """A state with what is stored of a user whichever the system is.

    Args:
        bundle: whose state it is.
        version: of the sequence, as of the last of the behaviors.
        behaviors: BEHAVIOR[n], those that the state covers, oldest first.
        counted: their items, where they were counted already.
        own: the system's own tensors.
        now_ms: the moment for which to score, of a state that is made for one request.
    """
    keys = np.ascontiguousarray(behaviors["item"])
    if counted is None:
        counted = count_items(keys, np.ascontiguousarray(behaviors["time"]))
    (history,) = counted.histories()
    return InterestState(
        bundle=bundle.digest,
        version=version,
        last_time_ms=int(counted.last_times_ms[0]),
        recent=keys[-bundle.manifest.M :],
        history=history,
        tensors={**own, **feature_tensors(bundle, behaviors, now_ms)},
    )


def common_feed(
    bundle: Bundle, history: UserHistory | None, candidates: Candidates, now_ms: int
) -> dict[str, F32]:
    """The inputs of scorer.onnx that do not depend on the system, by their names in
    `models.bundle.SCORER_INPUTS`: recent behaviors, user, candidates and cross features.
    """
    manifest = bundle.manifest
    recent_keys, past, count, last_time_ms = np.zeros(0, np.uint64), EMPTY_HISTORY, 0, 0
    of_state, added = None, np.zeros(0, BEHAVIOR)
    if history is not None:
        state, newer = history.state, history.newer
        keys = np.ascontiguousarray(newer["item"])
        last_time_ms = int(newer["time"].max(initial=0))
        if state is None:
            recent_keys, past = keys[-manifest.M :], add_behaviors(EMPTY_HISTORY, newer)
        else:
            recent_keys = np.concatenate((state.recent, keys))[-manifest.M :]
            past = add_behaviors(state.history, newer)
            last_time_ms = max(last_time_ms, state.last_time_ms)
        count = history.version.count
        of_state, added = state, newer
    # Rows are taken: numpy's indexing by an array is several times slower.
    recent = bundle.embeddings.take(bundle.rows(recent_keys), axis=0)
    if (seen := recent_features(bundle, of_state, added, now_ms)) is not None:
        recent = recent + seen
    recent_mask = np.ones(len(recent), np.float32)
    if not len(recent):
        recent, recent_mask = np.zeros((1, manifest.d), np.float32), np.zeros(1, np.float32)
    popularity = bundle.popularity.take(candidates.rows)
    rates = None if bundle.rates is None else bundle.rates.take(candidates.rows)
    return {
        "recent": recent,
        "recent_mask": recent_mask,
        "user": user_features(count, last_time_ms, now_ms, user_rate(bundle, of_state, added)),
        "candidates": bundle.embeddings.take(candidates.rows, axis=0),
        "cross": cross_features(candidates.keys, popularity, past, now_ms, rates),
    }
