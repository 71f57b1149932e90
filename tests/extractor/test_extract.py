from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractor.extract import Extractor, summarize
from extractor.state import InterestState
from infra.arrays import F32
from infra.behaviors import BEHAVIOR
from infra.store import Version
from tests.extractor.items import (
    N_ITEMS,
    START_MS,
    UNKNOWN,
    SmallDimensions,
    SmallTable,
    behaviors_on,
    random_sequence,
    sequence_of,
    small_extractor,
)
from tests.models.kernels import equations as reference


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return small_extractor()


def same(a: InterestState, b: InterestState) -> bool:
    return a.encode() == b.encode()


# --- interests ---


@pytest.mark.parametrize("beta_mode", ["divide", "multiply"])
def test_interests_are_those_of_algorithm_1(beta_mode: str) -> None:
    items = SmallTable(SmallDimensions(scale=1 / 20 if beta_mode == "divide" else 20.0))
    keys = np.random.default_rng(1).permutation(N_ITEMS)[:150] + 1
    state = Extractor(items).extract(sequence_of(behaviors_on(keys)))
    h, s = items.projected[keys], items.embeddings[keys]
    assign, centers = reference.kmeans(h, reference.farthest_first(h, 6), 15)
    np.testing.assert_allclose(state.centers, centers, atol=1e-5)
    np.testing.assert_array_equal(state.sizes, np.bincount(assign, minlength=6))
    u = reference.interests(h, s, assign, centers, 20.0, beta_mode)
    np.testing.assert_allclose(state.interests, u, atol=1e-5)


def test_a_repeated_item_weighs_as_often_as_it_occurs(extractor: Extractor) -> None:
    items = SmallTable()
    keys = np.random.default_rng(2).integers(1, 40, 150)
    keys = np.concatenate(([keys[0]] * 30, keys))  # the one to start with, counted or not
    state = extractor.extract(sequence_of(behaviors_on(keys)))
    h, s = items.projected[keys], items.embeddings[keys]
    assign, centers = reference.kmeans(h, reference.farthest_first(h, 6), 15)
    u = reference.interests(h, s, assign, centers, 20.0, "divide")
    np.testing.assert_array_equal(state.sizes, np.bincount(assign, minlength=6))
    np.testing.assert_allclose(state.interests, u, atol=1e-5)


def test_only_the_last_l_behaviors_are_clustered(extractor: Extractor) -> None:
    sequence = random_sequence(300, seed=3)
    last = replace(sequence, behaviors=sequence.behaviors[-200:])
    assert same(extractor.extract(sequence), extractor.extract(last))
    assert extractor.extract(sequence).sizes.sum() == 200


def test_unknown_items_are_one_point_at_row_0(extractor: Extractor) -> None:
    state = extractor.extract(sequence_of(behaviors_on([UNKNOWN + 1, 5, UNKNOWN + 2, UNKNOWN + 3])))
    assert state.sizes.tolist() == [3, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(state.interests[:2], SmallTable().embeddings[[0, 5]], atol=1e-6)


def test_unknown_items_count_one_by_one_in_the_history(extractor: Extractor) -> None:
    state = extractor.extract(sequence_of(behaviors_on([UNKNOWN + 2, 5, UNKNOWN + 1, UNKNOWN + 2])))
    assert state.item_keys.tolist() == [5, UNKNOWN + 1, UNKNOWN + 2]
    assert state.item_counts.tolist() == [1, 1, 2]


def test_no_behaviors_give_an_empty_state(extractor: Extractor) -> None:
    state = extractor.extract(sequence_of(behaviors_on([])))
    assert not state.sizes.any()
    assert not state.interests.any()
    assert len(state.recent) == len(state.item_keys) == state.last_time_ms == 0


def test_one_behavior_is_one_interest(extractor: Extractor) -> None:
    state = extractor.extract(sequence_of(behaviors_on([42])))
    assert state.sizes.tolist() == [1, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(state.interests[0], SmallTable().embeddings[42])


def test_an_untrained_table_of_zeros_gives_no_interests() -> None:
    class Zeros(SmallTable):
        @property
        def projected(self) -> F32:
            return np.zeros((N_ITEMS + 1, 4), np.float32)

    state = Extractor(Zeros()).extract(random_sequence(50, seed=4))
    assert not state.sizes.any()
    assert len(state.recent) == 10


@pytest.mark.parametrize("m", [2, 4, 7, 16])
def test_any_projected_width_will_do(m: int) -> None:
    state = small_extractor(m=m).extract(random_sequence(100, seed=5))
    assert state.centers.shape == (6, m)
    assert state.sizes.sum() == 100


# --- the rest of the state ---


def test_the_state_says_what_it_covers(extractor: Extractor) -> None:
    state = extractor.extract(sequence_of(behaviors_on([1, 2, 3]), count=5000, epoch=77))
    assert state.version == Version(77, 5000)
    assert state.bundle == SmallTable().digest


def test_recent_are_the_last_m_item_keys_newest_last(extractor: Extractor) -> None:
    state = extractor.extract(sequence_of(behaviors_on(list(range(1, 31)))))
    assert state.recent.tolist() == list(range(21, 31))
    assert state.recent_length == 10


def test_the_newest_time_is_the_latest_though_events_come_late(extractor: Extractor) -> None:
    behaviors = behaviors_on([1, 2, 3])[[2, 0, 1]]
    state = extractor.extract(sequence_of(behaviors))
    assert state.last_time_ms == START_MS + 2 * 3_600_000


def test_a_state_survives_its_record(extractor: Extractor) -> None:
    state = extractor.extract(random_sequence(200, seed=6))
    assert same(InterestState.decode(state.encode()), state)


# --- warm start ---


def test_a_warm_start_keeps_most_of_the_interests(extractor: Extractor) -> None:
    behaviors = random_sequence(200, seed=7).behaviors
    old = extractor.extract(sequence_of(behaviors[:190]))
    warm = extractor.extract(sequence_of(behaviors), previous=old)
    nearness = (warm.centers * old.centers).sum(axis=1)
    assert (nearness > 0.95).sum() >= 5


def test_a_warm_start_reads_a_decoded_state(extractor: Extractor) -> None:
    sequence = random_sequence(200, seed=8)
    old = extractor.extract(replace(sequence, behaviors=sequence.behaviors[:190]))
    decoded = InterestState.decode(old.encode())
    assert same(extractor.extract(sequence, old), extractor.extract(sequence, decoded))


@pytest.mark.parametrize("foreign", ["bundle", "epoch", "shape", "age"])
def test_a_state_that_does_not_fit_is_no_start(extractor: Extractor, foreign: str) -> None:
    sequence = random_sequence(200, seed=9)
    sequence = replace(sequence, version=replace(sequence.version, count=1000))
    old = extractor.extract(random_sequence(200, seed=10))
    changes = {
        "bundle": {"bundle": b"another bundle's", "count": 990},
        "epoch": {"epoch": 8, "count": 990},
        "shape": {"centers": np.ones((6, 3), np.float32), "count": 990},
        "age": {"count": 899},
    }
    unfit = replace(old, **changes[foreign])  # type: ignore[arg-type]
    assert same(extractor.extract(sequence, unfit), extractor.extract(sequence))
    fit = replace(old, count=990)
    assert not same(extractor.extract(sequence, fit), extractor.extract(sequence))


# --- threads ---


def test_threads_give_what_one_thread_gives(extractor: Extractor) -> None:
    sequences = [random_sequence(200, seed) for seed in range(40)]
    alone = [extractor.extract(sequence).encode() for sequence in sequences]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda s: extractor.extract(s).encode(), sequences * 5))
    assert together == alone * 5


# --- summarize ---


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 6) | st.integers(0, 2**64 - 1),
            st.integers(-(2**40), 2**45),
        ),
        max_size=80,
    )
)
def test_a_summary_counts_every_item(events: list[tuple[int, int]]) -> None:
    behaviors = np.zeros(len(events), BEHAVIOR)
    for i, event in enumerate(events):
        behaviors["item"][i], behaviors["time"][i] = event
    keys, times = behaviors["item"].copy(), behaviors["time"].copy()
    summary = summarize(keys, times)
    items = list(dict.fromkeys(key for key, _ in events))
    assert summary.item_keys[summary.place].tolist() == items
    assert summary.counts.tolist() == [sum(k == key for k, _ in events) for key in items]
    assert summary.item_keys.tolist() == sorted(items)
    assert summary.item_counts.tolist() == [
        sum(k == key for k, _ in events) for key in sorted(items)
    ]
    latest = [max(time for k, time in events if k == key) for key in sorted(items)]
    assert summary.item_last.tolist() == [min(max(t // 1000, 0), 2**32 - 1) for t in latest]


def test_a_count_stops_at_what_its_field_can_hold() -> None:
    keys = np.full(70_000, 9, np.uint64)
    summary = summarize(keys, np.zeros(70_000, np.int64))
    assert summary.item_counts.tolist() == [65_535]
    assert summary.counts.tolist() == [70_000]
