"""The oracle: what a bundle says of a request on a store, ranked in this process."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry

from extractor.system import System
from extractor.systems import open_system
from infra.behaviors import DEFAULT_ACTIONS, Source, item_key, pack_behavior
from infra.metrics import ScorerMetrics
from infra.settings import StoreSettings
from infra.store import Append, Group, InterestWrite, Store
from infra.stores import open_store
from infra.stores.memory import MemoryStore
from models.bundle import Bundle
from scorer.ranking import Ranker, Ranking
from tests.soak.asking import ITEMS, NOW_MS, USERS, Asked

NOTHING: Final = "nothing"
"""The store that answers nothing: degraded rankings are those of strangers."""

LONGEST: Final = 300
"""Behaviors of a user."""


class Model(NamedTuple):
    """A version of the bundle."""

    path: Path
    bundle: Bundle
    system: System


class Oracle:
    """Ranks as the scorer should, by any version and any store."""

    def __init__(self, models: Sequence[Model], stores: dict[str, Path]) -> None:
        self._stores: dict[str, Store] = {
            name: open_store(settings_of(path), read_only=True) for name, path in stores.items()
        }
        self._stores[NOTHING] = MemoryStore()
        self._rankers = {
            (model.bundle.version, name): Ranker(
                store, model.bundle, model.system, ScorerMetrics(CollectorRegistry())
            )
            for model in models
            for name, store in self._stores.items()
        }

    def rank(self, version: str, store: str, asked: Asked) -> Ranking:
        """What the answer should be."""
        policy = "score" if asked.policy == "refuse" else asked.policy
        ranker = self._rankers[version, store]
        return ranker.rank(asked.user, asked.candidates, NOW_MS, policy)  # type: ignore[arg-type]

    def close(self) -> None:
        for store in self._stores.values():
            store.close()


def load(path: Path) -> Model:
    bundle = Bundle.load(path)
    system = open_system(bundle)
    system.warm()
    return Model(path, bundle, system)


def settings_of(path: Path) -> StoreSettings:
    return StoreSettings(url=f"lmdb://{path}?sync=0")


def fill(store: Store, models: Sequence[Model], seed: str) -> None:
    """Fill a store: users with long and short histories, some of whom have interests by one of the
    bundles, by both or by none, and behaviors newer than those. By the same seed they are the same.
    """
    chance = random.Random(seed)
    for number in range(USERS):
        user = f"user-{number}"
        length = chance.choice((1, 5, 60, LONGEST))
        clustered = chance.randrange(length + 1)
        made = [
            pack_behavior(
                item_key(f"item-{chance.randrange(1, ITEMS + 1)}"),
                NOW_MS - (length - place) * 60_000,
                0,
                0,
                DEFAULT_ACTIONS.codes["click"],
            )
            for place in range(length)
        ]
        _append(store, user, made[:clustered], 0)
        if clustered:
            for model in chance.sample(models, chance.randrange(len(models) + 1)):
                _cluster(store, user, model)
        _append(store, user, made[clustered:], clustered)


def _append(store: Store, user: str, behaviors: list[bytes], first: int) -> None:
    if behaviors:
        offsets = list(range(first, first + len(behaviors)))
        append = Append(user, behaviors, [0] * len(behaviors), offsets)
        store.append([Group(Source(key=1, owner=1), [append])], NOW_MS)


def _cluster(store: Store, user: str, model: Model) -> None:
    """Store the user's interests as of now, as a worker would."""
    (sequence,) = store.sequences([user])
    assert sequence is not None
    state = model.system.extract(sequence)
    record = model.system.layout.encode(state)
    digest = model.bundle.digest
    store.put_interests([InterestWrite(user, digest, state.version, record)], NOW_MS)
