"""Every method trains and infers on the same samples, and speed is relative to DIN-L's."""

import json
from typing import Any

import pytest
import torch

from lifelong.experiments.speed import measure_speed
from models.config import RunConfig
from models.network import NetworkConfig
from models.networks.din import DINLConfig
from models.networks.encode import EncodeConfig
from models.protocols import LastOfUser, NextItem, Samples, Split, split_requests
from tests.lifelong.experiments.methods import METHODS
from tests.models.generated import planted_interactions


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return measure_speed(METHODS, length=20, batch=8, steps=1, rounds=2)


@pytest.fixture(scope="module")
def split() -> Split:
    return split_requests(
        planted_interactions(users=20),
        NextItem(negatives=2, evaluation_negatives=9),
        LastOfUser(),
        Samples(),
    )


def test_all_methods_have_a_speed(measured: dict[str, Any]) -> None:
    assert list(measured["methods"]) == list(METHODS)
    for method in measured["methods"].values():
        assert method.keys() == {"training", "training_ratio", "inference", "inference_ratio"}
        assert min(method.values()) > 0


def test_din_l_is_the_measure(measured: dict[str, Any]) -> None:
    assert measured["methods"]["DIN-L"]["training_ratio"] == 1.0
    assert measured["methods"]["DIN-L"]["inference_ratio"] == 1.0


def test_methods_see_the_length_asked_for(measured: dict[str, Any]) -> None:
    assert measured["L"] == {name: 20 * (name != "DIN") for name in METHODS}


def test_the_result_is_plain_json(measured: dict[str, Any]) -> None:
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


def test_without_din_l_there_is_no_ratio() -> None:
    measured = measure_speed({"ENCODE": EncodeConfig()}, length=12, batch=4, candidates=3, rounds=1)
    assert measured["methods"]["ENCODE"]["training"] > 0
    assert measured["methods"]["ENCODE"]["training_ratio"] is None


def test_a_data_set_s_own_samples_and_configuration(split: Split) -> None:
    run = RunConfig(network=NetworkConfig(d=8, M=4), long_term=DINLConfig(L=10))
    measured = measure_speed({"DIN-L": run}, split, batch=16, rounds=1)
    assert measured["L"] == {"DIN-L": 10}
    assert measured["methods"]["DIN-L"]["inference"] > 0


def test_random_numbers_elsewhere_stay_as_they_were() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measure_speed({"DIN-L": DINLConfig()}, length=8, batch=4, steps=1, rounds=1)
    assert torch.equal(torch.rand(1), expected)
