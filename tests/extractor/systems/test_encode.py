from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from extractor.state import InterestState, Layout
from extractor.systems import open_system
from extractor.systems.encode import Extractor, interests_of
from infra.arrays import F32
from infra.behaviors import item_key
from infra.store import Version
from models.bundle import Bundle, StateTensor
from tests.bundles import tiny_bundle
from tests.extractor.items import (
    N_ITEMS,
    START_MS,
    UNKNOWN,
    SmallDimensions,
    SmallTable,
    behaviors_on,
    extractor_of,
    random_sequence,
    sequence_of,
    small_extractor,
)
from tests.models.kernels import equations as reference


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return small_extractor()


LAYOUT = Layout(
    {
        "centers": StateTensor("float32", ("k", 4)),
        "interests": StateTensor("float32", ("k", 8)),
        "sizes": StateTensor("uint32", ("k",)),
    }
)


def same(a: InterestState, b: InterestState) -> bool:
    return LAYOUT.encode(a) == LAYOUT.encode(b)


def sizes_of(state: InterestState) -> list[int]:
    return interests_of(state).sizes.tolist()  # type: ignore[no-any-return]  # numpy's Any


# --- interests ---


@pytest.mark.parametrize("beta_mode", ["divide", "multiply"])
def test_interests_are_those_of_algorithm_1(beta_mode: str) -> None:
    items = SmallTable(SmallDimensions(scale=1 / 20 if beta_mode == "divide" else 20.0))
    keys = np.random.default_rng(1).permutation(N_ITEMS)[:150] + 1
    state = extractor_of(items).extract(sequence_of(behaviors_on(keys)))
    h, s = items.projected[keys], items.embeddings[keys]
    assign, centers = reference.kmeans(h, reference.farthest_first(h, 6), 15)
    np.testing.assert_allclose(interests_of(state).centers, centers, atol=1e-5)
    assert sizes_of(state) == np.bincount(assign, minlength=6).tolist()
    u = reference.interests(h, s, assign, centers, 20.0, beta_mode)
    np.testing.assert_allclose(interests_of(state).interests, u, atol=1e-5)


def test_a_repeated_item_weighs_as_often_as_it_occurs(extractor: Extractor) -> None:
    items = SmallTable()
    keys = np.random.default_rng(2).integers(1, 40, 150)
    keys = np.concatenate(([keys[0]] * 30, keys))  # the one to start with, counted or not
    state = extractor.extract(sequence_of(behaviors_on(keys)))
    h, s = items.projected[keys], items.embeddings[keys]
    assign, centers = reference.kmeans(h, reference.farthest_first(h, 6), 15)
    u = reference.interests(h, s, assign, centers, 20.0, "divide")
    assert sizes_of(state) == np.bincount(assign, minlength=6).tolist()
    np.testing.assert_allclose(interests_of(state).interests, u, atol=1e-5)


def test_only_the_last_l_behaviors_are_clustered(extractor: Extractor) -> None:
    sequence = random_sequence(300, seed=3)
    last = replace(sequence, behaviors=sequence.behaviors[-200:])
    assert same(extractor.extract(sequence), extractor.extract(last))
    assert sum(sizes_of(extractor.extract(sequence))) == 200


def test_unknown_items_are_one_point_at_row_0(extractor: Extractor) -> None:
    state = extractor.extract(sequence_of(behaviors_on([UNKNOWN + 1, 5, UNKNOWN + 2, UNKNOWN + 3])))
    assert sizes_of(state) == [3, 1]
    np.testing.assert_allclose(
        interests_of(state).interests, SmallTable().embeddings[[0, 5]], atol=1e-6
    )


def test_unknown_items_count_one_by_one_in_the_history(extractor: Extractor) -> None:
    state = extractor.extract(sequence_of(behaviors_on([UNKNOWN + 2, 5, UNKNOWN + 1, UNKNOWN + 2])))
    assert state.history.item_keys.tolist() == [5, UNKNOWN + 1, UNKNOWN + 2]
    assert state.history.counts.tolist() == [1, 1, 2]


def test_no_behaviors_give_an_empty_state(extractor: Extractor) -> None:
    state = extractor.extract(sequence_of(behaviors_on([])))
    assert sizes_of(state) == []
    assert len(state.recent) == len(state.history.item_keys) == state.last_time_ms == 0


def test_one_behavior_is_one_interest(extractor: Extractor) -> None:
    state = extractor.extract(sequence_of(behaviors_on([42])))
    assert sizes_of(state) == [1]
    np.testing.assert_array_equal(interests_of(state).interests[0], SmallTable().embeddings[42])


def test_an_untrained_table_of_zeros_gives_no_interests() -> None:
    class Zeros(SmallTable):
        @property
        def projected(self) -> F32:
            return np.zeros((N_ITEMS + 1, 4), np.float32)

    state = extractor_of(Zeros()).extract(random_sequence(50, seed=4))
    assert sizes_of(state) == []
    assert len(state.recent) == 10


@pytest.mark.parametrize("m", [2, 4, 7, 16])
def test_any_projected_width_will_do(m: int) -> None:
    state = small_extractor(m=m).extract(random_sequence(100, seed=5))
    assert interests_of(state).centers.shape == (6, m)
    assert sum(sizes_of(state)) == 100


# --- the rest of the state ---


def test_the_state_says_what_it_covers(extractor: Extractor) -> None:
    state = extractor.extract(sequence_of(behaviors_on([1, 2, 3]), count=5000, epoch=77))
    assert state.version == Version(77, 5000)
    assert state.bundle == SmallTable().digest


def test_recent_are_the_last_m_item_keys_newest_last(extractor: Extractor) -> None:
    state = extractor.extract(sequence_of(behaviors_on(list(range(1, 31)))))
    assert state.recent.tolist() == list(range(21, 31))


def test_the_newest_time_is_the_latest_though_events_come_late(extractor: Extractor) -> None:
    behaviors = behaviors_on([1, 2, 3])[[2, 0, 1]]
    state = extractor.extract(sequence_of(behaviors))
    assert state.last_time_ms == START_MS + 2 * 3_600_000


def test_a_state_survives_its_record(extractor: Extractor) -> None:
    state = extractor.extract(random_sequence(200, seed=6))
    assert same(LAYOUT.decode(LAYOUT.encode(state)), state)


# --- warm start ---


def test_a_warm_start_keeps_most_of_the_interests(extractor: Extractor) -> None:
    behaviors = random_sequence(200, seed=7).behaviors
    old = extractor.extract(sequence_of(behaviors[:190]))
    warm = extractor.extract(sequence_of(behaviors), previous=old)
    nearness = (interests_of(warm).centers * interests_of(old).centers).sum(axis=1)
    assert (nearness > 0.95).sum() >= 5


def test_a_warm_start_reads_a_decoded_state(extractor: Extractor) -> None:
    sequence = random_sequence(200, seed=8)
    old = extractor.extract(replace(sequence, behaviors=sequence.behaviors[:190]))
    decoded = LAYOUT.decode(LAYOUT.encode(old))
    assert same(extractor.extract(sequence, old), extractor.extract(sequence, decoded))


@pytest.mark.parametrize("foreign", ["bundle", "epoch", "age"])
def test_a_state_that_does_not_fit_is_no_start(extractor: Extractor, foreign: str) -> None:
    sequence = random_sequence(200, seed=9)
    sequence = replace(sequence, version=replace(sequence.version, count=1000))
    fit = replace(extractor.extract(random_sequence(200, seed=10)), version=Version(7, 990))
    unfit = {
        "bundle": replace(fit, bundle=b"another bundle's"),
        "epoch": replace(fit, version=Version(8, 990)),
        "age": replace(fit, version=Version(7, 899)),
    }[foreign]
    assert same(extractor.extract(sequence, unfit), extractor.extract(sequence))
    assert not same(extractor.extract(sequence, fit), extractor.extract(sequence))


# --- threads ---


def test_threads_give_what_one_thread_gives(extractor: Extractor) -> None:
    sequences = [random_sequence(200, seed) for seed in range(40)]
    alone = [LAYOUT.encode(extractor.extract(sequence)) for sequence in sequences]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda s: LAYOUT.encode(extractor.extract(s)), sequences * 5))
    assert together == alone * 5


# --- behind the seam ---


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))


def test_an_interest_is_described_by_the_items_nearest_to_its_center(bundle: Bundle) -> None:
    system = open_system(bundle)
    behaviors = behaviors_on([item_key("item-3")] * 9 + [item_key("item-8")])
    sequence = sequence_of(behaviors)
    first, second = system.describe(system.extract(sequence), sequence, most=5)
    assert (first.share, second.share) == (0.9, 0.1)
    assert [bundle.item_ids[row] for row in (*first.rows, *second.rows)] == ["item-3", "item-8"]
