"""What every system must do, whichever paper it is from. A new one joins the fixture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from extractor.explanation import Explanation
from extractor.state import InterestState
from extractor.system import Candidates, System, UserHistory
from extractor.systems import open_system
from infra.arrays import F32
from infra.behaviors import item_key
from infra.metrics import MEASURES
from infra.store import Behaviors, Version
from models.bundle import LONG_TERM, Bundle
from tests.bundles import tiny_bundle
from tests.extractor.items import START_MS, behaviors_on, sequence_of
from tests.extractor.systems.whole import WholeSystem

NOW_MS = START_MS + 10**9
OPENED: dict[str, tuple[str, Callable[[Bundle], System]]] = {
    "encode": ("encode", open_system),
    "sdim": ("sdim", open_system),
    "twin": ("twin", open_system),
    "whole": ("encode", WholeSystem),
}
"""By name: of what its bundle is, and how it is opened."""


@pytest.fixture(scope="module", params=OPENED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(name: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    return Bundle.load(tiny_bundle(path, system=OPENED[name][0]))


@pytest.fixture(scope="module")
def system(name: str, bundle: Bundle) -> System:
    opened = OPENED[name][1](bundle)
    opened.warm()
    return opened


def on_items(numbers: list[int] | npt.NDArray[np.integer]) -> Behaviors:
    """A behavior on each item of the bundle, by number; one beyond 50 is unknown to it."""
    return behaviors_on(np.array([item_key(f"item-{number}") for number in numbers], np.uint64))


def ctrs(system: System, bundle: Bundle, history: UserHistory | None, numbers: range) -> F32:
    keys = on_items(list(numbers))["item"].copy()
    feed = system.feed(history, Candidates(keys, bundle.rows(keys)), NOW_MS)
    (found,) = bundle.scorer_session().run(None, feed)
    return found  # type: ignore[no-any-return]  # onnxruntime has no types


def split(system: System, behaviors: Behaviors, covered: int) -> UserHistory:
    """A state of the first ``covered`` behaviors, where the system keeps one, and the rest."""
    version = Version(7, len(behaviors))
    if not covered or not system.keeps_state:
        return UserHistory(version, None, behaviors)
    state = system.extract(sequence_of(behaviors[:covered]))
    return UserHistory(version, state, behaviors[covered:])


def test_a_stranger_is_scored(system: System, bundle: Bundle) -> None:
    found = ctrs(system, bundle, None, range(1, 10))
    assert np.isfinite(found).all()
    assert len(set(found.tolist())) > 1


def test_a_user_without_behaviors_is_scored(system: System, bundle: Bundle) -> None:
    history = UserHistory(Version(7, 0), None, on_items([]))
    assert np.isfinite(ctrs(system, bundle, history, range(1, 10))).all()


@pytest.mark.parametrize("length", [1, 2, 40, 64])
def test_behaviors_change_what_is_scored(system: System, bundle: Bundle, length: int) -> None:
    behaviors = on_items(np.random.default_rng(length).integers(1, 51, length))
    found = ctrs(system, bundle, split(system, behaviors, 0), range(1, 51))
    assert np.isfinite(found).all()
    assert np.abs(found - ctrs(system, bundle, None, range(1, 51))).max() > 1e-5


@pytest.mark.parametrize("newer", [0, 1, 20])
def test_a_behavior_counts_whether_the_state_covers_it_or_not(
    system: System, bundle: Bundle, newer: int
) -> None:
    """Items are as many as clusters can be: then a cluster and a newer behavior are the same."""
    behaviors = on_items([1, 2, 3, 4] * 10)
    whole = ctrs(system, bundle, split(system, behaviors, 40), range(1, 51))
    parts = ctrs(system, bundle, split(system, behaviors, 40 - newer), range(1, 51))
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5)


def test_unknown_items_are_behaviors_too(system: System, bundle: Bundle) -> None:
    for covered in (0, 6):
        history = split(system, on_items([1000, 2, 1001, 3, 1000, 2]), covered)
        assert np.isfinite(ctrs(system, bundle, history, range(1, 10))).all()


def test_unknown_candidates_are_scored(system: System, bundle: Bundle) -> None:
    history = split(system, on_items([1, 2, 3]), 0)
    assert np.isfinite(ctrs(system, bundle, history, range(49, 60))).all()


def test_a_state_says_what_it_covers(system: System, bundle: Bundle) -> None:
    state = system.extract(sequence_of(on_items([1, 2, 3]), count=5000, epoch=77))
    assert state.version == Version(77, 5000)
    assert state.bundle == bundle.digest


def test_a_state_scores_alike_after_its_record(system: System, bundle: Bundle) -> None:
    behaviors = on_items(np.random.default_rng(3).integers(1, 51, 64))
    state = system.extract(sequence_of(behaviors))
    again = system.layout.decode(system.layout.encode(state))

    def scored(state: InterestState) -> F32:
        history = UserHistory(Version(7, 66), state, on_items([7, 9]))
        return ctrs(system, bundle, history, range(1, 51))

    np.testing.assert_array_equal(scored(again), scored(state))


def test_a_warm_start_covers_the_same_behaviors(system: System) -> None:
    behaviors = on_items(np.random.default_rng(5).integers(1, 51, 64))
    old = system.extract(sequence_of(behaviors[:60]))
    warm = system.extract(sequence_of(behaviors), previous=old)
    cold = system.extract(sequence_of(behaviors))
    assert warm.version == cold.version
    for name, tensor in cold.tensors.items():
        assert warm.tensors[name].dtype == tensor.dtype
    np.testing.assert_array_equal(warm.history.counts, cold.history.counts)


@pytest.mark.parametrize("newer", [0, 1, 20])
def test_what_is_measured_has_a_metric(system: System, bundle: Bundle, newer: int) -> None:
    behaviors = on_items(np.random.default_rng(newer).integers(1, 60, 64))
    keys = on_items(list(range(1, 60)))["item"].copy()
    history = split(system, behaviors, 64 - newer)
    found = system.measure(history, behaviors, Candidates(keys, bundle.rows(keys)), NOW_MS)
    assert set(found) == set(system.measures) <= set(MEASURES)
    assert np.isfinite(list(found.values())).all()


@pytest.mark.parametrize("numbers", [[], [1000], [1000, 1000, 1001]])
def test_too_little_is_measured_to_be_nothing_or_a_number(
    system: System, bundle: Bundle, numbers: list[int]
) -> None:
    behaviors = on_items(numbers)
    keys = on_items([1, 2, 1000])["item"].copy()
    for covered in (0, len(numbers)):
        history = split(system, behaviors, covered)
        found = system.measure(history, behaviors, Candidates(keys, bundle.rows(keys)), NOW_MS)
        assert np.isfinite(list(found.values())).all()


def test_parts_are_described_largest_first(system: System, bundle: Bundle) -> None:
    sequence = sequence_of(on_items([1] * 5 + [2] * 3 + [3]))
    parts = system.describe(system.extract(sequence), sequence, most=2)
    assert len(parts) <= 2
    assert [part.share for part in parts] == sorted((part.share for part in parts), reverse=True)
    for part in parts:
        assert all(0 < row <= bundle.manifest.n_items for row in part.rows)


@pytest.mark.parametrize(("length", "newer"), [(64, 0), (64, 1), (50, 20), (3, 3), (1, 0), (0, 0)])
def test_what_explains_a_ctr_gives_it_when_put_together(
    system: System, bundle: Bundle, length: int, newer: int
) -> None:
    behaviors = on_items(np.random.default_rng(length + newer).integers(1, 60, length))
    keys = on_items(list(range(1, 60)))["item"].copy()
    candidates = Candidates(keys, bundle.rows(keys))
    history = split(system, behaviors, length - newer)
    explanation = system.explain(history, behaviors, candidates, NOW_MS)
    whole = ctrs(system, bundle, history, range(1, 60))
    np.testing.assert_allclose(
        ctrs_of(explanation, system, bundle, history, candidates), whole, rtol=0, atol=1e-5
    )


def ctrs_of(
    explanation: Explanation,
    system: System,
    bundle: Bundle,
    history: UserHistory,
    candidates: Candidates,
) -> F32:
    """The CTRs that the scorer graph gives for long-term vectors put together from parts."""
    session, found = bundle.scorer_session(), []
    for i, vector in enumerate(explanation.long_term()):
        one = Candidates(candidates.keys[i : i + 1], candidates.rows[i : i + 1])
        feed = system.feed(history, one, NOW_MS)
        if LONG_TERM in feed:
            feed[LONG_TERM] = vector[None]
        else:  # of an interest alone, attention makes the interest
            feed |= {"interests": vector[None], "sizes": np.ones(1, np.float32)}
        found.append(session.run(None, feed)[0])
    return np.concatenate(found)


def test_what_explains_names_behaviors_that_are_there(system: System, bundle: Bundle) -> None:
    behaviors = on_items([1, 2, 3, 1, 2, 1] * 8)
    keys = on_items([1, 2, 1000])["item"].copy()
    history = split(system, behaviors, 40)
    explanation = system.explain(history, behaviors, Candidates(keys, bundle.rows(keys)), NOW_MS)
    assert explanation.weights.shape[:2] == (3, len(explanation.parts))
    np.testing.assert_allclose(explanation.weights.sum(1), 1, atol=1e-5)
    members = [part.members for part in explanation.parts]
    assert set(np.concatenate(members).tolist()) <= set(range(len(behaviors)))
    for part in explanation.parts:
        assert len(part.members) == part.size
        assert (np.diff(part.shares) <= 0).all()
        if part.size:
            assert part.shares.sum() == pytest.approx(1, abs=1e-4)


def test_a_user_whose_older_behaviors_are_gone_is_explained_by_parts_alone(
    system: System, bundle: Bundle
) -> None:
    behaviors = on_items(np.random.default_rng(1).integers(1, 51, 60))
    keys = on_items([1, 2])["item"].copy()
    candidates = Candidates(keys, bundle.rows(keys))
    history = split(system, behaviors, 40)
    known = system.explain(history, behaviors, candidates, NOW_MS)
    alone = system.explain(history, history.newer, candidates, NOW_MS)
    np.testing.assert_array_equal(alone.weights, known.weights)
