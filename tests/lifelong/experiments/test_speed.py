"""Every method trains and infers on the same samples, and speed is relative to DIN-L's."""

import json
from typing import Any

import msgspec
import pytest
import torch

from lifelong.experiments.speed import measure_speed
from models.config import RunConfig
from models.data.divisions import LastOfUser
from models.data.protocols import NextItem
from models.data.splits import Split, split_requests
from models.network import NetworkConfig
from models.networks import AnyConfig
from tests.lifelong.experiments.methods import METHODS
from tests.models.generated import planted_interactions


@pytest.fixture(scope="module")
def samples() -> Split:
    interactions = planted_interactions(users=20)
    protocol = NextItem(negatives=2, evaluation_negatives=9)
    return split_requests(interactions, protocol, LastOfUser())


def config_of(method: AnyConfig) -> RunConfig:
    own = msgspec.structs.replace(method, L=20 * (method.L > 0))
    return RunConfig(network=NetworkConfig(d=8, M=4), long_term=own)


@pytest.fixture(scope="module")
def measured(samples: Split) -> dict[str, Any]:
    methods = {name: config_of(method) for name, method in METHODS.items()}
    return measure_speed(methods, samples, batch=8, steps=1, rounds=2)


def test_all_methods_have_a_speed(measured: dict[str, Any]) -> None:
    assert list(measured["methods"]) == list(METHODS)
    for method in measured["methods"].values():
        assert method.keys() == {"training", "training_ratio", "inference", "inference_ratio"}
        assert min(method.values()) > 0


def test_din_l_is_the_measure(measured: dict[str, Any]) -> None:
    assert measured["methods"]["DIN-L"]["training_ratio"] == 1.0
    assert measured["methods"]["DIN-L"]["inference_ratio"] == 1.0


def test_methods_see_their_own_length(measured: dict[str, Any]) -> None:
    assert measured["L"] == {name: 20 * (name != "DIN") for name in METHODS}


def test_the_result_is_plain_json(measured: dict[str, Any]) -> None:
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


def test_without_din_l_there_is_no_ratio(samples: Split) -> None:
    encode = {"ENCODE": config_of(METHODS["ENCODE"])}
    measured = measure_speed(encode, samples, batch=4, steps=1, rounds=1)
    assert measured["methods"]["ENCODE"]["training"] > 0
    assert measured["methods"]["ENCODE"]["training_ratio"] is None


def test_random_numbers_elsewhere_stay_as_they_were(samples: Split) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measure_speed({"DIN-L": config_of(METHODS["DIN-L"])}, samples, batch=4, steps=1, rounds=1)
    assert torch.equal(torch.rand(1), expected)
