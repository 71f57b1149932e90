"""Requests are answered alike, whichever way. Slow: every network is exported."""

import numpy as np
import pytest

from lifelong.bench.requests import SERVED, Shop
from lifelong.bench.score import PEERS, Load, Row, measure
from models.network import NetworkConfig


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop(items=200, network=NetworkConfig(d=8, M=4, hidden=(16, 8)))


def test_din_l_s_graph_gives_what_the_network_gives(shop: Shop) -> None:
    user, keys = shop.user(60), shop.candidates(20)
    ctrs = shop.din_l(user).answer(keys)
    np.testing.assert_allclose(ctrs, shop.din_l_in_torch(user).answer(keys), atol=1e-5)


@pytest.mark.parametrize("name", ["SDIM", "TWIN"])
def test_a_plain_graph_gives_what_is_served(shop: Shop, name: str) -> None:
    user, keys = shop.user(120, newer=0), shop.candidates(20)
    plain = {"SDIM": shop.plain_sdim, "TWIN": shop.plain_twin}[name](user)
    np.testing.assert_allclose(shop.served(name, user).answer(keys), plain.answer(keys), atol=1e-5)


@pytest.mark.parametrize("name", SERVED)
def test_newer_behaviors_count(shop: Shop, name: str) -> None:
    user, keys = shop.user(60), shop.candidates(20)
    fewer = shop.user(60, newer=0)
    fewer.behaviors[:] = user.behaviors[:60]
    ctrs = shop.served(name, user).answer(keys)
    assert np.abs(ctrs - shop.served(name, fewer).answer(keys)).max() > 1e-5


def test_all_is_measured_in_every_round_and_peers_once(shop: Shop) -> None:
    times = measure(shop, Load(rounds=2, users=1), lengths=(60, 80), sizes=(20, 10))
    assert len(times) == 4 * (len(SERVED) + 2) + len(PEERS)
    assert all(Row(peer, 60, 20) in times for peer in PEERS)
    for taken in times.values():
        assert len(taken.whole) == 2
        assert min(taken.whole) > 0
