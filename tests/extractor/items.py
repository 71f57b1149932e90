"""A small item table, and sequences over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from extractor.systems.encode import PROJECTED, Extractor
from infra.arrays import F32, I32, U64
from infra.behaviors import BEHAVIOR
from infra.store import Behaviors, StoredSequence, Version
from models.bundle import EncodeOffline

N_ITEMS = 500
START_MS = 1_300_000_000_000
UNKNOWN = 1 << 63
"""Item keys from here on are unknown to the table."""


@dataclass(frozen=True)
class SmallDimensions:
    d: int = 8
    m: int = 4
    K: int = 6
    L: int = 200
    M: int = 10
    T: int = 15
    scale: float = 1 / 20

    @property
    def offline(self) -> EncodeOffline:
        return EncodeOffline(m=self.m, K=self.K, T=self.T, scale=self.scale)


@dataclass(frozen=True)
class SmallTable:
    """What an extractor needs of a bundle: item key i has row i, from 1 to N_ITEMS."""

    manifest: SmallDimensions = field(default_factory=SmallDimensions)
    digest: bytes = b"a small bundle's"
    seed: int = 0

    @property
    def embeddings(self) -> F32:
        rng = np.random.default_rng(self.seed)
        return rng.normal(size=(N_ITEMS + 1, self.manifest.d)).astype(np.float32)

    @property
    def tables(self) -> Mapping[str, F32]:
        return {PROJECTED: self.projected}

    @property
    def projected(self) -> F32:
        rng = np.random.default_rng(self.seed + 1)
        weights = rng.normal(size=(self.manifest.d, self.manifest.m))
        return (self.embeddings @ weights).astype(np.float32)

    def rows(self, item_keys: U64) -> I32:
        return np.where(item_keys <= N_ITEMS, item_keys, 0).astype(np.int32)


def behaviors_on(keys: list[int] | npt.NDArray[np.integer], start_ms: int = START_MS) -> Behaviors:
    """A behavior on each item, an hour apart."""
    behaviors = np.zeros(len(keys), BEHAVIOR)
    behaviors["item"] = keys
    behaviors["time"] = start_ms + 3_600_000 * np.arange(len(keys))
    return behaviors


def sequence_of(behaviors: Behaviors, count: int | None = None, epoch: int = 7) -> StoredSequence:
    count = len(behaviors) if count is None else count
    return StoredSequence(Version(epoch, count), behaviors, {})


def random_sequence(length: int, seed: int) -> StoredSequence:
    return sequence_of(behaviors_on(np.random.default_rng(seed).integers(1, N_ITEMS + 1, length)))


def small_extractor(**dimensions: float) -> Extractor:
    return extractor_of(SmallTable(SmallDimensions(**dimensions)))  # type: ignore[arg-type]


def extractor_of(items: SmallTable) -> Extractor:
    return Extractor(items, items.manifest.offline)
