from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from extractor.history import add_behaviors
from extractor.state import InterestState
from extractor.system import Candidates, UserHistory
from extractor.systems import open_system
from extractor.systems.encode import NEWEST, interests_of
from infra.behaviors import item_key
from infra.errors import StoreUnavailable
from infra.metrics import ScorerMetrics
from infra.store import InterestWrite, Profile, Version
from models.bundle import Bundle
from models.features import cross_features, user_features
from models.reference.serving import StoredUser, score_stored
from scorer.ranking import Ranker, item_keys
from tests.bundles import tiny_bundle
from tests.scorer.conftest import NOW_MS, World

CANDIDATES = [f"item-{i}" for i in range(1, 51)]


def stored(world: World, user: str) -> tuple[Profile, InterestState]:
    """What the store has of a clustered user."""
    (profile,) = world.store.profiles([user])
    assert profile is not None
    assert profile.interests is not None
    return profile, world.system.layout.decode(profile.interests)


def plain(world: World, user: str, candidates: list[str], now_ms: int = NOW_MS) -> np.ndarray:
    """What `models.reference.serving` gives for the user as they stand in the store."""
    profile, state = stored(world, user)
    pending = profile.version.count - state.count
    newer = profile.recent[len(profile.recent) - pending :]
    known = StoredUser(
        tensors=state.tensors,
        recent=state.recent,
        history=state.history,
        newer=newer["item"].copy(),
        newer_times=newer["time"].copy(),
        count=profile.version.count,
        last_time_ms=int(profile.recent["time"][-1]),
    )
    session = world.bundle.scorer_session()
    return score_stored(world.bundle, session, known, item_keys(candidates), now_ms)


def test_a_clustered_user_is_scored_from_stored_interests(world: World) -> None:
    ranking = world.ranker.rank("u", CANDIDATES)
    assert ranking.history == "interests"
    assert ranking.known_user
    assert ranking.as_of is not None
    assert ranking.as_of.count == 30
    assert ranking.newer == 0
    assert ranking.ctrs.shape == (50,)
    assert ranking.ctrs.dtype == np.float32


def test_served_ctrs_are_those_of_a_plain_evaluation(world: World) -> None:
    served = world.ranker.rank("u", CANDIDATES).ctrs
    np.testing.assert_allclose(served, plain(world, "u", CANDIDATES), rtol=0, atol=1e-5)


def test_served_ctrs_with_newer_behaviors_are_those_of_a_plain_evaluation(world: World) -> None:
    world.append("u", ["item-7", "item-49", "item-7", "not-in-the-bundle"])
    served = world.ranker.rank("u", CANDIDATES).ctrs
    np.testing.assert_allclose(served, plain(world, "u", CANDIDATES), rtol=0, atol=1e-5)


def test_served_ctrs_are_those_of_the_torch_network(world: World) -> None:
    import torch

    from models.modules.sequence import Target
    from tests.bundles import tiny_config, tiny_network

    with torch.random.fork_rng():
        network = tiny_network(50, tiny_config())
    world.append("u", ["item-9", "item-33"])
    served = world.ranker.rank("u", CANDIDATES).ctrs

    (sequence,) = world.store.sequences(["u"])
    assert sequence is not None
    _, state = stored(world, "u")
    newer = sequence.behaviors[-2:]
    keys = item_keys(CANDIDATES)
    rows = world.bundle.rows(keys)
    known = torch.from_numpy(rows).long()
    with torch.no_grad():
        embed = network.embedding
        recent = embed(torch.from_numpy(world.bundle.rows(sequence.behaviors["item"][-8:])))
        singletons = embed(torch.from_numpy(world.bundle.rows(newer["item"].copy())))
        interests = torch.cat([torch.tensor(interests_of(state).interests), singletons])
        sizes = torch.cat(
            [torch.tensor(interests_of(state).sizes.astype(np.float32)), torch.ones(2)]
        )
        merged = add_behaviors(state.history, newer)
        popularity = world.bundle.popularity[rows]
        logits = network.logits(
            {"interests": interests, "sizes": sizes},
            recent,
            torch.ones(8),
            torch.from_numpy(user_features(32, int(sequence.behaviors["time"][-1]), NOW_MS)),
            Target(embed(known), torch.zeros_like(known), known),
            torch.from_numpy(cross_features(keys, popularity, merged, NOW_MS)),
        )
        expected = torch.sigmoid(logits).numpy()
    np.testing.assert_allclose(served, expected, rtol=0, atol=1e-5)


def test_a_behavior_counts_at_once(world: World) -> None:
    before = world.ranker.rank("u", CANDIDATES).ctrs
    world.append("u", ["item-42"])
    ranking = world.ranker.rank("u", CANDIDATES)
    assert ranking.newer == 1
    assert ranking.as_of is not None
    assert ranking.as_of.count == 30
    assert np.abs(ranking.ctrs - before).max() > 1e-5


def test_a_newer_behavior_is_a_cluster_of_one(world: World) -> None:
    """The same as a state that holds its embedding as one more interest."""
    world.append("u", ["item-42"])
    profile, state = stored(world, "u")
    newer = profile.recent[-1:]
    of = interests_of(state)
    row = world.bundle.rows(newer["item"].copy())
    singleton = replace(
        state,
        version=profile.version,
        last_time_ms=int(newer["time"][0]),
        recent=np.concatenate([state.recent, newer["item"]])[-world.bundle.manifest.M :],
        history=add_behaviors(state.history, newer),
        tensors={
            "centers": np.concatenate([of.centers, world.bundle.tables["projected"][row]]),
            "sizes": np.concatenate([of.sizes, np.ones(1, np.uint32)]),
            "interests": np.concatenate([of.interests, world.bundle.embeddings[row]]),
        },
    )
    keys = item_keys(CANDIDATES)
    history = UserHistory(profile.version, singleton, newer[:0])
    feed = world.system.feed(history, Candidates(keys, world.bundle.rows(keys)), NOW_MS)
    (expected,) = world.bundle.scorer_session().run(None, feed)
    np.testing.assert_array_equal(world.ranker.rank("u", CANDIDATES).ctrs, expected)


def test_an_unknown_user_is_scored_without_history(world: World) -> None:
    ranking = world.ranker.rank("stranger", CANDIDATES)
    assert ranking.history == "none"
    assert not ranking.known_user
    assert ranking.as_of is None
    session = world.bundle.scorer_session()
    expected = score_stored(world.bundle, session, None, item_keys(CANDIDATES), NOW_MS)
    np.testing.assert_allclose(ranking.ctrs, expected, rtol=0, atol=1e-6)


def test_a_user_never_clustered_is_scored_from_the_sequence_in_one_read(world: World) -> None:
    world.append("new", ["item-1", "item-2", "item-3"])
    world.store.reads = 0
    ranking = world.ranker.rank("new", CANDIDATES)
    assert ranking.history == "sequence"
    assert ranking.as_of is None
    assert ranking.newer == 3
    assert world.store.reads == 1


def test_scoring_from_the_sequence_equals_scoring_from_its_interests(world: World) -> None:
    world.append("new", [f"item-{1 + i % 9}" for i in range(300)])
    unclustered = world.ranker.rank("new", CANDIDATES)
    world.cluster("new")
    clustered = world.ranker.rank("new", CANDIDATES)
    assert (unclustered.history, clustered.history) == ("sequence", "interests")
    np.testing.assert_allclose(unclustered.ctrs, clustered.ctrs, rtol=0, atol=1e-6)


def test_interests_of_another_bundle_are_not_used(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Bundle.load(tiny_bundle(tmp_path_factory.mktemp("other") / "b", seed=1))
    ranker = Ranker(
        world.store,
        other,
        open_system(other),
        ScorerMetrics(CollectorRegistry()),
        clock_ms=lambda: NOW_MS,
    )
    ranking = ranker.rank("u", CANDIDATES)
    assert ranking.history == "sequence"
    assert ranking.newer == 30


def test_interests_of_an_earlier_life_of_the_user_are_not_used(world: World) -> None:
    _, state = stored(world, "u")
    stray = replace(state, version=Version(state.epoch + 1, 30))
    # No store lets it in by the front door; one whose records expire apart may still hold it.
    world.store._interests["u"] = stray.version, world.system.layout.encode(stray)
    assert world.ranker.rank("u", CANDIDATES).history == "sequence"


def test_corrupt_interests_are_replaced_by_the_sequence(world: World) -> None:
    version = world.store.profiles(["u"])[0].version  # type: ignore[union-attr]
    world.store.put_interests([InterestWrite("u", version, b"rubbish")], NOW_MS)
    assert world.ranker.rank("u", CANDIDATES).history == "sequence"


def test_far_more_newer_behaviors_than_interests_are_clustered_instead(world: World) -> None:
    world.append("u", ["item-3"] * (NEWEST + 1))
    ranking = world.ranker.rank("u", CANDIDATES)
    assert ranking.history == "sequence"
    assert ranking.as_of is not None
    assert ranking.as_of.count == 31 + NEWEST


def test_unknown_items_are_named_once_and_scored_alike(world: World) -> None:
    ranking = world.ranker.rank("u", ["x", "item-1", "y", "x"])
    assert ranking.unknown_items == ["x", "y"]
    assert ranking.unknown.tolist() == [True, False, True, True]
    assert ranking.ctrs[0] == ranking.ctrs[2]


def test_an_unknown_item_that_the_user_had_counts_as_had(world: World) -> None:
    world.append("u", ["y"])
    ranking = world.ranker.rank("u", ["x", "y"])
    assert ranking.ctrs[0] != ranking.ctrs[1]


def test_duplicate_candidates_get_the_same_ctr(world: World) -> None:
    ctrs = world.ranker.rank("u", ["item-1", "item-2", "item-1"]).ctrs
    assert ctrs[0] == ctrs[2]


def test_one_candidate_scores_as_among_many(world: World) -> None:
    alone = world.ranker.rank("u", ["item-5"]).ctrs
    among = world.ranker.rank("u", CANDIDATES).ctrs[4:5]
    np.testing.assert_allclose(alone, among, rtol=0, atol=1e-6)


def test_the_request_may_say_what_time_it_is(world: World) -> None:
    later = NOW_MS + 40 * 86_400_000
    at_later = world.ranker.rank("u", CANDIDATES, time_ms=later).ctrs
    np.testing.assert_allclose(at_later, plain(world, "u", CANDIDATES, later), rtol=0, atol=1e-5)
    assert np.abs(at_later - world.ranker.rank("u", CANDIDATES).ctrs).max() > 1e-6


def test_a_store_that_is_away_is_an_error(world: World) -> None:
    world.store.away = True
    with pytest.raises(StoreUnavailable):
        world.ranker.rank("u", CANDIDATES)


def test_a_ranking_leaves_its_figures(world: World) -> None:
    world.ranker.rank("u", ["item-1", "x"])

    def value(name: str, **labels: str) -> float | None:
        return world.registry.get_sample_value(name, labels)

    assert value("lifelong_scorer_history_total", kind="interests") == 1
    assert value("lifelong_scorer_unknown_items_total") == 1
    assert value("lifelong_scorer_candidates_sum") == 2
    for stage in ("store", "features", "model"):
        assert value("lifelong_scorer_stage_seconds_count", stage=stage) == 1


def test_item_keys_are_those_of_sequences() -> None:
    items = ["85123A", "été", "x" * 300]
    assert item_keys(items).tolist() == [item_key(item) for item in items]


def test_a_user_of_unknown_items_only_is_scored(world: World) -> None:
    world.append("odd", ["never-seen-1", "never-seen-2"])
    world.cluster("odd")
    ctrs = world.ranker.rank("odd", CANDIDATES).ctrs
    assert np.isfinite(ctrs).all()
