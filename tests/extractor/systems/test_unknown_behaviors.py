"""A behavior on an item that a bundle does not know is one on row 0, alike offline and served.

Whatever mix of known, unknown and newer behaviors a user has, whatever was done with the items, for
how long and how long ago, and whether something taught row 0 or not, the services arrive where the
trained network does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from extractor.system import System
from extractor.systems import open_system
from extractor.systems.golden import check_sequences
from models.bundle import Bundle, GoldenSequence, Tensor, save_bundle
from models.data.schema import BehaviorFeature
from models.export import export_network
from models.golden_sequences import NOW_MS, answer_sequences
from models.network import Network
from tests.bundles import tiny_config, tiny_network

ITEMS = 30
IDS = ["", *(f"item-{i}" for i in range(1, ITEMS + 1))]
ACTIONS = ("view", "like", "purchase")
FEATURES: tuple[BehaviorFeature, ...] = ("action", "dwell", "age")
POPULARITY = np.array([0, *[1e6 / ITEMS] * ITEMS], np.float32)
AGREE = 1e-6
MS = 1_000_000


class Trained(NamedTuple):
    """A network, its bundle, and the system that serves it."""

    network: Network
    bundle: Bundle
    system: System


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("encode", marks=pytest.mark.long),
        "encode untaught",
        "encode sampled",
        pytest.param("sdim", marks=pytest.mark.long),
        "sdim untaught",
        pytest.param("twin", marks=pytest.mark.long),
        pytest.param("twin action", marks=pytest.mark.long),
        "twin action untaught",
        "encode action dwell",
        pytest.param("encode dwell", marks=pytest.mark.long),
        pytest.param("sdim action dwell", marks=pytest.mark.long),
        "twin age action dwell",
        pytest.param("twin age", marks=pytest.mark.long),
    ],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    system, *said = request.param.split()
    behavior: tuple[BehaviorFeature, ...] = tuple(one for one in FEATURES[::-1] if one in said)
    config = tiny_config(system=system, behavior=behavior)
    with torch.random.fork_rng(), torch.no_grad():
        network = tiny_network(ITEMS, config, ACTIONS)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
        if "untaught" in request.param:
            network.embedding.weight[0] = 0
            for table in network.feature_tables().values():
                table[0] = 0
        if "sampled" in request.param:
            network.sampling_rate = 0.05
        contents, _ = export_network(
            network, config, item_ids=IDS, titles=IDS, popularity=POPULARITY
        )
    path: Path = tmp_path_factory.mktemp("bundle") / "bundle"
    save_bundle(contents, path)
    bundle = Bundle.load(path)
    return Trained(network, bundle, open_system(bundle))


items = st.one_of(
    st.integers(1, 12).map(lambda number: f"item-{number}"),
    st.integers(1, 4).map(lambda number: f"stranger {number}"),
)


@settings(max_examples=25, deadline=None)
@given(
    behaviors=st.lists(items, min_size=1, max_size=90),
    newer=st.integers(0, 64),
    times=st.integers(0, 2**32 - 1),
    candidates=st.lists(items, min_size=1, max_size=6),
)
def test_offline_is_served_for_any_mix_of_known_unknown_and_newer_behaviors(
    trained: Trained, behaviors: list[str], newer: int, times: int, candidates: list[str]
) -> None:
    network, bundle, system = trained
    rng = np.random.default_rng(times)
    ages = rng.integers(0, 10_000 * MS, len(behaviors))
    golden = GoldenSequence(
        name="mix",
        items=behaviors,
        times=(NOW_MS - ages).tolist(),
        newer=min(newer, len(behaviors)),
        count=len(behaviors),
        candidates=candidates,
        now_ms=NOW_MS,
        ctr=Tensor.of(np.zeros(0, np.float32)),
        actions=rng.integers(0, len(ACTIONS) + 1, len(behaviors)).tolist(),
        dwells=(rng.integers(0, 2, len(behaviors)) << rng.integers(0, 26, len(behaviors))).tolist(),
    )
    answered = answer_sequences(
        network, bundle.manifest, bundle.catalog, range(ITEMS + 1), [golden]
    )
    assume(answered)  # on a tie of two clusters rounding decides
    found = check_sequences(replace(bundle, sequences=answered), system)
    assert found.max_difference < AGREE
