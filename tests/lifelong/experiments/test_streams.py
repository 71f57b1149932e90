from __future__ import annotations

from pathlib import Path

import numpy as np

from extractor.systems.encode import Extractor, interests_of
from infra.store import StoredSequence, Version
from lifelong.experiments.services import SimulatedService
from lifelong.experiments.streams import Items, Stream, agreement, behaviors_of, nearest
from models.data.splits import Split


def items_of(planted: Split, planted_runs: dict[str, Path]) -> Items:
    service = SimulatedService.of(planted_runs["encode"], planted)
    return Items.of(service.network, service.gatherer.L, planted.known)


def test_what_is_opposite_to_all_centers_is_nearest_to_one(
    planted: Split, planted_runs: dict[str, Path]
) -> None:
    items = items_of(planted, planted_runs)
    ((_, both, _),) = Stream(items).run(behaviors_of(planted, 0, 2), 2)
    centers = interests_of(both.cold).centers
    (label,), cosine = nearest(-centers.sum(0, keepdims=True), both.cold)
    assert 0 <= label < len(centers) <= 2
    assert cosine < 0


def test_warm_and_cold_begin_as_one_and_warm_goes_on_from_itself(
    planted: Split, planted_runs: dict[str, Path]
) -> None:
    items = items_of(planted, planted_runs)
    extractor = Extractor(items, items.offline)
    behaviors = behaviors_of(planted, 0, 72)
    first, second, third, *_ = Stream(items).run(behaviors, 8)
    np.testing.assert_array_equal(
        interests_of(first[1].warm).centers, interests_of(first[1].cold).centers
    )
    for (_, before, _), (seen, both, _) in ((first, second), (second, third)):
        assert both.warm.count == both.cold.count == seen
        sequence = StoredSequence(Version(1, seen), behaviors[:seen], {})
        again = extractor.extract(sequence, before.warm)
        np.testing.assert_array_equal(
            interests_of(again).interests, interests_of(both.warm).interests
        )


def test_clusterings_agree_whatever_their_numbers() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    assert agreement(labels, 3 - labels, clusters=4) == 1
    assert agreement(labels, np.zeros(6, np.int64), clusters=4) == 0.5
