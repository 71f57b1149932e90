"""ENCODE as the services run it (ENCODE, Algorithm 1): sequences into clustered interests.

Offline, behaviors are clustered in the projected space and each cluster becomes an interest by
in-cluster attention (`Extractor`). Online, a candidate attends to the interests and to each newer
behavior, which is an interest of its own: a cluster of one, whose u is its embedding
(`EncodeSystem.feed`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import accumulate
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from extractor.explanation import Explanation, Part, ordered
from extractor.features import with_features
from extractor.history import ItemCounts, count_items, slices
from extractor.relevance import RELEVANCE, relevance
from extractor.state import InterestState, Layout
from extractor.system import (
    Candidates,
    NamedPart,
    UserHistory,
    check_stored,
    check_table,
    common_feed,
)
from infra.arrays import F32, I32, I64, U16, U32, U64, Array
from infra.behaviors import BEHAVIOR
from infra.errors import BundleIncompatible, RequestError
from infra.store import Behaviors, StoredSequence, Version
from models.bundle import (
    MANIFEST,
    PROJECTION,
    Bundle,
    EncodeOffline,
    StateTensor,
    TableEntry,
    make_session,
)
from models.kernels import clustering
from models.kernels.attention import attend
from models.kernels.interests import interests_kernel
from models.kernels.relevance import products, relevance_indicator, softmax

NEWEST: Final = 256
"""Most behaviors that become interests of their own. Each costs as much attention as a cluster;
beyond this many, clustering the whole sequence on the spot (~0.1 ms) is cheaper."""

PROJECTED: Final = "projected"
"""The item table of what is clustered."""

TOGETHER: Final = 16
"""Users extracted by one call of the kernels: more would hardly share its cost any further, and
their arrays would be so large that each call had them from the system, page by page."""

TYPICAL: Final = 3
"""Items that name an interest."""

EPSILON: Final = 1e-6
"""Least norm divided by; a zero vector has cosine 0 with everything, as in the scorer graph."""

_F32: Final[np.dtype[Any]] = np.dtype(np.float32)


class EncodeTensors(NamedTuple):
    """The tensors of an ENCODE state: k clusters, none of them empty, k <= K."""

    centers: F32
    """f32[k,m], unit length: the clusters' centers in the projected space."""
    interests: npt.NDArray[np.floating]
    """f32[k,d] or f16[k,d]: the clusters' interests u (Eq. 8) in the embedding space."""
    sizes: U32
    """u32[k]: behaviors in each cluster."""


def interests_of(state: InterestState) -> EncodeTensors:
    """The tensors of a state by their names."""
    return EncodeTensors(*(state.tensors[name] for name in EncodeTensors._fields))


class Dimensions(Protocol):
    """What the extractor reads of a bundle's manifest beside the offline settings."""

    @property
    def L(self) -> int:  # noqa: N802  # the papers' letter
        """Behaviors that are clustered, at most."""

    @property
    def M(self) -> int:  # noqa: N802  # the papers' letter
        """Recent behaviors that are attended to one by one, at most."""


class ItemTable(Protocol):
    """What the extractor needs of a bundle; `models.bundle.Bundle` is one."""

    @property
    def digest(self) -> bytes:
        """16 bytes that name the bundle's content."""

    @property
    def manifest(self) -> Dimensions:
        """The bundle's dimensions."""

    @property
    def embeddings(self) -> F32:
        """f32[n + 1, d], row 0 for unknown items."""

    @property
    def tables(self) -> Mapping[str, Array]:
        """Item tables by name; `PROJECTED` is f32[n + 1, m], h = W_h^T e of every row (Eq. 4)."""

    def rows(self, item_keys: U64) -> I32:
        """i32[n]: the items' rows, 0 where the bundle does not know one."""


class EncodeSystem:
    """`extractor.system.System` of an ENCODE bundle."""

    reads: Final = "profile"
    keeps_state: Final = True
    newest: Final = NEWEST

    def __init__(self, bundle: Bundle) -> None:
        offline = _check(bundle)
        interests = np.dtype(bundle.manifest.stored["interests"].dtype)
        self._bundle, self._offline = bundle, offline
        kind = Extractor if bundle.features is None else FeatureExtractor
        self._extractor = kind(bundle, offline, interests)
        self.digest = bundle.digest
        self.layout = Layout(bundle.manifest.stored)

    def warm(self) -> None:
        self._bundle.warm()
        behaviors = np.zeros(self._offline.K + 1, BEHAVIOR)
        behaviors["item"] = np.arange(len(behaviors))
        state = self.extract(StoredSequence(Version(1, len(behaviors)), behaviors, {}))
        keys = np.ascontiguousarray(behaviors["item"])
        history = UserHistory(Version(1, len(behaviors) + 1), state, behaviors[:1])
        self.feed(history, Candidates(keys, self._bundle.rows(keys)), now_ms=1)

    def extract(
        self, sequence: StoredSequence, previous: InterestState | None = None
    ) -> InterestState:
        (state,) = self.extract_many([sequence], [previous])
        return state

    def extract_many(
        self, sequences: Sequence[StoredSequence], previous: Sequence[InterestState | None]
    ) -> Iterator[InterestState]:
        states = self._extractor.extract_many(sequences, previous)
        if not self._bundle.manifest.of_features():
            return states
        return with_features(self._bundle, states, sequences)

    def feed(
        self, history: UserHistory | None, candidates: Candidates, now_ms: int
    ) -> dict[str, Array]:
        bundle = self._bundle
        interests, sizes = np.empty((0, bundle.manifest.d), np.float32), np.empty(0, np.float32)
        if history is not None:
            interests, sizes = self._interests(history)
        if not len(sizes):
            interests, sizes = np.zeros((1, bundle.manifest.d), np.float32), np.zeros(1, np.float32)
        feed: dict[str, Array] = {
            "interests": interests.astype(np.float32, copy=False),
            "sizes": sizes,
        }
        return feed | common_feed(bundle, history, candidates, now_ms)

    @property
    def measures(self) -> tuple[str, ...]:
        """None for an attention by dot product, whose metric lies in the scorer graph alone."""
        cosine = self._bundle.manifest.long_term.get("online", "cosine") == "cosine"
        if not cosine:
            return ()
        return ("clustering_loss", *(RELEVANCE if self._bundle.reference else ()))

    def measure(
        self,
        history: UserHistory,
        behaviors: Behaviors,
        candidates: Candidates,
        now_ms: int,  # noqa: ARG002  # what it sees of behaviors does not change with time
    ) -> dict[str, float]:
        """The "clustering_loss" is by how many nats RI (section 4.6.1) is above the least where the
        truth is the same attention (Eq. 10) to each behavior by itself.

        Behaviors are taken to be in the cluster whose center is nearest, which they are where the
        clustering converged.
        """
        behaviors = behaviors[-self._bundle.manifest.L - len(history.newer) :]
        interests, sizes = self._interests(history)
        if not self.measures or not len(behaviors) or not len(sizes):
            return {}
        queries, between = self._attended(interests, sizes, candidates)
        labels, within = self._within(history, behaviors, len(sizes))
        weights = self._between(history, between)[:, labels] * within
        truth = softmax(products(queries, unit(self._embedded(behaviors))))
        lost = relevance_indicator(weights, truth) - relevance_indicator(truth, truth)
        relevant = relevance(self._bundle, weights, behaviors, candidates)
        return {"clustering_loss": max(lost, 0.0), **relevant}

    def explain(
        self,
        history: UserHistory,
        behaviors: Behaviors,
        candidates: Candidates,
        now_ms: int,  # noqa: ARG002  # what it sees of behaviors does not change with time
    ) -> Explanation:
        """Parts are the interests, and each newer behavior (Eqs. 8 and 10). As in `measure`,
        behaviors are taken to be in the cluster whose center is nearest.
        """
        if not self.measures:
            raise RequestError(
                "explain",
                f"is not possible with {self._bundle.manifest.name}: it attends by dot"
                " product, whose weights are within its scorer graph alone",
            )
        interests, sizes = self._interests(history)
        _, weights = self._attended(interests, sizes, candidates)
        newer = len(history.newer)
        behaviors = behaviors[-self._bundle.manifest.L - newer :]
        given = len(behaviors)
        labels, within = self._within(history, behaviors, len(sizes))
        clusters = len(sizes) - newer
        parts = []
        for i, (vector, size) in enumerate(zip(interests, sizes.tolist(), strict=True)):
            members = np.flatnonzero((labels == i) & (within > 0))
            alone = i >= clusters
            parts.append(
                Part(
                    "behavior" if alone else "interest",
                    given - len(sizes) + i if alone else i,
                    int(size),
                    vector,
                    *ordered(members, within[members]),
                )
            )
        return Explanation(parts, weights[..., None], self._bundle.manifest.d)

    def _attended(self, interests: F32, sizes: F32, candidates: Candidates) -> tuple[F32, F32]:
        """Queries f32[B, d], and the weights of interests f32[B, k'] for them (Eq. 10)."""
        queries = unit(self._bundle.embeddings[candidates.rows])
        queries *= np.float32(self._offline.scale)
        between = products(queries, unit(interests))
        if self._bundle.manifest.long_term.get("sized", True):
            between += np.log(sizes)
        return queries, softmax(between) if len(sizes) else between

    def describe(
        self, state: InterestState, sequence: StoredSequence, most: int
    ) -> list[NamedPart]:
        """A behavior belongs to the center with the largest cosine in the projected space (ENCODE,
        section 3.2.2), as in the clustering itself.
        """
        of = interests_of(state)
        rows = np.unique(self._bundle.rows(sequence.behaviors["item"]))
        rows = rows[rows > 0]
        if not len(rows) or not len(of.sizes):
            return []
        projected = self._bundle.tables[PROJECTED][rows]
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        cosines = projected / np.maximum(norms, 1e-12) @ of.centers.T
        member_of, nearness = np.argmax(cosines, axis=1), cosines.max(axis=1)
        total = int(of.sizes.sum())
        named = []
        for cluster in np.argsort(-of.sizes.astype(np.int64), kind="stable"):
            members = np.flatnonzero(member_of == cluster)
            typical = members[np.argsort(-nearness[members], kind="stable")][:TYPICAL]
            if len(typical):
                named.append(NamedPart(int(of.sizes[cluster]) / total, rows[typical].tolist()))
        return named[:most]

    def _interests(self, history: UserHistory) -> tuple[F32, F32]:
        """Interests f32[k', d] and their sizes f32[k']: the clusters, and each newer behavior."""
        alone = self._embedded(history.newer)
        ones = np.ones(len(alone), np.float32)
        if history.state is None:
            return alone, ones
        of = interests_of(history.state)
        sizes = of.sizes.astype(np.float32)
        if not len(alone):
            return of.interests.astype(np.float32, copy=False), sizes
        return np.concatenate((of.interests, alone)), np.concatenate((sizes, ones))

    def _within(
        self, history: UserHistory, behaviors: Behaviors, interests: int
    ) -> tuple[I64, F32]:
        """The interest that each of n behaviors is part of, i64[n], and its weight there."""
        n, newer = len(behaviors), len(history.newer)
        labels, within = np.arange(n) + (interests - n), np.ones(n, np.float32)
        if history.state is not None:
            older = slice(n - newer)
            h = self._extractor.project(behaviors[older])
            centers = interests_of(history.state).centers
            labels[older], within[older] = within_clusters(h, centers, self._offline.scale)
        return labels, within

    def _between(self, history: UserHistory, weights: F32) -> F32:
        """The weights f32[B, k'] of interests, where clusters of one center have them together:
        behaviors that are alike have a cluster each if there are enough clusters.
        """
        if history.state is not None:
            centers = interests_of(history.state).centers
            clusters = slice(len(centers))
            alike = (centers[:, None] == centers).all(axis=-1)
            weights[:, clusters] = weights[:, clusters] @ alike
        return weights

    def _embedded(self, behaviors: Behaviors) -> F32:
        """f32[n, d]: what a behavior is to the network."""
        bundle = self._bundle
        embedded = bundle.embeddings.take(bundle.rows(behaviors["item"]), axis=0)
        if bundle.features is not None:
            embedded = embedded + bundle.features[bundle.feature_rows(behaviors, now_ms=0)]
        return embedded

    def summarize(self, state: InterestState) -> dict[str, Any]:
        return {"clusters": len(state.tensors["sizes"])}


class Extractor:
    """Makes interest states with one bundle's item table. Safe to use from several threads.

    Behaviors on one item are one point that weighs as many as they are: k-means and the softmax of
    Eq. 8 give what they would give over the repeated points. Items that the bundle does not know
    have row 0 in common and so are one point together, clustered like any other, because training
    does the same; in the history each of them counts by itself.
    """

    def __init__(
        self,
        bundle: ItemTable,
        offline: EncodeOffline,
        interests: np.dtype[Any] = _F32,
    ) -> None:
        """Take the tables of a bundle.

        Args:
            offline: how behaviors become interests.
            interests: the type in which interests are stored, float32 or float16.
        """
        self._bundle, self._offline, self._stored = bundle, offline, interests
        self._projected = _table(bundle.tables[PROJECTED])
        self._embeddings = _table(bundle.embeddings)

    def extract(
        self, sequence: StoredSequence, previous: InterestState | None = None
    ) -> InterestState:
        """The interest state of a sequence's last L behaviors.

        Args:
            sequence: the user's behaviors, oldest first; none is fine and gives empty clusters.
            previous: the user's last state. Its centers start the clustering (which then takes
                `WARM_ITERATIONS` at most) where it is of the same bundle and the same life of the
                user's record, and has seen at least half of these behaviors.
        """
        (state,) = self._extract([sequence], [previous])
        return state

    def extract_many(
        self, sequences: Sequence[StoredSequence], previous: Sequence[InterestState | None]
    ) -> Iterator[InterestState]:
        """The states of several users, each as by `extract`."""
        for start in range(0, len(sequences), TOGETHER):
            part = slice(start, start + TOGETHER)
            yield from self._extract(sequences[part], previous[part])

    def _extract(
        self, sequences: Sequence[StoredSequence], previous: Sequence[InterestState | None]
    ) -> Iterator[InterestState]:
        bundle, dimensions = self._bundle, self._bundle.manifest
        behaviors = [sequence.behaviors[-dimensions.L :] for sequence in sequences]
        keys = np.concatenate([one["item"] for one in behaviors])
        times = np.concatenate([one["time"] for one in behaviors])
        ends = _bounds(behaviors)
        counted = count_items(keys, times, ends)
        starts = list(map(self._start, sequences, previous))
        centers, interests, sizes, bounds = self._interests_of(behaviors, counted, starts)
        for sequence, newest, end, mine, history, last_time_ms in zip(
            sequences,
            behaviors,
            ends[1:].tolist(),
            slices(bounds),
            counted.histories(),
            counted.last_times_ms.tolist(),
            strict=True,
        ):
            of = interests[mine].astype(self._stored, copy=False)
            tensors = EncodeTensors(centers[mine], of, sizes[mine])
            yield InterestState(
                bundle=bundle.digest,
                version=sequence.version,
                last_time_ms=last_time_ms,
                recent=keys[end - min(dimensions.M, len(newest)) : end],
                history=history,
                tensors=tensors._asdict(),
            )

    def project(self, behaviors: Behaviors) -> F32:
        """f32[n, m]: h of behaviors (Eq. 4)."""
        projected: F32 = self._projected[self._bundle.rows(behaviors["item"])]
        return projected

    def _interests_of(
        self,
        behaviors: Sequence[Behaviors],  # noqa: ARG002  # their items say all
        counted: ItemCounts,
        starts: Sequence[F32],
    ) -> tuple[F32, F32, U32, I64]:
        """As of `interests_kernel`."""
        offline = self._offline
        return interests_kernel(
            self._bundle.rows(counted.items),
            counted.counts,
            counted.bounds,
            np.concatenate(starts),
            _bounds(starts),
            self._projected,
            self._embeddings,
            offline.K,
            offline.T,
            np.float32(offline.scale),
        )

    def _start(self, sequence: StoredSequence, previous: InterestState | None) -> F32:
        """The centers to begin with, f32[<=K,m]; none for a cold start."""
        if (
            previous is None
            or previous.bundle != self._bundle.digest
            or previous.epoch != sequence.version.epoch
            or 2 * (sequence.version.count - previous.count) > len(sequence.behaviors)
        ):
            return np.empty((0, self._offline.m), np.float32)
        return interests_of(previous).centers


class FeatureExtractor(Extractor):
    """An extractor whose network sees more of behaviors than their items.

    A behavior's embedding is its item's and its features' together, and so is its projection, which
    is linear. Behaviors on one item are points of their own, as in training.
    """

    def __init__(
        self, bundle: Bundle, offline: EncodeOffline, interests: np.dtype[Any] = _F32
    ) -> None:
        super().__init__(bundle, offline, interests)
        assert bundle.features is not None
        self._loaded, self._features = bundle, bundle.features
        session = make_session((bundle.path / PROJECTION).read_bytes())
        (self._projected_features,) = session.run([PROJECTED], {"embeddings": bundle.features})

    def project(self, behaviors: Behaviors) -> F32:
        return self._h(*self._places(behaviors))

    def _interests_of(
        self,
        behaviors: Sequence[Behaviors],
        counted: ItemCounts,  # noqa: ARG002  # of items alone
        starts: Sequence[F32],
    ) -> tuple[F32, F32, U32, I64]:
        users = [self._of_one(*each) for each in zip(behaviors, starts, strict=True)]
        centers, interests, sizes = zip(*users, strict=True)
        parts = np.concatenate(centers), np.concatenate(interests), np.concatenate(sizes)
        return *parts, _bounds(sizes)

    def _of_one(self, behaviors: Behaviors, start: F32) -> tuple[F32, F32, U32]:
        """Centers f32[k,m], interests f32[k,d] and sizes u32[k] of a user's clusters."""
        offline = self._offline
        rows, seen = self._places(behaviors)
        h = self._h(rows, seen)
        found = clustering.cluster(h, offline.K, offline.T, start=start)
        vectors = self._embeddings[rows] + self._features[seen]
        each = np.arange(len(rows), dtype=np.int32)
        interests = attend(h, found.assign, found.centers, each, vectors, offline.scale)
        filled = found.sizes > 0
        return found.centers[filled], interests[filled], found.sizes[filled]

    def _places(self, behaviors: Behaviors) -> tuple[I32, U16]:
        """The rows of the behaviors' items, and of what else is seen of them."""
        rows = self._bundle.rows(behaviors["item"])
        return rows, self._loaded.feature_rows(behaviors, now_ms=0)

    def _h(self, rows: I32, seen: U16) -> F32:
        """f32[n, m]: `project`, of behaviors by their places."""
        h: F32 = self._projected[rows] + self._projected_features[seen]
        return h


def within_clusters(h: F32, centers: F32, scale: float) -> tuple[I64, F32]:
    """The weights of behaviors within their clusters (Eq. 8).

    Args:
        h: f32[n, m], projected behaviors.
        centers: f32[k, m], unit length.
        scale: what the cosine is multiplied with (Eq. 9).

    Returns:
        The nearest center of each, i64[n], and its weight there, f32[n]; 0 for a behavior without a
        direction, which is in no cluster.
    """
    if not len(h) or not len(centers):
        return np.zeros(len(h), np.int64), np.zeros(len(h), np.float32)
    cosines = unit(h) @ centers.T
    labels = cosines.argmax(axis=1)
    scores = cosines[np.arange(len(h)), labels] * np.float32(scale)
    largest = np.full(len(centers), -np.inf, np.float32)
    np.maximum.at(largest, labels, scores)
    weights = np.exp(scores - largest[labels]) * h.any(axis=1)
    totals = np.bincount(labels, weights, len(centers))[labels]
    within = np.divide(weights, totals, out=np.zeros_like(weights), where=totals > 0)
    return labels, within


def unit(vectors: npt.NDArray[np.floating]) -> F32:
    """Vectors [n, d] scaled to length 1, f32; zero vectors stay zero."""
    vectors = vectors.astype(np.float32, copy=False)
    scaled: F32 = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), EPSILON)
    return scaled


def _check(bundle: Bundle) -> EncodeOffline:
    """The offline settings of a bundle that is ENCODE's and is run here as it was trained.

    Raises:
        BundleIncompatible: it is not.
    """
    manifest, file = bundle.manifest, bundle.path / MANIFEST
    clustering = manifest.long_term.get("clustering", "k-means")
    if clustering != "k-means":
        raise BundleIncompatible(
            f"{file}: the network learned with clustering {clustering!r}, the services "
            "cluster by k-means; train with that"
        )
    offline = manifest.offline
    if not isinstance(offline, EncodeOffline):
        raise BundleIncompatible(
            f"{file} has no settings of the offline stage; export the bundle again"
        )
    m, d = offline.m, manifest.d
    check_table(bundle, PROJECTED, TableEntry("float32", m))
    layouts = [
        {
            "centers": StateTensor("float32", ("k", m)),
            "interests": StateTensor(interests, ("k", d)),
            "sizes": StateTensor("uint32", ("k",)),
        }
        for interests in ("float32", "float16")
    ]
    check_stored(bundle, layouts)
    return offline


def _table(array: F32) -> F32:
    """A read-only view, without a copy of the table: the one layout the kernels see."""
    view = np.require(array, np.float32, ("C", "A")).view()
    view.flags.writeable = False
    return view


def _bounds(parts: Iterable[Sized]) -> I64:
    """Where each part begins and the last one ends, put end to end."""
    return np.array([0, *accumulate(map(len, parts))], np.int64)
