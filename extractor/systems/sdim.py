"""SDIM as the services run it (SDIM, section 4.4): behaviors in buckets by their hash signatures.

Offline, a user's last L behaviors are summed into G groups of 2^tau buckets, which depend neither
on the candidates nor on L. Online, newer behaviors are added to a copy of the buckets, each
candidate finds its own bucket in every group, and the mean of what it finds is its long-term
vector (Eq. 12), with which the scorer graph begins. Nothing is hashed in a request: the signatures
of all items are an item table of the bundle. Items that it does not know have row 0's, as in
training.

The buckets are summed anew at each extraction. To subtract what left the last L behaviors would
take the behaviors that left, which the store no longer has, and gain little
(`docs/adr/0017-buckets-are-summed-anew.md`); and no rounding is left behind: a bucket without
behaviors is exactly zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from extractor.explanation import Explanation, Part, ordered
from extractor.history import count_items
from extractor.relevance import RELEVANCE, relevance
from extractor.state import InterestState, Layout
from extractor.system import (
    Candidates,
    NamedPart,
    UserHistory,
    check_stored,
    check_table,
    common_feed,
    common_state,
    one_by_one,
)
from infra.arrays import F32, U32, Array
from infra.behaviors import BEHAVIOR
from infra.errors import BundleIncompatible
from infra.store import Behaviors, StoredSequence, Version
from models.bundle import (
    LONG_TERM,
    MANIFEST,
    Bundle,
    SDIMOffline,
    StateTensor,
    TableEntry,
    table_file,
)
from models.kernels.buckets import (
    LEAST_NORM,
    Signatures,
    count_features,
    fill_buckets,
    read_buckets,
)

SIGNATURES: Final = "signatures"
"""The item table of hash signatures [n + 1, G] (Eq. 7)."""

TYPICAL: Final = 3
"""Items that name a bucket."""

EPSILON: Final = 1e-12
"""Least squared length that is divided by; an empty bucket has no shares."""


class SDIMTensors(NamedTuple):
    """The tensors of an SDIM state: G groups of buckets, one group after the other."""

    buckets: npt.NDArray[np.floating]
    """f32[G * 2^tau, d] or f16: sums of the behaviors' embeddings, not normalized, so that
    behaviors can be added."""
    sizes: U32
    """u32[G * 2^tau]: behaviors in each."""


def buckets_of(state: InterestState) -> SDIMTensors:
    """The tensors of a state by their names."""
    return SDIMTensors(*(state.tensors[name] for name in SDIMTensors._fields))


class SDIMSystem:
    """`extractor.system.System` of an SDIM bundle."""

    reads: Final = "profile"
    keeps_state = True

    def __init__(self, bundle: Bundle) -> None:
        self._offline = _check(bundle)
        self._bundle = bundle
        self._stored = np.dtype(bundle.manifest.stored["buckets"].dtype)
        self._embeddings = bundle.embeddings
        self._signatures: Signatures = bundle.tables[SIGNATURES]
        self.digest = bundle.digest
        self.layout = Layout(bundle.manifest.stored)

    @property
    def measures(self) -> tuple[str, ...]:
        return RELEVANCE if self._bundle.reference else ()

    @property
    def newest(self) -> int:
        """A newer behavior costs no more than one that is extracted."""
        return self._bundle.manifest.L

    def warm(self) -> None:
        self._bundle.warm()
        behaviors = np.zeros(2, BEHAVIOR)
        behaviors["item"] = (1, 2)
        state = self.extract(StoredSequence(Version(1, len(behaviors)), behaviors, {}))
        keys = np.ascontiguousarray(behaviors["item"])
        history = UserHistory(Version(1, len(behaviors) + 1), state, behaviors[:1])
        self.feed(history, Candidates(keys, self._bundle.rows(keys)), now_ms=1)

    def extract(
        self,
        sequence: StoredSequence,
        previous: InterestState | None = None,  # noqa: ARG002  # all is summed anew
    ) -> InterestState:
        manifest = self._bundle.manifest
        behaviors = sequence.behaviors[-manifest.L :]
        keys = np.ascontiguousarray(behaviors["item"])
        counted = count_items(keys, np.ascontiguousarray(behaviors["time"]))
        rows = self._bundle.rows(counted.items)
        buckets, sizes = self._empty()
        fill_buckets(rows, counted.counts, self._signatures, self._embeddings, buckets, sizes)
        self._add_features(behaviors, buckets)
        own = SDIMTensors(buckets.astype(self._stored, copy=False), sizes)._asdict()
        return common_state(self._bundle, sequence.version, behaviors, counted, own)

    def extract_many(
        self, sequences: Sequence[StoredSequence], previous: Sequence[InterestState | None]
    ) -> Iterator[InterestState]:
        return one_by_one(self.extract, sequences, previous)

    def feed(
        self, history: UserHistory | None, candidates: Candidates, now_ms: int
    ) -> dict[str, Array]:
        buckets, sizes = self._filled(history)
        by_length = self._offline.normalization == "l2"
        long_term = read_buckets(buckets, sizes, by_length, self._signatures, candidates.rows)
        return {LONG_TERM: long_term, **common_feed(self._bundle, history, candidates, now_ms)}

    def _filled(self, history: UserHistory | None) -> tuple[F32, U32]:
        """The buckets of a user, newer behaviors added, and their sizes."""
        buckets, sizes = self._empty()
        if history is not None:
            if history.state is not None:
                stored = buckets_of(history.state)
                # Copies: requests share a state, and a record is read-only.
                buckets, sizes = stored.buckets.astype(np.float32), stored.sizes.astype(np.uint32)
            newer = np.ascontiguousarray(history.newer["item"])
            one = np.ones(len(newer), np.uint32)
            rows = self._bundle.rows(newer)
            fill_buckets(rows, one, self._signatures, self._embeddings, buckets, sizes)
            self._add_features(history.newer, buckets)
        return buckets, sizes

    def measure(
        self,
        history: UserHistory,
        behaviors: Behaviors,
        candidates: Candidates,
        now_ms: int,  # noqa: ARG002  # what it sees of behaviors does not change with time
    ) -> dict[str, float]:
        """RI alone: a behavior weighs as much as its coefficient in the interest (Eq. 12), a
        collision counting by its bucket's normalization.
        """
        behaviors = behaviors[-self._bundle.manifest.L - len(history.newer) :]
        if not self.measures or not len(behaviors):
            return {}
        buckets, sizes = self._filled(history)
        by_length = self._offline.normalization == "l2"
        divisors = np.linalg.norm(buckets, axis=1) if by_length else sizes
        rows = self._bundle.rows(behaviors["item"])
        weights = np.zeros((len(candidates.rows), len(rows)), np.float32)
        for group in range(self._offline.groups):
            bucket_of = self._signatures[:, group]
            mine = bucket_of[candidates.rows, None]
            divisor = divisors[mine.astype(np.int64) + (group << self._offline.tau)]
            weights += (mine == bucket_of[rows]) / np.maximum(divisor, LEAST_NORM)
        return relevance(self._bundle, weights, behaviors, candidates)

    def explain(
        self,
        history: UserHistory,
        behaviors: Behaviors,
        candidates: Candidates,
        now_ms: int,  # noqa: ARG002  # what it sees of behaviors does not change with time
    ) -> Explanation:
        """Parts are the candidates' buckets, all of one weight (Eq. 12) and normalized. A
        behavior's share is what it has of the bucket's sum, in the sum's direction; it can be below
        0.
        """
        offline = self._offline
        behaviors = behaviors[-self._bundle.manifest.L - len(history.newer) :]
        buckets, sizes = self._filled(history)
        groups = np.arange(offline.groups) << offline.tau
        places = self._signatures[candidates.rows].astype(np.int64) + groups
        used = np.unique(places)
        rows = self._bundle.rows(behaviors["item"])
        embedded = self._embeddings[rows]
        if self._bundle.features is not None:
            seen = self._bundle.feature_rows(behaviors, now_ms=0)
            embedded = embedded + self._bundle.features[seen]
        bucket_of = self._signatures[rows].astype(np.int64) + groups
        parts = []
        for place in used.tolist():
            total, size = buckets[place], int(sizes[place])
            length = float(np.linalg.norm(total))
            by_length = offline.normalization == "l2"
            divisor = max(length, float(LEAST_NORM)) if by_length else float(max(size, 1))
            members = np.flatnonzero(bucket_of[:, place >> offline.tau] == place)
            shares = embedded[members] @ total / max(length * length, EPSILON)
            parts.append(
                Part(
                    "bucket",
                    place,
                    size,
                    total / np.float32(divisor),
                    *ordered(members, shares.astype(np.float32, copy=False)),
                )
            )
        weights = np.zeros((len(places), len(used), 1), np.float32)
        found = np.searchsorted(used, places)
        np.put_along_axis(weights[..., 0], found, np.float32(1 / offline.groups), axis=1)
        return Explanation(parts, weights, self._bundle.manifest.d)

    def describe(
        self, state: InterestState, sequence: StoredSequence, most: int
    ) -> list[NamedPart]:
        """The buckets of the first group; another would divide the behaviors along other planes.
        A bucket's most typical items have the largest cosines to its sum.
        """
        rows = np.unique(self._bundle.rows(sequence.behaviors["item"]))
        rows = rows[rows > 0]
        group = 1 << self._offline.tau
        sums, sizes = (tensor[:group] for tensor in buckets_of(state))
        embeddings, bucket_of = self._embeddings[rows], self._signatures[rows, 0]
        lengths = np.maximum(np.linalg.norm(embeddings, axis=1), 1e-12)
        nearness = (embeddings * sums[bucket_of]).sum(axis=1) / lengths
        total = max(int(sizes.sum()), 1)
        named = []
        for bucket in np.argsort(-sizes.astype(np.int64), kind="stable"):
            members = np.flatnonzero(bucket_of == bucket)
            typical = members[np.argsort(-nearness[members], kind="stable")][:TYPICAL]
            if sizes[bucket] and len(typical):
                named.append(NamedPart(int(sizes[bucket]) / total, rows[typical].tolist()))
        return named[:most]

    def summarize(self, state: InterestState) -> dict[str, Any]:
        sizes = buckets_of(state).sizes
        return {"buckets": len(sizes), "filled": int(np.count_nonzero(sizes))}

    def _add_features(self, behaviors: Behaviors, buckets: F32) -> None:
        """Add the embeddings of behaviors' features to the buckets of their items."""
        table = self._bundle.features
        if table is not None:
            seen = self._bundle.feature_rows(behaviors, now_ms=0)
            # Of all combinations a user has few.
            used, places = np.unique(seen, return_inverse=True)
            counts = np.zeros((len(buckets), len(used)), np.float32)
            rows = self._bundle.rows(behaviors["item"])
            count_features(rows, places.astype(np.uint16), self._signatures, counts)
            buckets += counts @ table[used]

    def _empty(self) -> tuple[F32, U32]:
        """The buckets of nobody, and their sizes."""
        buckets = self._offline.buckets
        return (
            np.zeros((buckets, self._bundle.manifest.d), np.float32),
            np.zeros(buckets, np.uint32),
        )


def _check(bundle: Bundle) -> SDIMOffline:
    """The offline settings of a bundle that is SDIM's and is run here as it was trained.

    Raises:
        BundleIncompatible: it is not.
    """
    manifest, file = bundle.manifest, bundle.path / MANIFEST
    offline = manifest.offline
    if not isinstance(offline, SDIMOffline):
        raise BundleIncompatible(
            f"{file} has no settings of SDIM's offline stage; export the bundle again"
        )
    check_table(bundle, SIGNATURES, TableEntry(offline.signature, offline.groups))
    signatures = bundle.tables[SIGNATURES]
    if signatures.max(initial=0) >> offline.tau:
        raise BundleIncompatible(
            f"{bundle.path / table_file(SIGNATURES)} names buckets that there are not, with tau ="
            f" {offline.tau}; export the bundle again"
        )
    layouts = [
        {
            "buckets": StateTensor(dtype, (offline.buckets, manifest.d)),
            "sizes": StateTensor("uint32", (offline.buckets,)),
        }
        for dtype in ("float32", "float16")
    ]
    check_stored(bundle, layouts)
    return offline
