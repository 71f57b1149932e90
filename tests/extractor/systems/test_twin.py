from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extractor.system import Candidates, System, UserHistory
from extractor.systems import open_system
from extractor.systems.twin import TABLES, TWINSystem, first_in_turns
from infra.arrays import F32, I32, Bools
from infra.behaviors import ActionNames, item_key
from infra.errors import BundleIncompatible
from infra.store import Behaviors, Version
from models.bundle import LONG_TERM, SCORER_INPUTS, Bundle, TWINOffline
from models.kernels.relevance import hit_rate_of_retrieval
from models.measures.relevance import Oracle, oracle_of
from models.modules.sequence import BehaviorSequence, Target
from models.networks.twin import search_by_sorting
from models.reference import twin
from tests.bundles import tiny_bundle, tiny_config, tiny_network
from tests.extractor.items import START_MS, behaviors_on, sequence_of

L = 64
ACTIONS = ("like", "view")
"""Of a bundle that sees actions; 0 is any other."""

NOW_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", system="twin"))


@pytest.fixture(scope="module")
def system(bundle: Bundle) -> System:
    return open_system(bundle)


@pytest.fixture(scope="module")
def acted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    return Bundle.load(tiny_bundle(path, system="twin", actions=ACTIONS))


def on_items(*numbers: int) -> Behaviors:
    """A behavior on each item; one beyond 50 is unknown to the bundle."""
    return behaviors_on(np.array([item_key(f"item-{number}") for number in numbers], np.uint64))


def candidates_of(bundle: Bundle, *numbers: int) -> Candidates:
    keys = np.ascontiguousarray(on_items(*numbers)["item"])
    return Candidates(keys, bundle.rows(keys))


def fed(system: System, bundle: Bundle, behaviors: Behaviors, count: int = 0) -> dict[str, F32]:
    history = UserHistory(Version(7, count or len(behaviors)), None, behaviors)
    return system.feed(history, candidates_of(bundle, *range(1, 60)), START_MS + 10**9)


def test_a_bundle_of_twin_is_of_its_system_and_feeds_the_graph(
    bundle: Bundle, system: System
) -> None:
    assert isinstance(system, TWINSystem)
    names = {node.name for node in bundle.scorer_session().get_inputs()}
    assert names == set(SCORER_INPUTS["twin"])
    feed = system.feed(None, candidates_of(bundle, 1, 2), START_MS)
    assert feed.keys() == names
    assert not feed[LONG_TERM].any()


def test_nothing_is_stored_of_a_user(system: System) -> None:
    assert (system.reads, system.keeps_state) == ("sequence", False)
    assert system.layout.axes == ()
    assert not system.extract(sequence_of(on_items(1, 2))).tensors


@pytest.mark.parametrize("length", [1, 3, 40, 64, 200])
def test_candidates_find_what_plain_serving_finds(
    system: System, bundle: Bundle, length: int
) -> None:
    numbers = np.random.default_rng(length).integers(1, 60, length).tolist()
    behaviors = on_items(*numbers)
    rows = bundle.rows(np.ascontiguousarray(behaviors["item"]))
    every = candidates_of(bundle, *range(1, 60))
    expected = twin.feed(bundle, {}, rows, every.rows)[LONG_TERM]
    np.testing.assert_allclose(
        fed(system, bundle, behaviors)[LONG_TERM], expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("length", [1, 3, 40, 64, 200])
def test_candidates_find_by_actions_what_plain_serving_finds(acted: Bundle, length: int) -> None:
    rng = np.random.default_rng(length)
    behaviors = on_items(*rng.integers(1, 60, length).tolist())
    behaviors["action"] = rng.integers(0, 5, length)
    rows = acted.rows(np.ascontiguousarray(behaviors["item"]))
    every = candidates_of(acted, *range(1, 60))
    expected = twin.feed(acted, {}, rows, every.rows, acted.feature_rows(behaviors, 0))[LONG_TERM]
    found = fed(open_system(acted), acted, behaviors)[LONG_TERM]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_what_a_user_did_counts(acted: Bundle) -> None:
    system, behaviors = open_system(acted), on_items(*range(1, 41))
    before = fed(system, acted, behaviors)[LONG_TERM]
    behaviors["action"][::2] = 1
    assert np.abs(fed(system, acted, behaviors)[LONG_TERM] - before).max() > 1e-4


def test_an_action_that_the_bundle_does_not_know_is_the_unknown_one(acted: Bundle) -> None:
    system, behaviors = open_system(acted), on_items(1, 2, 3)
    unknown = fed(system, acted, behaviors)[LONG_TERM]
    behaviors["action"] = len(ACTIONS) + 1
    np.testing.assert_array_equal(fed(system, acted, behaviors)[LONG_TERM], unknown)


def test_stored_codes_are_those_that_the_settings_declare(acted: Bundle) -> None:
    behaviors = on_items(1, 2, 3)
    behaviors["action"] = 1
    expected = fed(open_system(acted), acted, behaviors)[LONG_TERM]
    behaviors["action"] = 3
    declared = acted.declaring(ActionNames(("view", "click", ACTIONS[0])))
    found = fed(open_system(declared), declared, behaviors)[LONG_TERM]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("wrong", [((0.5, 1.0),) * 2, ((0.5,),) * 3])
def test_biases_of_other_actions_or_heads_are_refused(
    acted: Bundle, wrong: tuple[tuple[float, ...], ...]
) -> None:
    offline = acted.manifest.offline
    assert isinstance(offline, TWINOffline)
    assert (len(offline.biases), len(offline.biases[0])) == (3, offline.heads)
    changed = msgspec.structs.replace(offline, biases=wrong)
    manifest = msgspec.structs.replace(acted.manifest, offline=changed)
    with pytest.raises(BundleIncompatible, match="biases of other features or heads") as caught:
        open_system(replace(acted, manifest=manifest))
    assert "\n" not in str(caught.value)


def test_a_manifest_without_biases_is_what_it_was_before_there_were_any() -> None:
    encoded = msgspec.json.decode(msgspec.json.encode(TWINOffline(k=4, heads=2, d_k=4)))
    assert encoded == {"system": "twin", "k": 4, "heads": 2, "d_k": 4}


def test_only_the_last_l_behaviors_count(system: System, bundle: Bundle) -> None:
    numbers = np.random.default_rng(0).integers(1, 51, 3 * L).tolist()
    whole = fed(system, bundle, on_items(*numbers))
    # The store may keep more behaviors than the bundle sees; how many there were is still told.
    last = fed(system, bundle, on_items(*numbers)[-L:], count=3 * L)
    for name, value in whole.items():
        np.testing.assert_array_equal(value, last[name])


def test_the_last_behavior_counts_at_once(system: System, bundle: Bundle) -> None:
    before = fed(system, bundle, on_items(1, 2, 3), count=3)
    after = fed(system, bundle, on_items(1, 2, 3, 9), count=4)
    assert np.abs(before[LONG_TERM] - after[LONG_TERM]).max() > 1e-4
    assert not before["cross"][8, 0]
    assert after["cross"][8, 0]


@pytest.mark.parametrize("length", [5, 40, 64, 200])
def test_what_is_measured_of_a_request_is_what_is_measured_offline(
    system: System, bundle: Bundle, length: int
) -> None:
    numbers = np.random.default_rng(length).integers(1, 60, length).tolist()
    behaviors, every = on_items(*numbers), candidates_of(bundle, *range(1, 60))
    rows = bundle.rows(np.ascontiguousarray(behaviors["item"]))[-L:]
    found, oracle = by_network(rows, every.rows)
    history = UserHistory(Version(7, length), None, behaviors)
    measured = system.measure(history, behaviors, every, NOW_MS)
    hit_rate = hit_rate_of_retrieval(found, oracle.relevance.numpy(), k=4)
    assert measured["hit_rate"] == pytest.approx(hit_rate)
    found_weight = (oracle.weights.numpy() * found).sum(-1).mean()
    assert measured["found_weight"] == pytest.approx(found_weight, rel=1e-5)
    assert measured["found_weight"] < 0.99


@pytest.mark.parametrize("length", [40, 64, 200])
def test_what_was_done_counts_in_what_is_measured(acted: Bundle, length: int) -> None:
    rng = np.random.default_rng(length)
    behaviors, every = on_items(*rng.integers(1, 60, length).tolist()), candidates_of(acted, 3, 9)
    history = UserHistory(Version(7, length), None, behaviors)
    system = open_system(acted)
    before = system.measure(history, behaviors, every, NOW_MS)
    behaviors["action"] = rng.integers(0, 5, length)

    measured = system.measure(history, behaviors, every, NOW_MS)

    assert measured["hit_rate"] == 1.0
    assert measured["found_weight"] != before["found_weight"]


@torch.no_grad()
def by_network(rows: I32, candidates: I32) -> tuple[Bools, Oracle]:
    """What the bundle's network retrieves, bool[1, B, L], and its ESU of all behaviors."""
    with torch.random.fork_rng():
        network = tiny_network(50, tiny_config(system="twin"))
    table, of = network.item_table(), torch.from_numpy(candidates).long()[None]
    sequence = BehaviorSequence(
        torch.from_numpy(rows).long()[None], torch.ones(1, len(rows), dtype=torch.bool), table
    )
    target = Target(table[of], torch.zeros_like(of), of)
    retrieved = network.long.retrieved(sequence, target).numpy()
    return retrieved, oracle_of(network.long, sequence, target, top=4)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    length=st.integers(2, 300),
    heads=st.integers(1, 4),
    k=st.integers(1, 100),
    steps=st.sampled_from([0, 3, 50, 10**6]),
)
def test_the_real_top_is_found_by_sorting(
    seed: int, length: int, heads: int, k: int, steps: int
) -> None:
    rng, k = np.random.default_rng(seed), min(k, length - 1)
    scores = (rng.integers(-steps, steps + 1, (heads, 3, length)) / 1000).astype(np.float32)
    mask = torch.ones(1, length, dtype=torch.bool)
    expected = search_by_sorting(torch.from_numpy(scores), mask, k).numpy()
    np.testing.assert_array_equal(first_in_turns(scores, k), expected)


def test_a_user_is_described_by_the_items_with_the_most_behaviors(
    bundle: Bundle, system: System
) -> None:
    sequence = sequence_of(on_items(*[3] * 5, *[1000] * 3, *[8] * 2))
    parts = system.describe(system.extract(sequence), sequence, most=5)
    assert [(part.share, [bundle.item_ids[row] for row in part.rows]) for part in parts] == [
        (0.5, ["item-3"]),
        (0.2, ["item-8"]),
    ]


WRONG: dict[str, tuple[Callable[[TWINOffline], dict[str, Any]], str]] = {
    "another search": (
        lambda _: {"offline": None, "long_term": {"consistent": False}},
        "learned with long_term.consistent = False, which the services do not have",
    ),
    "no settings": (lambda _: {"offline": None}, "no settings of TWIN's search"),
    "no table": (lambda _: {"tables": {}}, "no item table 'queries' of float16 and width 8"),
    "another width": (
        lambda offline: {"offline": msgspec.structs.replace(offline, heads=4)},
        "no item table 'queries' of float16 and width 16",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_bundle_of_twin_that_is_not_run_here_is_refused(bundle: Bundle, wrong: str) -> None:
    changes, words = WRONG[wrong]
    assert isinstance(bundle.manifest.offline, TWINOffline)
    manifest = msgspec.structs.replace(bundle.manifest, **changes(bundle.manifest.offline))
    with pytest.raises(BundleIncompatible, match=words) as caught:
        open_system(replace(bundle, manifest=manifest))
    assert "\n" not in str(caught.value)


def test_its_tables_are_mapped_from_the_bundle(bundle: Bundle) -> None:
    for name in TABLES:
        assert not bundle.tables[name].flags.writeable
        assert not bundle.tables[name].flags.owndata
