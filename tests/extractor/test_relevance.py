"""RI of live requests is RI as it is measured offline (ENCODE, section 4.6.1)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from extractor.relevance import RELEVANCE
from extractor.system import Candidates, System, UserHistory
from extractor.systems import open_system
from infra.arrays import U64
from infra.behaviors import BEHAVIOR, item_key
from infra.store import StoredSequence, Version
from models.bundle import Bundle, save_bundle
from models.config import RunConfig, read_config
from models.data.divisions import LastOfUser
from models.data.protocols import NextItem
from models.data.schema import Inputs
from models.data.splits import Split, split_requests
from models.export import export_network, with_reference
from models.measures.relevance import Watched, compare
from models.prediction import make_gatherer, make_network
from models.runs import Run, Vocabulary
from tests.models.generated import planted_interactions

L = 24

NOW_MS = 1_700_000_000_000


@pytest.fixture(
    scope="module", params=[pytest.param("items alone", marks=pytest.mark.long), "actions"]
)
def split(request: pytest.FixtureRequest) -> Split:
    interactions = planted_interactions(users=12, items=40, baskets=8)
    if request.param == "actions":
        actions = np.random.default_rng(0).integers(0, 3, len(interactions)).astype(np.uint8)
        names = ["", "view", "purchase"]
        interactions = replace(interactions, actions=actions, action_names=names)
    return split_requests(interactions, NextItem(1, 4), LastOfUser(2, 2))


def run_of(split: Split, method: str, seed: int) -> Run:
    """A run whose network is random: everything in it matters."""
    config: RunConfig = read_config(
        {
            "name": method,
            "network": {"d": 8, "M": 4, "hidden": (8, 4)},
            "long_term": {"network": method, "L": L},
            "schema": {"behavior": []} if method == "twin" else {},
        }
    )
    inputs = Inputs.of(split.interactions, config.schema)
    network = make_network(config, inputs).eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.7)
    known = split.interactions.first_seen < split.n_training
    vocabulary = Vocabulary(
        item_ids=split.interactions.item_ids,
        titles=split.interactions.item_ids,
        popularity=known.astype(float).tolist(),
        rates=[],
    )
    return Run(config, network, inputs, vocabulary, {}, {}, 0, [])


def bundle_of(run: Run, reference: Run | None, path: Path) -> Bundle:
    contents, _ = export_network(
        run.network,
        run.config,
        item_ids=run.vocabulary.item_ids,
        titles=run.vocabulary.titles,
        popularity=np.array(run.vocabulary.popularity, np.float32),
    )
    save_bundle(contents if reference is None else with_reference(contents, reference), path)
    return Bundle.load(path)


def live(split: Split, bundle: Bundle, system: System) -> list[dict[str, float]]:
    """What is measured of each request of the test."""
    keys = np.array([item_key(item) for item in split.interactions.item_ids], np.uint64)
    sequences, found = split.sequences, []
    for cut, as_of, candidates in zip(
        split.test.cut, split.test.as_of, split.test.candidates, strict=True
    ):
        start = int(sequences.start[cut])
        behaviors = np.zeros(cut - start, BEHAVIOR)
        behaviors["item"] = keys[sequences.items[start:cut]]
        if split.interactions.actions is not None:
            behaviors["action"] = split.interactions.actions[sequences.position[start:cut]]
        covered = int(as_of) - start if system.keeps_state else 0
        state = None
        if covered:
            older = StoredSequence(Version(1, covered), behaviors[:covered], {})
            state = system.extract(older)
        history = UserHistory(Version(1, len(behaviors)), state, behaviors[covered:])
        asked: U64 = keys[candidates]
        found.append(
            system.measure(history, behaviors, Candidates(asked, bundle.rows(asked)), NOW_MS)
        )
    return found


@pytest.mark.parametrize("method", ["encode", "sdim", "twin"])
def test_live_requests_have_the_indicator_of_the_evaluation(
    split: Split, method: str, tmp_path: Path
) -> None:
    run, din_l = run_of(split, method, 1), run_of(split, "din-l", 2)
    bundle = bundle_of(run, din_l, tmp_path / "bundle")
    system = open_system(bundle)
    assert set(RELEVANCE) <= set(system.measures)
    measured = live(split, bundle, system)
    offline = compare(watched(split, run), watched(split, din_l), split.test, top=5)
    for name, expected in zip(
        RELEVANCE, (offline.indicator, offline.least, offline.uniform), strict=True
    ):
        assert np.mean([one[name] for one in measured]) == pytest.approx(expected, rel=1e-4)
    assert offline.least < offline.indicator


def watched(split: Split, run: Run) -> Watched:
    return Watched(run.network, make_gatherer(run.config, split, run.inputs))


def test_a_bundle_without_a_reference_has_no_indicator(split: Split, tmp_path: Path) -> None:
    bundle = bundle_of(run_of(split, "sdim", 1), None, tmp_path / "bundle")
    system = open_system(bundle)
    assert not system.measures
    assert not any(live(split, bundle, system))
