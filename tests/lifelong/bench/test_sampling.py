"""What a sample costs is measured on what it measures. Slow: every network is exported."""

import pytest

from extractor.system import Candidates
from lifelong.bench.requests import SERVED, Shop
from lifelong.bench.sampling import (
    SHARES,
    Load,
    history_of,
    measured_bundle,
    rankings,
    read,
    served,
)
from models.network import NetworkConfig

pytestmark = pytest.mark.long  # test_score.py has the same shop

NOW_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop(items=4000, network=NetworkConfig(d=8, M=4, hidden=(16, 8)))


@pytest.mark.parametrize("name", SERVED)
def test_all_that_a_system_can_tell_is_measured(shop: Shop, name: str) -> None:
    bundle, keys = measured_bundle(shop, name, 200), shop.candidates(20)
    with served(bundle, shop.user(200)) as (store, system):
        history, behaviors = history_of(store, system), read(store).behaviors
        found = system.measure(history, behaviors, Candidates(keys, bundle.rows(keys)), NOW_MS)
    assert set(found) == set(system.measures)
    assert (history.state is not None) == system.keeps_state


def test_rankings_are_timed_at_every_share(shop: Shop) -> None:
    figures = rankings(shop, Load(samples=1, rounds=1, requests=3))
    assert len(figures) == 2 * len(SHARES)
    assert min(figures.values()) > 0
