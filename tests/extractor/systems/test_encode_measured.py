"""What is measured of a live request is what the offline measures say of the same sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from extractor.system import Candidates, System, UserHistory
from extractor.systems import open_system
from infra.behaviors import item_key
from infra.store import Behaviors, Version
from models.bundle import Bundle
from models.kernels.relevance import relevance_indicator
from models.measures.relevance import oracle_of
from models.modules.sequence import BehaviorSequence, Target
from tests.bundles import tiny_bundle, tiny_config, tiny_network
from tests.extractor.items import behaviors_on, sequence_of

L = 64

NOW_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))


@pytest.fixture(scope="module")
def system(bundle: Bundle) -> System:
    return open_system(bundle)


def on_items(numbers: np.ndarray) -> Behaviors:
    """A behavior on each item; one beyond 50 is unknown to the bundle."""
    return behaviors_on(np.array([item_key(f"item-{number}") for number in numbers], np.uint64))


def every(bundle: Bundle) -> Candidates:
    keys = np.ascontiguousarray(on_items(np.arange(1, 60))["item"])
    return Candidates(keys, bundle.rows(keys))


def measured(system: System, bundle: Bundle, behaviors: Behaviors, newer: int) -> dict[str, float]:
    covered = len(behaviors) - newer
    state = system.extract(sequence_of(behaviors[:covered])) if covered else None
    history = UserHistory(Version(7, len(behaviors)), state, behaviors[covered:])
    return system.measure(history, behaviors, every(bundle), NOW_MS)


@pytest.mark.parametrize(("length", "newer"), [(3, 0), (40, 0), (40, 40), (64, 0), (80, 20)])
def test_the_clustering_loss_is_that_of_the_network(
    system: System, bundle: Bundle, length: int, newer: int
) -> None:
    behaviors = on_items(np.random.default_rng(length + newer).integers(1, 60, length))
    rows = torch.from_numpy(bundle.rows(np.ascontiguousarray(behaviors["item"]))).long()[None]
    of = torch.from_numpy(every(bundle).rows).long()[None]
    with torch.random.fork_rng():
        network = tiny_network(50, tiny_config())
    with torch.no_grad():
        table = network.item_table()
        place = torch.arange(length)[None]
        sequence = BehaviorSequence(
            rows, torch.ones_like(rows, dtype=torch.bool), table, newer=place >= length - newer
        )
        target = Target(table[of], torch.zeros_like(of), of)
        weights = network.long.weights(sequence, target).numpy()
        truth = oracle_of(network.long, sequence, target, top=1).weights.numpy()
    lost = relevance_indicator(weights, truth) - relevance_indicator(truth, truth)
    found = measured(system, bundle, behaviors, newer)
    assert found["clustering_loss"] == pytest.approx(max(lost, 0), rel=1e-4, abs=1e-6)


def test_behaviors_that_are_interests_of_their_own_lose_nothing(
    system: System, bundle: Bundle
) -> None:
    behaviors = on_items(np.random.default_rng(0).integers(1, 51, 40))
    assert measured(system, bundle, behaviors, 40)["clustering_loss"] == pytest.approx(0, abs=1e-6)
    assert measured(system, bundle, behaviors, 0)["clustering_loss"] > 0.01


def test_behaviors_that_the_state_does_not_cover_are_not_looked_at(
    system: System, bundle: Bundle
) -> None:
    behaviors = on_items(np.random.default_rng(1).integers(1, 51, 3 * L))
    state = system.extract(sequence_of(behaviors))
    history = UserHistory(Version(7, len(behaviors)), state, behaviors[:0])
    of_all = system.measure(history, behaviors, every(bundle), NOW_MS)
    assert of_all == system.measure(history, behaviors[-L:], every(bundle), NOW_MS)
