from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from extractor.system import Candidates, UserHistory
from infra.store import Behaviors, Version
from scorer.ids import item_keys
from scorer.ranking import Ranker
from scorer.sampling import CANDIDATES, WAITING, Sample, Sampler, behaviors_of, some_of
from tests.scorer.conftest import FragileStore, World

ASKED = [f"item-{i}" for i in range(1, 51)]

NOW_MS = 1_700_000_000_000


class Meter:
    """A system that measures what it is told to, and notes what it was asked."""

    measures = ("clustering_loss",)

    def __init__(self, measure: Callable[[], dict[str, float]]) -> None:
        self._measure = measure
        self.asked = Event()
        self.behaviors: list[Behaviors] = []

    def measure(
        self, history: UserHistory, behaviors: Behaviors, candidates: Candidates, now_ms: int
    ) -> dict[str, float]:
        self.behaviors.append(behaviors)
        self.asked.set()
        return self._measure()


@pytest.fixture
def running(world: World) -> Iterator[Callable[..., Sampler]]:
    """Starts samplers over the world's store, and ends them."""
    started: list[Sampler] = []

    def start(system: Any = world.system, share: float = 1.0, draw: float = 0.0) -> Sampler:
        sampler = Sampler(world.store, system, world.metrics, share, draw=lambda: draw)
        sampler.start()
        started.append(sampler)
        return sampler

    yield start
    for sampler in started:
        sampler.close()


def ranker_of(world: World, sampler: Sampler) -> Ranker:
    return Ranker(world.store, world.bundle, world.system, world.metrics, sampler=sampler)


def candidates_of(world: World) -> Candidates:
    keys = item_keys(ASKED)
    return Candidates(keys, world.bundle.rows(keys))


def samples(registry: CollectorRegistry, outcome: str) -> float:
    return registry.get_sample_value("lifelong_scorer_samples_total", {"outcome": outcome}) or 0.0


def losses(registry: CollectorRegistry, what: str) -> float:
    name, labels = f"lifelong_scorer_sampled_nats_{what}", {"measure": "clustering_loss"}
    return registry.get_sample_value(name, labels) or 0.0


def eventually(reached: Callable[[], bool]) -> bool:
    """Whether it comes true before long."""
    pause = Event()
    return any(reached() or pause.wait(0.01) for _ in range(1000))


def test_a_ranking_is_measured_after_its_answer(
    world: World, running: Callable[..., Sampler]
) -> None:
    world.append("u", ["item-7", "item-9"])
    ranker_of(world, running()).rank("u", ASKED)
    assert eventually(lambda: samples(world.registry, "measured") == 1)
    assert losses(world.registry, "count") == 1

    (sequence,) = world.store.sequences(["u"])
    (profile,) = world.store.profiles(["u"], world.bundle.digest)
    assert sequence is not None
    assert profile is not None
    assert profile.interests is not None
    state = world.system.layout.decode(profile.interests)
    history = UserHistory(sequence.version, state, sequence.behaviors[-2:])
    expected = world.system.measure(history, sequence.behaviors, candidates_of(world), NOW_MS)
    assert losses(world.registry, "sum") == pytest.approx(expected["clustering_loss"])


def test_a_request_that_is_not_drawn_is_left_alone(
    world: World, running: Callable[..., Sampler]
) -> None:
    ranker_of(world, running(share=0.5, draw=0.5)).rank("u", ASKED)
    ranker_of(world, running(share=0.5, draw=0.49)).rank("u", ASKED)
    assert eventually(lambda: samples(world.registry, "measured") > 0)
    assert samples(world.registry, "measured") == 1


def test_strangers_are_not_measured(world: World, running: Callable[..., Sampler]) -> None:
    meter = Meter(dict)
    ranker = ranker_of(world, running(meter))
    ranker.rank("nobody", ASKED)
    ranker.rank("u", ASKED)
    assert eventually(lambda: samples(world.registry, "short") == 1)
    assert len(meter.behaviors) == 1


def test_samples_beyond_those_that_may_wait_are_dropped(world: World) -> None:
    sampler = Sampler(world.store, world.system, world.metrics, 1.0, draw=lambda: 0.0)
    ranker = ranker_of(world, sampler)  # nothing is taken from the queue
    for _ in range(WAITING + 3):
        ranker.rank("u", ASKED)
    assert samples(world.registry, "dropped") == 3


def test_a_store_that_is_away_costs_the_sample_alone(
    world: World, running: Callable[..., Sampler]
) -> None:
    ranker = ranker_of(world, running())
    ranker.rank("u", ASKED)
    world.store.away = True
    assert eventually(lambda: samples(world.registry, "failed") == 1)
    world.store.away = False
    ranker.rank("u", ASKED)
    assert eventually(lambda: samples(world.registry, "measured") == 1)


def test_a_measure_that_fails_is_counted_and_the_next_one_made(
    world: World, running: Callable[..., Sampler]
) -> None:
    answers = iter([None, {"clustering_loss": 0.25}])

    def measure() -> dict[str, float]:
        answer = next(answers)
        if answer is None:
            raise ArithmeticError("of a kind that nobody expected")
        return answer

    ranker = ranker_of(world, running(Meter(measure)))
    ranker.rank("u", ASKED)
    ranker.rank("u", ASKED)
    assert eventually(lambda: samples(world.registry, "measured") == 1)
    assert samples(world.registry, "failed") == 1
    assert losses(world.registry, "sum") == 0.25


def test_a_store_is_not_read_once_a_sampler_is_closed(
    world: World, running: Callable[..., Sampler]
) -> None:
    sampler = running()
    ranker_of(world, sampler).rank("u", ASKED)
    sampler.close()
    reads = world.store.reads
    assert not eventually_any_read(world.store, reads)


def eventually_any_read(store: FragileStore, before: int) -> bool:
    pause = Event()
    return any(store.reads > before or pause.wait(0.02) for _ in range(10))


def test_behaviors_that_came_after_the_request_are_left_out(world: World) -> None:
    (before,) = world.store.sequences(["u"])
    assert before is not None
    state = world.system.extract(before)
    newer = before.behaviors[:0]
    sample = Sample(
        "u", UserHistory(before.version, state, newer), candidates_of(world), NOW_MS, 0.0
    )
    world.append("u", ["item-3", "item-4"])
    found = behaviors_of(sample, world.store)
    np.testing.assert_array_equal(found, before.behaviors)


def test_a_record_of_another_life_is_not_measured(world: World) -> None:
    (before,) = world.store.sequences(["u"])
    assert before is not None
    version = Version(before.version.epoch + 1, before.version.count)
    history = UserHistory(version, world.system.extract(before), before.behaviors[:0])
    assert (
        behaviors_of(Sample("u", history, candidates_of(world), NOW_MS, 0.0), world.store) is None
    )


def test_what_a_request_knows_is_not_read_again(world: World) -> None:
    (sequence,) = world.store.sequences(["u"])
    assert sequence is not None
    world.store.away = True
    history = UserHistory(sequence.version, None, sequence.behaviors)
    found = behaviors_of(Sample("u", history, candidates_of(world), NOW_MS, 0.0), world.store)
    assert found is sequence.behaviors


@pytest.mark.parametrize("count", [1, 64, 65, 3000])
def test_candidates_are_spread_over_the_list(count: int) -> None:
    keys, rows = np.arange(count, dtype=np.uint64), np.arange(count, dtype=np.int32)
    some = some_of(Candidates(keys, rows))
    assert len(some.rows) == min(count, CANDIDATES)
    assert (some.rows[0], some.rows[-1]) == (0, count - 1)
    assert len(set(some.rows.tolist())) == len(some.rows)
    np.testing.assert_array_equal(some.keys, some.rows)
