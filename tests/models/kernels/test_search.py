"""What the kernel finds and attends to is what the network does (TWIN, sections 3.2 and 4.3)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.arrays import F32, I32, U16
from models.kernels.search import attend_to_found, behaviors_found, items_of, search_scores
from models.modules.sequence import BehaviorSequence, Target
from models.networks.twin import TWIN, TWINConfig, search_by_sorting
from tests.models.networks.building import ACTIONS, ITEMS, D, tiny_inputs


class Acted(NamedTuple):
    """What was done with the items of a sequence."""

    codes: U16
    table: torch.Tensor
    """f32[A, d]: embeddings of the actions."""


def module_of(k: int, heads: int, d_k: int, seed: int, behavior: tuple[str, ...] = ()) -> TWIN:
    torch.manual_seed(seed)
    module = TWINConfig(k=k, heads=heads, d_k=d_k).build(D, tiny_inputs(behavior))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@torch.no_grad()
def by_network(
    module: TWIN, table: torch.Tensor, rows: list[int], acted: Acted | None = None
) -> F32:
    """The heads side by side, f32[n + 1, heads * w], for every item as a candidate."""
    behaviors = torch.tensor([rows or [0]])
    codes = torch.zeros_like(behaviors)
    if acted is not None and rows:
        codes = torch.from_numpy(acted.codes.astype(np.int64))[None]
    sequence = BehaviorSequence(
        behaviors,
        torch.full(behaviors.shape, bool(rows)),
        table,
        features={} if acted is None else {"action": codes},
        feature_tables={} if acted is None else {"action": acted.table},
    )
    every = torch.arange(len(table))[None]
    target = Target(table[None], torch.zeros_like(every), every)
    found: F32 = module.find(module.summarize(sequence), target)[0].numpy()
    return found


@torch.no_grad()
def by_kernel(
    module: TWIN, table: torch.Tensor, rows: list[int], acted: Acted | None = None
) -> F32:
    tables = {name: array.float().numpy() for name, array in module.per_item(table).items()}
    items = items_of(np.array(rows, np.int32), None if acted is None else acted.codes)
    keys, values, biases = tables["keys"][items.rows], tables["values"][items.rows], None
    if acted is not None:
        compressed = module.relevance.compress_features({"action": acted.table})["action"]
        biases = compressed.numpy()[items.codes]
        values = values + (acted.table @ module.value).numpy()[items.codes]
    config = module.config
    return attend_to_found(tables["queries"], keys, values, items, config.k, config.heads, biases)


def check(module: TWIN, table: torch.Tensor, rows: list[int], acted: Acted | None = None) -> None:
    found, expected = by_kernel(module, table, rows, acted), by_network(module, table, rows, acted)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.lists(st.integers(0, ITEMS), min_size=1, max_size=700),
    heads=st.integers(1, 4),
    k=st.sampled_from([1, 3, 40, 100]),
)
def test_what_is_attended_to_is_what_the_network_retrieves(
    seed: int, rows: list[int], heads: int, k: int
) -> None:
    module, table = module_of(k, heads, 4, seed), torch.randn(ITEMS + 1, D)
    with torch.no_grad():
        tables = {name: array.float().numpy() for name, array in module.per_item(table).items()}
        sequence = BehaviorSequence(
            torch.tensor([rows], dtype=torch.long).reshape(1, -1),
            torch.ones(1, len(rows), dtype=torch.bool),
            table,
        )
        every = torch.arange(len(table))[None]
        target = Target(table[None], torch.zeros_like(every), every)
        expected = module.retrieved(sequence, target)[0].numpy()
    items = items_of(np.array(rows, np.int32))
    found = behaviors_found(tables["queries"], tables["keys"][items.rows], items, k, heads)
    np.testing.assert_array_equal(found, expected)


few = st.lists(st.integers(0, 5), max_size=120)
many = st.lists(st.integers(0, ITEMS), max_size=120)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    length=st.integers(1, 700),
    heads=st.integers(1, 4),
    k=st.sampled_from([1, 3, 40, 100, 300]),
    steps=st.sampled_from([0, 3, 50, 10**6]),
    padded=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_known_scores_are_searched_as_by_sorting(
    seed: int, length: int, heads: int, k: int, steps: int, padded: float
) -> None:
    """Of few steps many scores are equal: then places decide."""
    rng = np.random.default_rng(seed)
    scores = (rng.integers(-steps, steps + 1, (2, heads, 3, length)) / 1000).astype(np.float32)
    mask = rng.random((2, length)) >= padded
    expected = search_by_sorting(torch.from_numpy(scores), torch.from_numpy(mask)[:, None], k)
    for threads in (1, 2):
        np.testing.assert_array_equal(search_scores(scores, mask, k, threads), expected.numpy())


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    # Row 0 is what the bundle does not know.
    rows=few | many | st.integers(0, 120).map(lambda n: [3] * n),
    k=st.sampled_from([1, 2, 5, 20, 119, 120, 121]),
    shape=st.sampled_from([(1, 0), (2, 0), (4, 0), (2, 11), (3, 1)]),
    kind=st.sampled_from(["different", "alike", "untaught", "in pairs", "short"]),
)
def test_the_kernel_does_what_the_network_does(
    seed: int, rows: list[int], k: int, shape: tuple[int, int], kind: str
) -> None:
    module = module_of(k, *shape, seed)
    table = torch.randn(ITEMS + 1, D)
    if kind == "alike":
        table[1:] = table[1]
    if kind == "untaught":
        table[0] = 0
    if kind == "in pairs":
        table[1::2] = table[2::2] if ITEMS % 2 == 0 else table[0:-1:2]
    if kind == "short":
        table *= 1e-6
    check(module, table, rows)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=few | many | st.integers(0, 120).map(lambda n: [3] * n),
    k=st.sampled_from([1, 2, 5, 20, 119, 120, 121]),
    shape=st.sampled_from([(1, 0), (2, 0), (4, 0), (2, 11), (3, 1)]),
    alike=st.booleans(),
    # Without weight actions tell behaviors apart and nothing else: their scores are equal.
    weight=st.sampled_from([0.0, 1e-6, 1.0, 1000.0]),
)
def test_the_kernel_has_the_biases_of_the_network(
    seed: int, rows: list[int], k: int, shape: tuple[int, int], alike: bool, weight: float
) -> None:
    module = module_of(k, *shape, seed, ("action",))
    table, actions = torch.randn(ITEMS + 1, D), weight * torch.randn(ACTIONS, D)
    if alike:
        table[1:] = table[1]
    codes = np.random.default_rng(seed).integers(0, ACTIONS, len(rows)).astype(np.uint16)
    check(module, table, rows, Acted(codes, actions))


@pytest.mark.parametrize("width", [2, 8])
def test_a_bias_is_added_to_the_finished_sum(width: int) -> None:
    """2^24 and 1 are 2^24 in float32, and so they are with 1 more; 2^24 and 2 are not."""
    queries, keys = np.zeros((1, width), np.float32), np.zeros((2, width), np.float32)
    queries[0, :2], keys[1, :2] = 1, 1
    values = np.repeat(np.array([[5], [7]], np.float32), width, axis=1)
    items = items_of(np.array([1, 2], np.int32))
    found = attend_to_found(queries, keys, values, items, 1, 1, np.full((2, 1), 2**24, np.float32))
    # The older of the two, whose score is greater by 2.
    assert found.tolist() == [[7] * width]


@pytest.mark.parametrize("length", [300, 1000, 5000])
@pytest.mark.parametrize("different", [2000, 300, 40])
@pytest.mark.parametrize("alike", [1, 7, 2000])
def test_long_sequences_are_searched_as_the_network_does(
    length: int, different: int, alike: int
) -> None:
    """Also where many items have one embedding, so that equal scores are what decides."""
    rng = np.random.default_rng(length)
    module = module_of(100, 4, 0, seed=length)
    table = torch.from_numpy(rng.standard_normal((different + 1, D), np.float32))
    table = table[torch.arange(different + 1) // alike * alike]
    rows = rng.integers(0, different + 1, length).tolist()
    candidates = torch.from_numpy(rng.integers(0, different + 1, 30))
    items = items_of(np.array(rows, np.int32))
    with torch.no_grad():
        tables = {name: array.float().numpy() for name, array in module.per_item(table).items()}
        sequence = BehaviorSequence(torch.tensor([rows]), torch.ones(1, length).bool(), table)
        target = Target(table[candidates][None], candidates[None], candidates[None])
        expected = module.find(module.summarize(sequence), target)[0].numpy()
    found = attend_to_found(
        tables["queries"][candidates],
        tables["keys"][items.rows],
        tables["values"][items.rows],
        items,
        100,
        4,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_behaviors_are_counted_by_item_newest_first() -> None:
    rng = np.random.default_rng(0)
    rows: I32 = rng.integers(0, 20, 500).astype(np.int32)
    found = items_of(rows)
    newest_first = rows[::-1].tolist()
    assert found.rows.tolist() == list(dict.fromkeys(newest_first))
    for item, row in enumerate(found.rows.tolist()):
        ages = found.ages[found.bounds[item] : found.bounds[item + 1]].tolist()
        assert ages == [age for age, other in enumerate(newest_first) if other == row]
        assert found.counts[item] == len(ages)


def test_behaviors_on_one_item_are_counted_by_their_codes() -> None:
    rng = np.random.default_rng(0)
    rows, codes = rng.integers(0, 20, 500), rng.integers(0, 3, 500)
    found = items_of(rows.astype(np.int32), codes.astype(np.uint16))
    newest_first = list(zip(rows[::-1].tolist(), codes[::-1].tolist(), strict=True))
    items = list(zip(found.rows.tolist(), found.codes.tolist(), strict=True))
    assert items == list(dict.fromkeys(newest_first))
    for item, pair in enumerate(items):
        ages = found.ages[found.bounds[item] : found.bounds[item + 1]].tolist()
        assert ages == [age for age, other in enumerate(newest_first) if other == pair]


def test_no_candidates_get_nothing() -> None:
    items = items_of(np.array([1, 2], np.int32))
    none, two = np.zeros((0, 8), np.float32), np.ones((2, 8), np.float32)
    assert attend_to_found(none, two, two, items, 3, 2).shape == (0, 8)
