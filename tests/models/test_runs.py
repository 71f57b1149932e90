from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.errors import TrainingError
from models.config import RunConfig, TrainingConfig
from models.data.interactions import Interactions
from models.data.live import Live, split_live
from models.network import NetworkConfig
from models.networks.encode import EncodeConfig
from models.runs import INPUTS, RUN, VOCABULARY, WEIGHTS, TrainResult, load_run
from models.training import resolved, train
from tests.models.generated import planted_interactions

PROTOCOL = Live(negatives=8, validation=0.2, evaluated=50)
TINY = RunConfig(
    name="tiny",
    protocol=PROTOCOL,
    network=NetworkConfig(d=8, M=8, hidden=(16, 8)),
    long_term=EncodeConfig(m=3, K=4, L=64, beta=0.5),
    training=TrainingConfig(batch=32, threads=1),
)


@pytest.fixture(scope="module")
def interactions() -> Interactions:
    return planted_interactions(users=20, items=240, baskets=10)


@pytest.fixture(scope="module")
def result(interactions: Interactions, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    samples = split_live(interactions, PROTOCOL, TINY.seed)
    return train(TINY, samples, tmp_path_factory.mktemp("runs") / "tiny")


def copied(result: TrainResult, to: Path, damaged: str) -> Path:
    to.mkdir()
    for file in result.path.iterdir():
        data = file.read_bytes()
        (to / file.name).write_bytes(data[: len(data) // 2] if file.name == damaged else data)
    return to


def test_a_run_comes_back_from_its_directory(
    result: TrainResult, interactions: Interactions
) -> None:
    run = load_run(result.path)
    assert run.config == resolved(TINY, interactions)
    assert run.metrics == pytest.approx(result.metrics)
    assert run.vocabulary.item_ids == interactions.item_ids
    assert run.data["behaviors"] == len(interactions)
    assert (
        run.network.sampling_rate
        == split_live(interactions, PROTOCOL, TINY.seed).whole().sampling_rate
    )


def test_a_run_keeps_the_names_of_the_actions(interactions: Interactions, tmp_path: Path) -> None:
    acting = replace(
        interactions,
        actions=np.ones(len(interactions), np.uint8),
        action_names=["", "answered right", "answered wrong"],
    )
    result = train(TINY, split_live(acting, PROTOCOL, TINY.seed), tmp_path / "run")
    assert load_run(result.path).inputs.actions == ("answered right", "answered wrong")


@pytest.mark.parametrize("name", [WEIGHTS, INPUTS, RUN, VOCABULARY])
def test_a_damaged_run_is_refused_by_name(result: TrainResult, tmp_path: Path, name: str) -> None:
    damaged = copied(result, tmp_path / "run", name)
    with pytest.raises(TrainingError, match="cannot be read") as caught:
        load_run(damaged)
    assert str(damaged) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=rf"no finished training run \({RUN} is absent\)"):
        load_run(tmp_path)
