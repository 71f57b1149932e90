"""Requests go through the scorer's code and end in the CTRs of the network.

Of the methods those are taken that differ in how a request is made: with a sequence, with what is
known of its behaviors and the candidates' categories, with their rows, and those that the scorer
serves. An export takes a second or two, whatever the sizes.
"""

import json
from typing import Any

import pytest

from lifelong.experiments.serving import measure_serving
from models.config import RunConfig
from models.data.schema import Schema
from models.network import NetworkConfig
from models.networks.sdim import SDIMConfig
from models.networks.sim import SIMConfig
from tests.lifelong.experiments.methods import METHODS

CHOSEN = {
    "DIN-L": RunConfig(long_term=METHODS["DIN-L"]),
    "SIM hard": RunConfig(schema=Schema(behavior=("age",)), long_term=METHODS["SIM hard"]),
    "SIM cluster": RunConfig(long_term=SIMConfig(search="cluster", k=5)),
}
SERVED = ("ENCODE", "SDIM")
MEASURED = {
    **CHOSEN,
    "broken": RunConfig(long_term=SDIMConfig(m=5, tau=3)),
    "ENCODE": RunConfig(long_term=METHODS["ENCODE"]),
    "SDIM": RunConfig(long_term=SDIMConfig(m=6, tau=3)),
}


pytestmark = pytest.mark.long  # all methods are exported


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Slow: the exporter is."""
    return measure_serving(
        MEASURED,
        candidates=40,
        behaviors=60,
        items=200,
        rounds=3,
        network=NetworkConfig(d=8, M=4, hidden=(16, 8)),
    )


def test_every_method_is_there_in_the_order_given(measured: dict[str, Any]) -> None:
    assert list(measured["methods"]) == list(MEASURED)


@pytest.mark.parametrize("name", [*CHOSEN, *SERVED])
def test_a_method_has_its_times(measured: dict[str, Any], name: str) -> None:
    method = measured["methods"][name]
    assert len(method["ms_all"]) == 3
    assert min(method["ms_all"]) <= method["ms"] <= max(method["ms_all"])
    assert min(method["ms"], method["wall_ms"], method["ratio"]) > 0


@pytest.mark.parametrize("name", [*CHOSEN, *SERVED])
def test_requests_get_the_network_s_ctrs(measured: dict[str, Any], name: str) -> None:
    assert measured["methods"][name]["difference"] < 1e-5


def test_times_are_relative_to_din_l(measured: dict[str, Any]) -> None:
    assert measured["methods"]["DIN-L"]["ratio"] == 1.0


def test_what_is_served_is_timed_both_ways(measured: dict[str, Any]) -> None:
    for name in SERVED:
        method = measured["methods"][name]
        assert method["scorer"] == method["ms"]
        assert method["graph"] > 0
    assert "scorer" not in measured["methods"]["DIN-L"]


def test_states_are_as_big_as_what_is_read(measured: dict[str, Any]) -> None:
    names = ("DIN-L", "SIM hard", "ENCODE")
    sizes = {name: measured["methods"][name]["state_bytes"] for name in names}
    assert sizes == {
        "DIN-L": 4 * 60 * (8 + 1),
        "SIM hard": 4 * 60 * (8 + 1) + 8 * 60,  # embeddings, the mask, categories
        "ENCODE": 4 * 5 * (8 + 1),
    }


def test_a_method_that_fails_says_why_in_one_line(measured: dict[str, Any]) -> None:
    (error,) = measured["methods"]["broken"].values()
    assert "multiple of tau" in error
    assert "\n" not in error


def test_the_result_says_the_sizes_and_is_plain_json(measured: dict[str, Any]) -> None:
    assert [measured[name] for name in ("B", "L", "d", "M")] == [40, 60, 8, 4]
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
