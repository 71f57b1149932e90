from __future__ import annotations

from collections.abc import Iterator, Sequence

import httpx
import numpy as np
import pytest

from infra.store import Profile, StoredSequence
from models.bundle import Bundle
from scorer.messages import MAX_EXPLAINED, Explained
from scorer.ranking import Ranker
from tests.bundles import tiny_bundle
from tests.scorer.conftest import NOW_MS, FragileStore, World, client_of, made_world

CANDIDATES = [f"item-{i}" for i in range(1, 51)]


@pytest.fixture(scope="module", params=["encode", "sdim", "twin"])
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(system: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("bundle") / system, system=system))


@pytest.fixture
def world(bundle: Bundle) -> Iterator[World]:
    yield from made_world(bundle, degrade=True)


def explained(world: World, user: str = "u", most: int = 10) -> Explained:
    found = world.ranker.rank(user, CANDIDATES, explain=most).explained
    assert found is not None
    return found


def test_the_highest_are_explained_with_the_ctrs_that_they_got(world: World) -> None:
    world.append("u", ["item-44", "x"])
    ranking = world.ranker.rank("u", CANDIDATES, explain=7)
    assert ranking.explained is not None
    order = np.argsort(-ranking.ctrs, kind="stable")[:7]
    assert [one.item for one in ranking.explained.items] == [CANDIDATES[i] for i in order]
    ctrs = [one.ctr for one in ranking.explained.items]
    np.testing.assert_allclose(ctrs, ranking.ctrs[order], rtol=0, atol=1e-8)


def test_weights_of_an_item_add_up_to_one(world: World) -> None:
    for item in explained(world).items:
        told = [float(np.mean(part.weights)) for part in item.parts]
        assert sum(told) + item.other_parts == pytest.approx(1, abs=1e-4)
        assert told == sorted(told, reverse=True)
        assert sum(behavior.share for behavior in item.behaviors) <= 1 + 1e-4


def test_the_long_term_part_and_recent_behaviors_are_weighed_against_each_other(
    world: World,
) -> None:
    items = explained(world).items
    assert any(abs(one.ctr - one.ctr_without_long_term) > 1e-6 for one in items)
    assert any(abs(one.ctr - one.ctr_without_recent) > 1e-6 for one in items)


def test_behaviors_are_told_by_item_and_time(world: World) -> None:
    seen = {f"item-{1 + i % 20}" for i in range(30)}
    for item in explained(world).items:
        assert item.behaviors
        assert {behavior.item for behavior in item.behaviors} <= seen
        assert all(NOW_MS - 10_000_000 <= one.time < NOW_MS for one in item.behaviors)


def test_what_is_newer_than_the_state_is_told(world: World, system: str) -> None:
    world.append("u", ["item-44", "never-seen"])
    told = explained(world)
    if system == "twin":  # it keeps no state: all is newer
        assert not isinstance(told.state_age_s, float)
        assert len(told.newer) == 10
    else:
        assert told.state_age_s == pytest.approx(10_000 - 29 * 60)
        assert [one.newer for one in told.newer] == [True, True]
    assert [one.item for one in told.newer[:2]] == [None, "item-44"]


def test_of_a_stranger_there_is_nothing_to_tell_but_the_ctrs(world: World) -> None:
    told = explained(world, "nobody", most=2)
    assert [(one.parts, one.behaviors) for one in told.items] == [([], []), ([], [])]
    assert [one.ctr for one in told.items] == [one.ctr_without_recent for one in told.items]


def test_without_its_store_a_ranking_is_explained_as_a_stranger_s(world: World) -> None:
    world.store.away = True
    assert all(one.parts == [] for one in explained(world).items)


class Forgetful(FragileStore):
    """A store that has a user's state, and no sequence any more."""

    def __init__(self, profile: Profile | None) -> None:
        super().__init__()
        self._kept = profile

    def profiles(self, users: Sequence[str], digest: bytes) -> list[Profile | None]:
        return [self._kept]

    def sequences(self, users: Sequence[str]) -> list[StoredSequence | None]:
        return [None] * len(users)


def test_a_user_of_whom_the_older_behaviors_are_gone_is_explained_by_parts(
    world: World, system: str
) -> None:
    profile = world.store.profiles(["u"], world.bundle.digest)[0]
    ranker = Ranker(Forgetful(profile), world.bundle, world.system, world.metrics, lambda: NOW_MS)
    told = ranker.rank("u", CANDIDATES, explain=3).explained
    assert told is not None
    assert all(one.behaviors == [] for one in told.items)
    # TWIN has nothing but the sequence.
    assert all(bool(one.parts) == (system != "twin") for one in told.items)


async def test_a_request_asks_for_it(world: World) -> None:
    request = {"user": "u", "candidates": CANDIDATES}
    async with client_of(world) as http:
        plain = (await http.post("/v1/rank", json=request)).json()
        ten = (await http.post("/v1/rank", json={**request, "explain": True})).json()
        two = (await http.post("/v1/rank", json={**request, "explain": 2, "top_k": 1})).json()
    assert "explained" not in plain
    assert plain["items"] == ten["items"]
    assert [one["item"] for one in ten["explained"]["items"]] == [
        one["item"] for one in ten["items"][:10]
    ]
    assert len(two["explained"]["items"]) == 2


@pytest.mark.parametrize("wished", [0, -1, MAX_EXPLAINED + 1, "yes", 1.5, [1]])
async def test_another_wish_is_refused(world: World, wished: object) -> None:
    request = {"user": "u", "candidates": CANDIDATES, "explain": wished}
    async with client_of(world) as http:
        response: httpx.Response = await http.post("/v1/rank", json=request)
    assert response.status_code == 400
    assert response.json()["field"] == "explain"
