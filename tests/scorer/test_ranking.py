from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xxhash
from prometheus_client import CollectorRegistry

from extractor.history import add_behaviors
from extractor.state import InterestState
from extractor.system import Candidates, UserHistory
from extractor.systems import open_system
from extractor.systems.encode import NEWEST, interests_of
from infra.behaviors import item_key
from infra.errors import StoreUnavailable
from infra.metrics import ScorerMetrics
from infra.records import bundle_key
from infra.segments import SEGMENT
from infra.store import Behaviors, InterestWrite, Profile, Version
from models.bundle import Bundle
from models.features import cross_features, user_features
from models.reference.serving import StoredUser, score_stored
from scorer.breaker import AWAY_S, FAILURES
from scorer.ids import item_keys
from scorer.limits import Refused
from scorer.ranking import Ranker
from tests.bundles import tiny_bundle
from tests.scorer.conftest import NOW_MS, World

CANDIDATES = [f"item-{i}" for i in range(1, 51)]


def stored(world: World, user: str) -> tuple[Profile, InterestState]:
    """What the store has of a clustered user."""
    (profile,) = world.store.profiles([user], world.bundle.digest)
    assert profile is not None
    assert profile.interests is not None
    return profile, world.system.layout.decode(profile.interests)


def plain(world: World, user: str, candidates: list[str], now_ms: int = NOW_MS) -> np.ndarray:
    """What `models.reference.serving` gives for the user as they stand in the store."""
    profile, state = stored(world, user)
    pending = profile.version.count - state.count
    newer = profile.recent[len(profile.recent) - pending :]
    return plain_of(world, profile, state, newer, candidates, now_ms)


def plain_of(
    world: World,
    profile: Profile,
    state: InterestState,
    newer: Behaviors,
    candidates: list[str],
    now_ms: int,
) -> np.ndarray:
    """The same of a state and the behaviors newer than it."""
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


def spoil(world: World, user: str, record: bytes) -> None:
    """Store something else in the place of a user's interest state."""
    (sequence,) = world.store.sequences([user])
    assert sequence is not None
    write = InterestWrite(user, world.bundle.digest, sequence.version, record)
    world.store.put_interests([write], NOW_MS)


def lose_segment(world: World, user: str, number: int) -> None:
    """Damage what a store holds of a user."""
    world.store._segments[user][number] = b"what a disk made of it"


def damage(world: World, kind: str) -> float:
    found = world.registry.get_sample_value("lifelong_scorer_store_damage_total", {"kind": kind})
    return found or 0.0


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
    world.store._states["u"] = {bundle_key(world.bundle.digest): world.system.layout.encode(stray)}
    assert world.ranker.rank("u", CANDIDATES).history == "sequence"


def test_corrupt_interests_are_replaced_by_the_sequence(world: World) -> None:
    spoil(world, "u", b"rubbish")
    assert world.ranker.rank("u", CANDIDATES).history == "sequence"


def test_corrupt_interests_are_counted_as_damage(world: World) -> None:
    spoil(world, "u", b"rubbish")
    world.ranker.rank("u", CANDIDATES)
    assert damage(world, "state") == 1


def test_interests_of_a_bundle_whose_digest_begins_alike_are_not_used(world: World) -> None:
    """A store may tell bundles apart by half of their digests."""
    _, state = stored(world, "u")
    alike = replace(state, bundle=state.bundle[:8] + bytes(8))
    spoil(world, "u", world.system.layout.encode(alike))
    assert world.ranker.rank("u", CANDIDATES).history == "sequence"


def test_states_of_another_bundle_do_not_disturb(world: World) -> None:
    before = world.ranker.rank("u", CANDIDATES)
    (sequence,) = world.store.sequences(["u"])
    assert sequence is not None
    theirs = InterestWrite("u", b"another bundle's", sequence.version, b"of another layout")
    world.store.put_interests([theirs], NOW_MS)
    after = world.ranker.rank("u", CANDIDATES)
    assert (after.history, after.as_of) == ("interests", before.as_of)
    np.testing.assert_array_equal(after.ctrs, before.ctrs)
    assert damage(world, "state") == 0


def test_a_bundle_without_a_state_beside_another_with_one_reads_once(world: World) -> None:
    world.append("new", ["item-1", "item-2"])
    (sequence,) = world.store.sequences(["new"])
    assert sequence is not None
    theirs = InterestWrite("new", b"another bundle's", sequence.version, b"of another layout")
    world.store.put_interests([theirs], NOW_MS)
    world.store.reads = 0
    ranking = world.ranker.rank("new", CANDIDATES)
    assert (ranking.history, ranking.newer) == ("sequence", 2)
    assert world.store.reads == 1


def test_lost_behaviors_newer_than_the_interests_leave_the_others(world: World) -> None:
    world.append("u", [f"item-{1 + i % 50}" for i in range(2 * SEGMENT - 30 + 5)])
    lose_segment(world, "u", 1)
    ranking = world.ranker.rank("u", CANDIDATES)
    assert ranking.history == "interests"
    assert ranking.as_of is not None
    assert ranking.as_of.count == 30
    assert ranking.newer == SEGMENT - 30 + 5


def test_what_is_left_of_newer_behaviors_scores_as_a_plain_evaluation(world: World) -> None:
    world.append("u", [f"item-{1 + i % 50}" for i in range(2 * SEGMENT - 30 + 5)])
    lose_segment(world, "u", 1)
    profile, state = stored(world, "u")
    left = np.concatenate([profile.recent[: SEGMENT - 30], profile.recent[-5:]])
    served = world.ranker.rank("u", CANDIDATES).ctrs
    expected = plain_of(world, profile, state, left, CANDIDATES, NOW_MS)
    np.testing.assert_allclose(served, expected, rtol=0, atol=1e-5)


def test_lost_behaviors_that_the_interests_cover_are_not_missed(world: World) -> None:
    world.append("new", [f"item-{1 + i % 9}" for i in range(SEGMENT)])
    world.cluster("new")
    world.append("new", ["item-1", "item-2"])
    before = world.ranker.rank("new", CANDIDATES)
    lose_segment(world, "new", 0)
    after = world.ranker.rank("new", CANDIDATES)
    assert (after.history, after.newer) == ("interests", 2)
    np.testing.assert_array_equal(after.ctrs, before.ctrs)


def test_lost_behaviors_of_a_user_never_clustered_leave_the_others(world: World) -> None:
    world.append("new", [f"item-{1 + i % 9}" for i in range(2 * SEGMENT + 3)])
    lose_segment(world, "new", 0)
    world.store.reads = 0
    ranking = world.ranker.rank("new", CANDIDATES)
    assert (ranking.history, ranking.newer) == ("sequence", SEGMENT + 3)
    assert world.store.reads == 1


def test_a_long_sequence_with_lost_behaviors_is_clustered_from_the_others(world: World) -> None:
    world.append("new", [f"item-{1 + i % 50}" for i in range(NEWEST + 3 * SEGMENT)])
    lose_segment(world, "new", 2)
    world.store.reads = 0
    ranking = world.ranker.rank("new", CANDIDATES)
    assert (ranking.history, ranking.newer) == ("sequence", 0)
    assert ranking.as_of is not None
    assert ranking.as_of.count == NEWEST + 3 * SEGMENT
    assert world.store.reads == 1


def test_a_user_of_whom_all_is_lost_is_scored_without_history(world: World) -> None:
    world.append("new", [f"item-{1 + i % 9}" for i in range(SEGMENT)])
    lose_segment(world, "new", 0)
    ranking = world.ranker.rank("new", CANDIDATES)
    assert ranking.newer == 0
    assert np.isfinite(ranking.ctrs).all()


def test_corrupt_interests_beside_lost_behaviors_are_replaced_by_what_is_left(
    world: World,
) -> None:
    world.append("u", [f"item-{1 + i % 50}" for i in range(2 * SEGMENT - 30 + 5)])
    lose_segment(world, "u", 1)
    spoil(world, "u", b"rubbish")
    ranking = world.ranker.rank("u", CANDIDATES)
    assert ranking.history == "sequence"
    assert ranking.as_of is not None
    assert ranking.as_of.count == 2 * SEGMENT + 5
    assert np.isfinite(ranking.ctrs).all()


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


def test_unknown_items_may_be_put_last(world: World) -> None:
    scored = world.ranker.rank("u", ["x", "item-1", "y", "item-2"])
    last = world.ranker.rank("u", ["x", "item-1", "y", "item-2"], unknown_items="last")
    assert last.ctrs.tolist() == [0, scored.ctrs[1], 0, scored.ctrs[3]]
    assert last.unknown_items == ["x", "y"]
    assert last.ctrs.dtype == np.float32


def test_where_all_are_known_nothing_is_put_last(world: World) -> None:
    scored, last = (
        world.ranker.rank("u", CANDIDATES, unknown_items=policy).ctrs
        for policy in ("score", "last")
    )
    np.testing.assert_array_equal(last, scored)


def test_a_refusal_names_the_unknown_items_once(world: World) -> None:
    with pytest.raises(Refused, match="does not know: 'x', 'y'; leave") as refused:
        world.ranker.rank("u", ["x", "item-1", "y", "x"], unknown_items="refuse")
    assert (refused.value.status, refused.value.field) == (422, "candidates")


def test_a_refusal_is_one_short_line_however_many_and_odd_the_items(world: World) -> None:
    items = [f"{'long ' * 50}\n{number}" for number in range(1000)]
    with pytest.raises(Refused, match="and 995 more") as refused:
        world.ranker.rank("u", items, unknown_items="refuse")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_known_items_are_not_refused(world: World) -> None:
    assert not world.ranker.rank("u", CANDIDATES, unknown_items="refuse").unknown.any()


def test_a_request_overrides_what_becomes_of_unknown_items(world: World) -> None:
    strict = Ranker(world.store, world.bundle, world.system, world.metrics, unknown_items="refuse")
    with pytest.raises(Refused):
        strict.rank_keys("u", item_keys(["x"]))
    assert strict.rank_keys("u", item_keys(["x"]), unknown_items="last").ctrs.tolist() == [0]
    assert strict.rank("u", ["x"], unknown_items="score").ctrs[0] > 0


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


def test_a_store_that_is_away_is_an_error_to_a_strict_ranker(strict_world: World) -> None:
    strict_world.store.away = True
    with pytest.raises(StoreUnavailable):
        strict_world.ranker.rank("u", CANDIDATES)


def test_without_its_store_everybody_is_ranked_as_a_stranger(world: World) -> None:
    stranger = world.ranker.rank("nobody", CANDIDATES)
    world.store.away = True
    degraded = world.ranker.rank("u", CANDIDATES)
    assert (degraded.degraded, degraded.history) == (True, "none")
    np.testing.assert_array_equal(degraded.ctrs, stranger.ctrs)
    assert not stranger.degraded
    assert world.registry.get_sample_value("lifelong_scorer_degraded_total") == 1


def test_a_store_that_is_away_is_asked_once_in_a_while(world: World) -> None:
    world.store.away = True
    world.store.reads = 0
    for _ in range(5):
        assert world.ranker.rank("u", CANDIDATES).degraded
    assert world.store.reads == FAILURES
    world.clock.now += AWAY_S
    for _ in range(5):
        assert world.ranker.rank("u", CANDIDATES).degraded
    assert world.store.reads == FAILURES + 1
    world.store.away = False
    world.clock.now += AWAY_S
    assert world.ranker.rank("u", CANDIDATES).history == "interests"


def test_a_strict_ranker_asks_a_store_that_is_away_once_in_a_while(
    strict_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    strict_world.store.away = True
    strict_world.store.reads = 0
    for _ in range(5):
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            strict_world.ranker.rank("u", CANDIDATES)
    assert strict_world.store.reads == FAILURES
    assert len(caplog.records) == 1


def test_a_user_whose_read_fails_takes_no_history_from_the_next(world: World) -> None:
    world.store.away = True
    assert world.ranker.rank("nobody", CANDIDATES).degraded
    world.store.away = False
    assert world.ranker.rank("u", CANDIDATES).history == "interests"


def make_later(world: World, user: str) -> None:
    """Have the user's head be one of a version to come."""
    body = bytes([9]) + world.store._heads[user][1:-8]
    world.store._heads[user] = body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def test_a_record_of_a_later_version_degrades_its_user_alone(world: World) -> None:
    world.append("new", ["item-1"])
    make_later(world, "new")
    assert world.ranker.rank("new", CANDIDATES).degraded
    assert world.ranker.rank("u", CANDIDATES).history == "interests"


def test_several_users_are_read_at_once_and_ranked_as_each_alone(world: World) -> None:
    world.append("new", ["item-3"], NOW_MS - 1)  # of whom the profile tells all
    world.append("late", [f"item-{1 + i % 20}" for i in range(200)], NOW_MS - 10_000_000)
    world.cluster("late")
    world.append("late", ["item-7"] * (NEWEST + 1), NOW_MS - 1_000_000)
    users = ["u", "nobody", "late", "new", "u"]
    keys = item_keys([f"item-{1 + i}" for i in range(20)])
    alone = [
        world.ranker.rank_keys(user, keys[4 * i : 4 * i + 4], NOW_MS - i)
        for i, user in enumerate(users)
    ]
    world.store.reads = 0
    times_ms = [NOW_MS - i for i in range(len(users))]
    together = world.ranker.rank_each(users, keys, times_ms)
    assert world.store.reads == 2  # their profiles, and the sequences that are needed whole
    assert [ranking.history for ranking in together] == [ranking.history for ranking in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.ctrs == pytest.approx(other.ctrs, abs=1e-7)


def test_without_their_store_several_users_are_all_degraded(world: World) -> None:
    world.store.away, world.store.reads = True, 0
    rankings = world.ranker.rank_each(["u", "v"], item_keys(["item-1", "item-2"]), [None, None])
    assert [ranking.degraded for ranking in rankings] == [True, True]
    assert world.store.reads == 1


def test_a_record_that_cannot_be_used_degrades_its_user_alone_among_several(world: World) -> None:
    world.append("later", ["item-1"])
    make_later(world, "later")
    rankings = world.ranker.rank_each(["later", "u"], item_keys(["item-1", "item-2"]), [None, None])
    assert [ranking.degraded for ranking in rankings] == [True, False]


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
