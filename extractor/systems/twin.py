"""TWIN as the services run it (TWIN, section 3.4): search and attention over all behaviors.

What is inherent in an item is projected when the bundle is made: queries, keys and values of all
items are item tables, which the processes of a machine share. Nothing is stored of a user besides
the behaviors themselves. A request reads them, gathers what the tables have of their items, and for
every candidate searches the k most relevant and attends to them (`models.kernels.search`); what
comes of it enters the scorer graph, which mixes the heads (Eq. 8). So the last behavior counts like
any other, and no user is ever due.

What a user did with an item, for how long and how long ago, are cross features (Eq. 4): where the
network sees them, each value adds one number a head to a behavior's relevance (Eq. 5), which the
manifest lists, and a row to its value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from extractor.explanation import Explanation, Part
from extractor.relevance import RELEVANCE, relevance
from extractor.state import InterestState, Layout
from extractor.system import (
    Candidates,
    NamedPart,
    UserHistory,
    check_table,
    common_feed,
    common_state,
    one_by_one,
)
from infra.arrays import F32, I32, U16, Array, Bools
from infra.behaviors import BEHAVIOR
from infra.errors import BundleIncompatible
from infra.store import Behaviors, StoredSequence, Version
from models.bundle import (
    LONG_TERM,
    MANIFEST,
    PROJECTION,
    Bundle,
    TableEntry,
    TWINOffline,
    make_session,
)
from models.kernels.relevance import hit_rate_of_retrieval, products, softmax
from models.kernels.search import Items, attend_to_found, behaviors_found, items_of

VALUES: Final = "values"

TABLES: Final = {"queries": "float16", "keys": "float16", VALUES: "float32"}
"""The item tables [n + 1, heads * d_k] (Eqs. 6 and 7), with their element types."""


NEWEST_FIRST: Final = 2.0**-44
"""What a place in the sequence adds to a score where the real top k is sorted for, in float64:
less than what scores differ by, where they do."""

TOGETHER: Final = 8
"""Candidates whose scores are sorted at once: some megabytes, at L = 10,000."""


class CrossFeatures(NamedTuple):
    """What the F combinations of a bundle's behavior features are to its attention."""

    biases: F32
    """f32[F, heads]: K_c w^c beta (Eq. 5)."""
    values: F32
    """f32[F, heads * d_k]: K_c W^v, their part of the values (Eq. 7)."""

    @classmethod
    def of(cls, bundle: Bundle, offline: TWINOffline) -> CrossFeatures | None:
        """Those of a bundle; None: its attention has none."""
        if not offline.cross:
            return None
        session = make_session((bundle.path / PROJECTION).read_bytes())
        (values,) = session.run([VALUES], {"embeddings": bundle.features})
        biases = {name: np.array(one, np.float32) for name, one in offline.cross.items()}
        return cls(bundle.combinations.summed(biases), values)


class TWINSystem:
    """`extractor.system.System` of a TWIN bundle."""

    reads: Final = "sequence"
    keeps_state = False

    def __init__(self, bundle: Bundle) -> None:
        self._offline = _check(bundle)
        self._bundle = bundle
        self._cross = CrossFeatures.of(bundle, self._offline)
        self.digest = bundle.digest
        self.layout = Layout({})

    @property
    def measures(self) -> tuple[str, ...]:
        return ("hit_rate", "found_weight", *(RELEVANCE if self._bundle.reference else ()))

    @property
    def newest(self) -> int:
        """All that it looks at."""
        return self._bundle.manifest.L

    def warm(self) -> None:
        self._bundle.warm()
        behaviors = np.zeros(self._offline.k + 2, BEHAVIOR)
        behaviors["item"] = np.arange(len(behaviors))
        keys = np.ascontiguousarray(behaviors["item"])
        history = UserHistory(Version(1, len(behaviors)), None, behaviors)
        candidates = Candidates(keys, self._bundle.rows(keys))
        self.feed(history, candidates, now_ms=1)
        self.measure(history, behaviors, candidates, now_ms=1)

    def extract(
        self,
        sequence: StoredSequence,
        previous: InterestState | None = None,  # noqa: ARG002  # nothing is kept
    ) -> InterestState:
        """What all systems keep of a user; of TWIN's own there is nothing."""
        behaviors = sequence.behaviors[-self._bundle.manifest.L :]
        return common_state(self._bundle, sequence.version, behaviors)

    def extract_many(
        self, sequences: Sequence[StoredSequence], previous: Sequence[InterestState | None]
    ) -> Iterator[InterestState]:
        return one_by_one(self.extract, sequences, previous)

    def feed(
        self, history: UserHistory | None, candidates: Candidates, now_ms: int
    ) -> dict[str, Array]:
        last = np.zeros(0, BEHAVIOR)
        if history is not None:
            last = history.newer[-self._bundle.manifest.L :]
            state = common_state(self._bundle, history.version, last, now_ms=now_ms)
            history = UserHistory(history.version, state, last[:0])
        items = items_of(self._bundle.rows(last["item"]), self._seen(last, now_ms))
        found = self._find(items, candidates.rows)
        return {LONG_TERM: found, **common_feed(self._bundle, history, candidates, now_ms)}

    def measure(
        self,
        history: UserHistory,  # noqa: ARG002  # it is the behaviors
        behaviors: Behaviors,
        candidates: Candidates,
        now_ms: int,
    ) -> dict[str, float]:
        """The "hit_rate" is the share of the real top k, the ESU's of all behaviors (section 4.5),
        that the requests' search finds; "found_weight" the share of the ESU's attention to
        all behaviors that falls on what is found. Of k behaviors or fewer all are found.
        """
        offline, tables, cross = self._offline, self._bundle.tables, self._cross
        last = behaviors[-self._bundle.manifest.L :]
        if not len(last):
            return {}
        rows, seen = self._bundle.rows(last["item"]), self._seen(last, now_ms)
        queries = tables["queries"][candidates.rows].astype(np.float32)
        keys = tables["keys"][rows].astype(np.float32)
        found = self._found(queries, items_of(rows, seen))
        weights, real = np.empty(found.shape, np.float32), np.ones_like(found)
        found_weight = 0.0
        for begin in range(0, len(queries), TOGETHER):
            part = slice(begin, begin + TOGETHER)
            scores = _scores(queries[part], keys, offline.heads)
            if cross is not None:
                scores += cross.biases[seen].T[:, None]
            weights[part] = softmax(np.where(found[part], scores, -np.inf)).mean(0)
            if len(last) > offline.k:
                real[part] = first_in_turns(scores, offline.k)
                found_weight += float((softmax(scores).mean(0) * found[part]).sum())
        measured = relevance(self._bundle, weights, last, candidates)
        if len(last) > offline.k:
            measured["hit_rate"] = hit_rate_of_retrieval(found, real, offline.k)
            measured["found_weight"] = found_weight / len(queries)
        return measured

    def explain(
        self,
        history: UserHistory,
        behaviors: Behaviors,  # noqa: ARG002  # the history is all of them
        candidates: Candidates,
        now_ms: int,
    ) -> Explanation:
        """Parts are the behaviors that the search finds for any of the candidates; their weights
        are those of the ESU's heads (Eq. 7).
        """
        offline, tables, cross = self._offline, self._bundle.tables, self._cross
        last = history.newer[-self._bundle.manifest.L :]
        rows, seen = self._bundle.rows(last["item"]), self._seen(last, now_ms)
        queries = tables["queries"][candidates.rows].astype(np.float32)
        found = self._found(queries, items_of(rows, seen))
        used = np.flatnonzero(found.any(0))
        if not len(used):
            nothing = np.zeros((len(queries), 0, offline.heads), np.float32)
            return Explanation([], nothing, offline.width)
        scores = _scores(queries, tables["keys"][rows[used]].astype(np.float32), offline.heads)
        values = tables[VALUES][rows[used]]
        if cross is not None:
            assert seen is not None
            scores += cross.biases[seen[used]].T[:, None]
            values = values + cross.values[seen[used]]
        weights = softmax(np.where(found[:, used], scores, -np.inf)).transpose(1, 2, 0)
        whole = np.ones(1, np.float32)
        first = len(history.newer) - len(last)
        parts = [
            Part("behavior", first + place, 1, value, np.array([first + place]), whole)
            for place, value in zip(used.tolist(), values, strict=True)
        ]
        return Explanation(parts, weights, offline.width)

    def describe(
        self,
        state: InterestState,  # noqa: ARG002  # it has no parts
        sequence: StoredSequence,
        most: int,
    ) -> list[NamedPart]:
        """The items with the most behaviors: interests come about for a candidate alone."""
        last = sequence.behaviors[-self._bundle.manifest.L :]
        rows = self._bundle.rows(last["item"])
        items = items_of(rows)
        order = np.argsort(-items.counts, kind="stable")
        known = order[items.rows[order] > 0][:most]
        return [
            NamedPart(int(items.counts[item]) / len(rows), [int(items.rows[item])])
            for item in known
        ]

    def summarize(self, state: InterestState) -> dict[str, Any]:
        return {"items": len(state.history.item_keys)}

    def _seen(self, behaviors: Behaviors, now_ms: int) -> U16 | None:
        """The rows of behaviors' cross features; None: the attention has none."""
        return None if self._cross is None else self._bundle.feature_rows(behaviors, now_ms)

    def _found(self, queries: F32, items: Items) -> Bools:
        """The behaviors that the search finds for each query, bool[B, L], oldest first."""
        offline, cross = self._offline, self._cross
        return behaviors_found(
            queries,
            self._bundle.tables["keys"][items.rows].astype(np.float32),
            items,
            offline.k,
            offline.heads,
            None if cross is None else cross.biases[items.codes],
        )

    def _find(self, items: Items, candidates: I32) -> F32:
        """The heads of the attention side by side, f32[B, heads * d_k], zeros without behaviors."""
        offline, tables, cross = self._offline, self._bundle.tables, self._cross
        values = tables[VALUES][items.rows]
        return attend_to_found(
            tables["queries"][candidates].astype(np.float32),
            tables["keys"][items.rows].astype(np.float32),
            values if cross is None else values + cross.values[items.codes],
            items,
            offline.k,
            offline.heads,
            None if cross is None else cross.biases[items.codes],
        )


def first_in_turns(scores: F32, k: int) -> Bools:
    """The k < L behaviors that are met first when the heads' rankings are gone through in turns
    (section 4.3), equal scores newest first: what the search must find, by sorting.

    Args:
        scores: f32[heads, B, L], oldest first.

    Returns:
        bool[B, L].
    """
    heads, B, L = scores.shape
    ranked = scores + np.arange(L) * NEWEST_FIRST
    best = np.argpartition(ranked, L - k, axis=-1)[..., L - k :]
    order = np.argsort(-np.take_along_axis(ranked, best, -1), axis=-1)
    best = np.take_along_axis(best, order, -1)
    earliest = np.full((B, L), heads * k)
    for head, of_head in enumerate(best):
        turns = np.arange(k) * heads + head
        met = np.minimum(np.take_along_axis(earliest, of_head, -1), turns)
        np.put_along_axis(earliest, of_head, met, -1)
    last = np.partition(earliest, k - 1, axis=-1)[:, k - 1, None]
    found: Bools = earliest <= last
    return found


def _scores(queries: F32, keys: F32, heads: int) -> F32:
    """f32[heads, B, L]: the relevance of behaviors (Eq. 6)."""
    of_heads = [rows.reshape(len(rows), heads, -1).swapaxes(0, 1) for rows in (queries, keys)]
    return np.stack(list(map(products, *of_heads)))


def _check(bundle: Bundle) -> TWINOffline:
    """The settings of a bundle that is TWIN's and is run here as it was trained.

    Raises:
        BundleIncompatible: it is not.
    """
    offline, settings = bundle.manifest.offline, bundle.manifest.long_term
    for name, refused in (("consistent", False), ("cross", "raw")):
        if offline is None and settings.get(name) == refused:
            raise BundleIncompatible(
                f"{bundle.path / MANIFEST}: the network learned with long_term.{name} ="
                f" {refused!r}, which the services do not have; train without it"
            )
    if not isinstance(offline, TWINOffline):
        raise BundleIncompatible(
            f"{bundle.path / MANIFEST} has no settings of TWIN's search; export the bundle again"
        )
    for name, dtype in TABLES.items():
        check_table(bundle, name, TableEntry(dtype, offline.width))
    given = {name: (len(of), *set(map(len, of))) for name, of in offline.cross.items()}
    heights = bundle.combinations.heights
    expected = {name: (height, offline.heads) for name, height in heights.items()}
    if given and given != expected:
        raise BundleIncompatible(
            f"{bundle.path / MANIFEST} has biases of other features or heads than its network;"
            " export the bundle again"
        )
    if bundle.manifest.stored:
        raise BundleIncompatible(
            f"{bundle.path / MANIFEST} lays out states, and TWIN has none; export the bundle again"
        )
    return offline
