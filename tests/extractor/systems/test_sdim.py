from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from extractor.system import Candidates, System, UserHistory
from extractor.systems import open_system
from extractor.systems.sdim import SIGNATURES, SDIMSystem, buckets_of
from infra.behaviors import item_key
from infra.errors import BundleIncompatible
from infra.store import Behaviors, Version
from models.bundle import LONG_TERM, SCORER_INPUTS, Bundle, SDIMOffline
from tests.bundles import tiny_bundle
from tests.extractor.items import START_MS, behaviors_on, sequence_of

GROUPS, TAU = 4, 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", system="sdim"))


@pytest.fixture(scope="module")
def system(bundle: Bundle) -> System:
    return open_system(bundle)


def on_items(*numbers: int) -> Behaviors:
    """A behavior on each item; one beyond 50 is unknown to the bundle."""
    return behaviors_on(np.array([item_key(f"item-{number}") for number in numbers], np.uint64))


def test_a_bundle_of_sdim_is_of_its_system_and_feeds_the_graph(
    bundle: Bundle, system: System
) -> None:
    assert isinstance(system, SDIMSystem)
    names = {node.name for node in bundle.scorer_session().get_inputs()}
    assert names == set(SCORER_INPUTS["sdim"])
    keys = on_items(1, 2)["item"].copy()
    feed = system.feed(None, Candidates(keys, bundle.rows(keys)), START_MS)
    assert feed.keys() == names
    assert not feed[LONG_TERM].any()


def test_a_state_is_of_one_size_whatever_the_sequence(system: System) -> None:
    sizes = {
        tuple(tensor.shape for tensor in system.extract(sequence).tensors.values())
        for sequence in (sequence_of(on_items()), sequence_of(on_items(*range(1, 51))))
    }
    assert sizes == {((GROUPS << TAU, 8), (GROUPS << TAU,))}


def test_buckets_are_the_sums_of_the_last_l_behaviors(bundle: Bundle, system: System) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(1, 60, 100)
    of = buckets_of(system.extract(sequence_of(on_items(*numbers.tolist()))))
    rows = np.where(numbers <= 50, numbers, 0)[-64:]
    expected = np.zeros_like(of.buckets)
    for row in rows:
        for group, signature in enumerate(bundle.tables[SIGNATURES][row]):
            expected[(group << TAU) + signature] += bundle.embeddings[row]
    np.testing.assert_allclose(of.buckets, expected, atol=1e-5)
    assert of.sizes.sum() == GROUPS * 64
    assert not of.buckets[of.sizes == 0].any()


def test_a_state_does_not_depend_on_the_one_before(system: System) -> None:
    sequence = sequence_of(on_items(1, 2, 3))
    before = system.extract(sequence_of(on_items(7, 8)))
    again = system.extract(sequence, before)
    assert system.layout.encode(again) == system.layout.encode(system.extract(sequence))


def test_newer_behaviors_leave_the_state_as_it_is(bundle: Bundle, system: System) -> None:
    state = system.extract(sequence_of(on_items(1, 2, 3)))
    record = system.layout.encode(state)
    keys = on_items(1, 4)["item"].copy()
    history = UserHistory(Version(7, 5), state, on_items(4, 1000))
    first, second = (
        system.feed(history, Candidates(keys, bundle.rows(keys)), START_MS)[LONG_TERM]
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert system.layout.encode(state) == record


def test_a_state_is_described_by_the_buckets_of_its_first_group(
    bundle: Bundle, system: System
) -> None:
    first = bundle.tables[SIGNATURES][1:, 0]
    here = np.flatnonzero(first == first[0]) + 1
    there = np.flatnonzero(first != first[0]) + 1
    sequence = sequence_of(on_items(*[int(here[0])] * 6, *here[:3].tolist(), int(there[0])))
    parts = system.describe(system.extract(sequence), sequence, most=5)
    assert [part.share for part in parts] == [0.9, 0.1]
    assert set(parts[0].rows) == set(here[:3].tolist())
    assert parts[1].rows == [there[0]]


def test_a_state_is_summarized_by_the_buckets_that_are_filled(system: System) -> None:
    state = system.extract(sequence_of(on_items(1)))
    assert system.summarize(state) == {"buckets": GROUPS << TAU, "filled": GROUPS}


WRONG: dict[str, tuple[Callable[[SDIMOffline], dict[str, Any]], str]] = {
    "no settings": (lambda _: {"offline": None}, "no settings of SDIM's offline stage"),
    "no table": (lambda _: {"tables": {}}, "no item table 'signatures' of uint8 and width 4"),
    "another layout": (lambda _: {"stored": {}}, "lays out states otherwise"),
    "too few buckets": (
        lambda offline: {"offline": msgspec.structs.replace(offline, m=8, tau=2)},
        "names buckets that there are not, with tau = 2",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_bundle_of_sdim_that_is_not_run_here_is_refused(bundle: Bundle, wrong: str) -> None:
    changes, words = WRONG[wrong]
    assert isinstance(bundle.manifest.offline, SDIMOffline)
    manifest = msgspec.structs.replace(bundle.manifest, **changes(bundle.manifest.offline))
    with pytest.raises(BundleIncompatible, match=words) as caught:
        open_system(replace(bundle, manifest=manifest))
    assert "\n" not in str(caught.value)


def test_sdim_without_sampling_is_refused_by_name(bundle: Bundle) -> None:
    manifest = msgspec.structs.replace(bundle.manifest, system="sdim-expected")
    with pytest.raises(BundleIncompatible, match="'sdim-expected', which is not served"):
        open_system(replace(bundle, manifest=manifest))
