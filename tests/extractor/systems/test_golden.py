"""What the services make of behaviors is what the trained network makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from extractor.systems import load_system, open_system
from extractor.systems.golden import check_sequences
from infra.errors import BundleIncompatible
from infra.settings import load_settings
from models.bundle import (
    SEQUENCES,
    Bundle,
    BundleContents,
    GoldenSequence,
    Manifest,
    SDIMOffline,
    Tensor,
    save_bundle,
)
from models.data.schema import Schema
from models.export import export_network
from models.golden_sequences import NOW_MS, answer_sequences
from tests.bundles import tiny_config, tiny_network
from tests.extractor.items import behaviors_on, sequence_of

ITEMS = 60
IDS = ["", *(f"item-{i}" for i in range(1, ITEMS + 1))]
POPULARITY = np.array([0, *[1e6 / ITEMS] * ITEMS], np.float32)

RATES = np.linspace(0, 1, ITEMS + 1, dtype=np.float32)

BUNDLES: dict[str, tuple[str, dict[str, Any]]] = {
    "taught": ("encode", {}),
    "untaught": ("encode", {}),
    "half": ("encode", {}),
    "sdim": ("sdim", {}),
    "sdim untaught": ("sdim", {}),
    "sdim half": ("sdim", {}),
    "sdim half, mean": ("sdim", {"normalization": "mean"}),
    "sdim, one bucket": ("sdim", {"m": 1, "tau": 0}),
    "actions": ("encode", {}),
    "actions and rates": ("encode", {}),
    "rates": ("encode", {}),
    "sdim, actions and rates": ("sdim", {}),
    "sdim mean, half, actions": ("sdim", {"normalization": "mean"}),
    "twin": ("twin", {}),
    "twin untaught": ("twin", {}),
    "twin, all found": ("twin", {"k": 100}),
    "twin, actions and rates": ("twin", {}),
    "twin, actions, all found": ("twin", {"k": 100}),
    "twin, actions, other widths": ("twin", {"heads": 3, "d_k": 5, "k": 20}),
    "twin, actions that attention does not see": ("twin", {"cross": "none"}),
    "twin, other widths": ("twin", {"heads": 3, "d_k": 5, "k": 20}),
}
"""Systems and changes of their settings."""

SHORT = {
    "taught",
    "untaught",
    "sdim",
    "sdim untaught",
    "sdim mean, half, actions",
    "actions and rates",
    "twin",
    "twin untaught",
    "twin, actions, other widths",
}
"""Those that have between them whatever the others have."""

ACTIONS = ("purchase", "view", "like")
"""Actions in another order than the services declare them."""

OTHERS: dict[str, list[dict[str, Any]]] = {
    "encode": [{"K": 3}, {"K": 5}, {"T": 1}, {"scale": 1.5}, {"L": 63}, {"L": 65}],
    "sdim": [{"normalization": "other"}, {"L": 63}, {"L": 65}],
    "twin": [{"k": 1}, {"L": 63}, {"L": 65}],
}
"""Settings that are not those of the training."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in SHORT else pytest.mark.long) for name in BUNDLES
    ],
)
def contents(request: pytest.FixtureRequest) -> BundleContents:
    """Bundles of a network in which everything matters; what is unknown has a direction of its own
    only where something taught it.
    """
    system, changes = BUNDLES[request.param]
    config = tiny_config(system=system)
    long_term = msgspec.structs.replace(config.long_term, **changes)
    schema = Schema(
        behavior=("action",) if "actions" in request.param else (),
        positive=("like", "purchase") if "rates" in request.param else (),
    )
    config = msgspec.structs.replace(config, long_term=long_term, schema=schema)
    with torch.random.fork_rng(), torch.no_grad():
        network = tiny_network(ITEMS, config, ACTIONS)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
        if "untaught" in request.param:
            network.embedding.weight[0] = 0
        half = "half" in request.param
        exported, _ = export_network(
            network,
            config,
            item_ids=IDS,
            titles=IDS,
            popularity=POPULARITY,
            rates=RATES,
            half=half,
        )
    rng = np.random.default_rng(0)
    more = answer_sequences(
        network,
        exported.manifest,
        exported.catalog,
        range(ITEMS + 1),
        [_any_mix(rng, number) for number in range(40)],
        exported.rates,
    )
    assert len(more) > 30
    return replace(exported, sequences=[*exported.sequences, *more])


def _any_mix(rng: np.random.Generator, number: int) -> GoldenSequence:
    """Behaviors on items known and unknown, in any number, some newer than the state."""
    length = int(rng.integers(1, 120))
    known = rng.choice(IDS[1:], rng.integers(1, 40))
    items = [
        f"stranger {rng.integers(4)}" if rng.random() < number / 40 else str(rng.choice(known))
        for _ in range(length)
    ]
    return GoldenSequence(
        name=f"mix {number}",
        items=items,
        times=(NOW_MS - rng.integers(0, 10**10, length)).tolist(),
        newer=int(rng.integers(0, min(length, 64) + 1)),
        count=length + int(rng.integers(0, 100)),
        candidates=[*rng.choice(IDS[1:], 10).tolist(), items[0], items[-1], "nobody"],
        now_ms=NOW_MS,
        ctr=Tensor.of(np.zeros(0, np.float32)),
        actions=rng.integers(0, len(ACTIONS) + 1, length).tolist(),
    )


@pytest.fixture(scope="module")
def path(contents: BundleContents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    save_bundle(contents, path)
    return path


def load(path: Path) -> None:
    load_system(load_settings({"bundle": {"path": str(path)}}, environ={}))


def test_offline_and_served_agree_on_any_mix_of_known_unknown_and_newer(path: Path) -> None:
    bundle = Bundle.load(path)
    found = check_sequences(bundle, open_system(bundle))
    assert found.requests > 40
    # In half precision the last bit of a number may fall to the other side.
    assert found.max_difference < (1e-6 if _kept(bundle) == "float32" else 5e-5)


def _kept(bundle: Bundle) -> str:
    stored = bundle.manifest.stored
    kept = stored.get("interests") or stored.get("buckets")
    return kept.dtype if kept else "float32"


def test_sequences_of_every_kind_are_golden(contents: BundleContents) -> None:
    names = {golden.name for golden in contents.sequences}
    assert names > {
        "no behavior",
        "one behavior, newer",
        "one behavior, covered",
        "all alike",
        *(("K items", "more items than K") if contents.manifest.system == "encode" else ()),
        *(("few items", "many items") if contents.manifest.system != "encode" else ()),
        "no state",
        "known and unknown",
        "unknown alone",
        "late",
        "longer than L",
    }


def test_settings_that_are_not_those_of_the_training_are_caught(
    contents: BundleContents, tmp_path: Path
) -> None:
    for change in OTHERS[contents.manifest.system]:
        save_bundle(replace(contents, manifest=_changed(contents.manifest, change)), tmp_path / "b")
        with pytest.raises(BundleIncompatible, match=SEQUENCES) as caught:
            load(tmp_path / "b")
        assert "\n" not in str(caught.value)


def _changed(manifest: Manifest, change: dict[str, Any]) -> Manifest:
    offline = manifest.offline
    assert offline is not None
    if "L" in change:
        return msgspec.structs.replace(manifest, **change)
    if isinstance(offline, SDIMOffline):
        other = "mean" if offline.normalization == "l2" else "l2"
        change = {"normalization": other}
    return msgspec.structs.replace(manifest, offline=msgspec.structs.replace(offline, **change))


def test_a_state_is_stored_as_the_manifest_says(path: Path) -> None:
    bundle = Bundle.load(path)
    keys = bundle.catalog.slots["key"][bundle.catalog.slots["row"] > 0]
    state = open_system(bundle).extract(sequence_of(behaviors_on(keys)))
    for name, tensor in bundle.manifest.stored.items():
        assert state.tensors[name].dtype == tensor.dtype
