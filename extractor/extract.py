"""From a stored sequence to an interest state (ENCODE, Algorithm 1)."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from extractor.attention import attend_kernel
from extractor.clustering import WARM_ITERATIONS, cluster_kernel, plain_f32
from extractor.kernels import kernel
from extractor.state import InterestState
from infra.behaviors import BEHAVIOR
from infra.store import Behaviors, StoredSequence, Version

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

COUNT_MAX: Final = np.iinfo(np.uint16).max
SECONDS_MAX: Final = np.iinfo(np.uint32).max
HASH_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Fibonacci hashing)


class Dimensions(Protocol):
    """What the extractor reads of a bundle's manifest, in the papers' letters."""

    @property
    def d(self) -> int: ...  # noqa: D102
    @property
    def m(self) -> int: ...
    @property
    def K(self) -> int: ...
    @property
    def L(self) -> int: ...
    @property
    def M(self) -> int: ...
    @property
    def T(self) -> int: ...
    @property
    def scale(self) -> float: ...


class ItemTable(Protocol):
    """What the extractor needs of a bundle: `models.bundle.Bundle` is one."""

    @property
    def digest(self) -> bytes: ...
    @property
    def manifest(self) -> Dimensions: ...
    @property
    def embeddings(self) -> F32: ...
    @property
    def projected(self) -> F32: ...
    def rows(self, item_keys: U64) -> I32: ...


class Extractor:
    """Makes interest states with one bundle's item table. Safe to use from several threads.

    Behaviors on one item are one point, weighted by their number: k-means and the softmax of Eq. 8
    give the same as over the repeated points. Items that the bundle does not know share row 0,
    so they are together one point, clustered and attended to like any other, exactly as in
    training; in the history each of them counts on its own.
    """

    def __init__(self, bundle: ItemTable) -> None:
        self._bundle = bundle
        self._projected = plain_f32(bundle.projected)
        self._embeddings = plain_f32(bundle.embeddings)
        self.warm()

    def extract(
        self, sequence: StoredSequence, previous: InterestState | None = None
    ) -> InterestState:
        """The interest state of a sequence's last L behaviors.

        Args:
            sequence: the user's behaviors, oldest first; none is fine, and gives empty clusters.
            previous: the user's last state. Its centers start the clustering (at most
                `WARM_ITERATIONS` iterations) when it is of the same bundle and of the same life
                of the user's record, and covers half of these behaviors or more.
        """
        dimensions = self._bundle.manifest
        behaviors = sequence.behaviors[-dimensions.L :]
        history = summarize(behaviors)
        start = _NO_CENTERS[:, : dimensions.m] if previous is None else previous.centers
        centers, sizes, interests = _interests()
        raise NotImplementedError
