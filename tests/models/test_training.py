from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.behaviors import item_key
from infra.errors import TrainingError
from models.bundle import Bundle
from models.data import SamplingConfig, Sequences, evaluation_requests
from models.evaluation import evaluate_offline, sequence_requests
from models.export import export
from models.interactions import Interactions
from models.training import (
    CHECKPOINT,
    ModelConfig,
    OptimizerConfig,
    Progress,
    TrainConfig,
    TrainResult,
    ValidationConfig,
    builder,
    load_run,
    predict,
    train,
)
from tests.models.generated import planted_interactions

TINY = TrainConfig(
    name="tiny",
    model=ModelConfig(d=8, m=3, K=4, L=64, M=8, beta=0.5, hidden=(16, 8)),
    sampling=SamplingConfig(negatives=8, behaviors_per_request=2),
    optimizer=OptimizerConfig(learning_rate=0.02, epochs=6, batch=32, patience=6, threads=1),
    validation=ValidationConfig(share=0.2, requests=200),
)


@pytest.fixture(scope="module")
def interactions() -> Interactions:
    return planted_interactions(users=40, items=120, baskets=14)


@pytest.fixture(scope="module")
def progress() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def result(
    interactions: Interactions,
    progress: list[Progress],
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainResult:
    return train(TINY, interactions, tmp_path_factory.mktemp("runs") / "tiny", progress.append)


@pytest.fixture(scope="module")
def bundle(result: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    export(result.path, path)
    return Bundle.load(path)


def test_the_loss_falls_and_the_planted_signal_is_found(result: TrainResult) -> None:
    """Users buy of one half of the items: who knows which half has an AUC of 0.75."""
    assert result.losses[-1] < result.losses[0]
    assert result.metrics["auc"] > 0.65
    assert result.metrics["auc"] > result.metrics["auc_popularity"] + 0.1


def test_progress_is_told(result: TrainResult, progress: list[Progress]) -> None:
    validated = [step for step in progress if step.validation is not None]
    assert len(validated) == 6
    assert {step.phase for step in progress} == {"fit", "refit"}
    last = progress[-1]
    assert (last.epoch, last.step) == (result.epochs, last.steps)


def test_a_run_comes_back_from_its_directory(
    result: TrainResult, interactions: Interactions
) -> None:
    run = load_run(result.path)
    assert run.config == TINY
    assert run.metrics == pytest.approx(result.metrics)
    assert run.vocabulary.item_ids == interactions.item_ids
    assert run.data["behaviors"] == len(interactions)


def test_the_bundle_ranks_as_the_network_does(
    result: TrainResult, bundle: Bundle, interactions: Interactions
) -> None:
    """Training's batches against plain numpy over the exported bundle: no skew."""
    sequences = Sequences.of(interactions)
    requests = evaluation_requests(
        interactions, sequences, len(interactions) // 2, 100, np.random.default_rng(0)
    )
    requests = requests._replace(bundle=np.full(len(requests.cut), len(interactions)))
    network = load_run(result.path).network
    by_network = predict(network, builder(TINY.model, interactions, sequences), requests)
    keys = np.array([item_key(item_id) for item_id in interactions.item_ids], np.uint64)
    by_bundle = evaluate_offline(bundle, sequence_requests(bundle, sequences, requests, keys)).ctrs
    assert len(requests.cut) > 20
    np.testing.assert_allclose(np.stack(by_bundle), by_network, atol=1e-5)


def test_the_bundle_carries_the_runs_record(result: TrainResult, bundle: Bundle) -> None:
    assert bundle.manifest.metrics == pytest.approx(result.metrics)
    assert bundle.manifest.name == "tiny"
    assert bundle.manifest.training["optimizer"]["epochs"] == 6
    assert bundle.popularity.sum() == pytest.approx(1e6, rel=1e-4)


def test_the_same_seed_gives_the_same_weights(interactions: Interactions, tmp_path: Path) -> None:
    config = replace(
        TINY,
        optimizer=replace(TINY.optimizer, epochs=1),
        validation=replace(TINY.validation, refit=False),
    )
    few = interactions.head(800)
    one = load_run(train(config, few, tmp_path / "one").path).network.state_dict()
    two = load_run(train(config, few, tmp_path / "two").path).network.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_torch_is_left_as_it_was_found(result: TrainResult) -> None:
    assert not torch.are_deterministic_algorithms_enabled()


def test_too_little_to_validate_on_is_said(interactions: Interactions, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no request to validate on") as caught:
        train(TINY, interactions.head(5), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_ends_the_run(interactions: Interactions, tmp_path: Path) -> None:
    config = replace(TINY, optimizer=replace(TINY.optimizer, learning_rate=1e30))
    with pytest.raises(TrainingError, match="not a number"):
        train(config, interactions, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_refused_by_name(result: TrainResult, tmp_path: Path) -> None:
    damaged = tmp_path / "run"
    damaged.mkdir()
    for file in result.path.iterdir():
        data = file.read_bytes()
        (damaged / file.name).write_bytes(data[:100] if file.name == CHECKPOINT else data)
    with pytest.raises(TrainingError, match="cannot be read") as caught:
        load_run(damaged)
    assert str(damaged) in str(caught.value)
