"""Tiny valid bundles for tests of whatever loads one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.bundle import BundleContents, save_bundle

if TYPE_CHECKING:
    from models.config import RunConfig
    from models.data.schema import BehaviorFeature
    from models.network import Network


def tiny_bundle(
    directory: Path,
    items: int = 50,
    d: int = 8,
    m: int = 4,
    K: int = 4,
    L: int = 64,
    M: int = 8,
    seed: int = 0,
    T: int = 15,
    name: str = "tiny",
    system: str = "encode",
    actions: tuple[str, ...] = (),
    behavior: tuple[BehaviorFeature, ...] | None = None,
) -> Path:
    """Write a valid bundle of an untrained network into ``directory``, and give its path.

    Items are "item-1" ... "item-<items>", titled "Item 1" and so on. Two calls with the same
    arguments write the same bytes, hence the same digest. The first of a kind takes seconds (torch
    is imported and the network exported), a repetition in the same process milliseconds.

    Args:
        actions: names of the actions of its data.
        behavior: what the network sees of behaviors beside their items; None: their actions, if
            there are any.
    """
    if behavior is None:
        behavior = ("action",) if actions else ()
    contents = _contents(items, d, m, K, L, M, seed, T, name, system, actions, behavior)
    save_bundle(contents, directory)
    return directory


@lru_cache
def _contents(
    items: int,
    d: int,
    m: int,
    K: int,
    L: int,
    M: int,
    seed: int,
    T: int,
    name: str,
    system: str,
    actions: tuple[str, ...],
    behavior: tuple[BehaviorFeature, ...],
) -> BundleContents:
    import torch  # slow to import: only tests that make a bundle pay for it

    from models.export import export_network

    config = tiny_config(d, m, K, L, M, seed, T, name, system, behavior=behavior)
    with torch.random.fork_rng():
        network = tiny_network(items, config, actions)
    counts = np.random.default_rng(seed).integers(1, 100, items)
    popularity = np.concatenate([[0.0], counts * (1e6 / counts.sum())]).astype(np.float32)
    contents, _ = export_network(
        network,
        config,
        item_ids=["", *(f"item-{i}" for i in range(1, items + 1))],
        titles=["", *(f"Item {i}" for i in range(1, items + 1))],
        popularity=popularity,
    )
    return contents


def tiny_config(
    d: int = 8,
    m: int = 4,
    K: int = 4,
    L: int = 64,
    M: int = 8,
    seed: int = 0,
    T: int = 15,
    name: str = "tiny",
    system: str = "encode",
    *,
    behavior: tuple[BehaviorFeature, ...] = (),
) -> RunConfig:
    """The configuration that a tiny bundle's network is made from.

    Args:
        behavior: what it sees of behaviors beside their items.
    """
    from models.config import RunConfig
    from models.data.schema import Schema
    from models.network import NetworkConfig
    from models.networks.encode import EncodeConfig
    from models.networks.sdim import SDIMConfig
    from models.networks.twin import TWINConfig

    systems: dict[str, EncodeConfig | SDIMConfig | TWINConfig] = {
        "encode": EncodeConfig(m=m, K=K, L=L, T=T),
        "sdim": SDIMConfig(m=3 * m, tau=3, L=L),
        "twin": TWINConfig(k=K, heads=2, L=L),
    }
    return RunConfig(
        name=name,
        seed=seed,
        network=NetworkConfig(d=d, M=M, hidden=(16, 8)),
        long_term=systems[system],
        schema=Schema(behavior=behavior),
    )


def tiny_network(items: int, config: RunConfig, actions: tuple[str, ...] = ()) -> Network:
    """A tiny bundle's network, untrained; sets torch's seed.

    Args:
        actions: names of the actions of its data. Those that the schema calls positive have rates.
    """
    from models.bundle.combinations import Combinations
    from models.data.schema import Inputs
    from models.features import Rates
    from models.prediction import make_network

    seen = Combinations.of(config.schema.behaviors, len(actions))
    positive = tuple(name for name in actions if name in config.schema.positive)
    inputs = Inputs(
        config.schema,
        n_items=items,
        n_users=0,
        items={},
        users={},
        heights={f"behavior.{name}": height for name, height in seen.heights.items()},
        actions=actions,
        rates=Rates(positive=positive, base=0.3) if positive else None,
    )
    return make_network(config, inputs).eval()
