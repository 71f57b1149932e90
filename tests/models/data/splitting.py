"""Data sets to be split, and splits looked into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from models.data.divisions import ByTime, LastOfUser
from models.data.interactions import Interactions
from models.data.protocols import NextItem
from models.data.requests import Requests
from models.data.splits import Split
from tests.models.generated import numbered

FEW = NextItem(negatives=2, evaluation_negatives=5)
LAST = LastOfUser(validation=2, test=3)
BY_TIME = ByTime(validation=0.2, test=0.2)


def with_values(interactions: Interactions, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    return replace(interactions, values=rng.integers(1, 6, len(interactions)).astype(np.float32))


def once_each(users: int = 12, items: int = 40, each: int = 20) -> Interactions:
    """Users who never repeat an item; one behavior an hour, users in turn."""
    rng = np.random.default_rng(0)
    chosen = np.stack([rng.permutation(items)[:each] for _ in range(users)], axis=1)
    return numbered(np.tile(np.arange(users), each), chosen.ravel(), 3600 * np.arange(users * each))


def parts(split: Split) -> Iterator[tuple[str, Requests]]:
    yield "train", split.train
    yield "validation", split.validation
    yield "test", split.test


def seen(split: Split, requests: Requests, r: int) -> list[int]:
    cut = requests.cut[r]
    return list(split.sequences.items[split.sequences.start[cut] : cut])
