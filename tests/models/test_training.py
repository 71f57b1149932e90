from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from infra.behaviors import item_key
from infra.errors import TrainingError
from models.bundle import Bundle
from models.config import RunConfig, TrainingConfig, read_config
from models.data.divisions import LastOfUser
from models.data.interactions import Interactions
from models.data.live import Live, LiveSplit, evaluation_requests, split_live
from models.data.protocols import Rated
from models.data.requests import Sequences
from models.data.splits import Split, split_requests
from models.export import export
from models.network import NetworkConfig
from models.networks.din import DINLConfig
from models.networks.encode import EncodeConfig
from models.networks.sim import SIMConfig
from models.prediction import make_gatherer, predict
from models.reference.serving import score_requests, sequence_requests
from models.runs import CHECKPOINT, RUN, TrainResult, load_run
from models.tracking import TrainingProgress
from models.training import train
from tests.conftest import require
from tests.models.generated import numbered, planted_interactions

TINY = RunConfig(
    name="tiny",
    protocol=Live(negatives=8, behaviors_per_request=2, validation=0.2, evaluated=200),
    network=NetworkConfig(d=8, M=8, hidden=(16, 8)),
    long_term=EncodeConfig(m=3, K=4, L=64, beta=0.5),
    training=TrainingConfig(learning_rate=0.02, epochs=6, batch=32, patience=6, threads=1),
)


def changed(config: RunConfig, **training: object) -> RunConfig:
    return msgspec.structs.replace(
        config, training=msgspec.structs.replace(config.training, **training)
    )


def live(interactions: Interactions, *, refit: bool = False) -> LiveSplit:
    assert isinstance(TINY.protocol, Live)
    return split_live(interactions, msgspec.structs.replace(TINY.protocol, refit=refit), TINY.seed)


@pytest.fixture(scope="module")
def interactions() -> Interactions:
    return planted_interactions(users=40, items=120, baskets=14)


@pytest.fixture(scope="module")
def progress() -> list[TrainingProgress]:
    return []


@pytest.fixture(scope="module")
def result(
    interactions: Interactions,
    progress: list[TrainingProgress],
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainResult:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return train(TINY, live(interactions, refit=True), out, progress.append)


@pytest.fixture(scope="module")
def bundle(result: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    export(result.path, path)
    return Bundle.load(path)


def test_the_loss_falls_and_the_planted_signal_is_found(result: TrainResult) -> None:
    """Users buy of one half of the items: who knows which half has an AUC of 0.75."""
    assert result.curve[-1].loss < result.curve[0].loss
    assert result.metrics["auc"] > 0.65


def test_progress_is_told(result: TrainResult, progress: list[TrainingProgress]) -> None:
    validated = [step for step in progress if step.validation is not None]
    assert len(validated) == 6
    assert {step.phase for step in progress} == {"fit", "refit"}
    last = progress[-1]
    assert (last.epoch, last.step) == (result.epochs, last.steps)


def test_the_bundle_ranks_as_the_network_does(
    result: TrainResult, bundle: Bundle, interactions: Interactions
) -> None:
    """Training's batches against plain numpy over the exported bundle: no skew."""
    sequences = Sequences.of(interactions)
    requests = evaluation_requests(
        interactions, sequences, len(interactions) // 2, 100, np.random.default_rng(0)
    )
    requests = requests._replace(bundle=np.full(len(requests.cut), len(interactions)))
    run = load_run(result.path)
    by_network = predict(run.network, make_gatherer(TINY, live(interactions), run.inputs), requests)
    keys = np.array([item_key(item_id) for item_id in interactions.item_ids], np.uint64)
    offline = sequence_requests(bundle, sequences, requests, keys)
    by_bundle = np.stack(list(score_requests(bundle, offline)))
    assert len(requests.cut) > 20
    np.testing.assert_allclose(by_bundle, by_network, atol=1e-5)


def test_the_bundle_carries_the_runs_record(result: TrainResult, bundle: Bundle) -> None:
    assert bundle.manifest.metrics == pytest.approx(result.metrics)
    assert bundle.manifest.name == "tiny"
    assert bundle.manifest.training["training"]["epochs"] == 6
    assert bundle.popularity.sum() == pytest.approx(1e6, rel=1e-4)
    rate = load_run(result.path).network.sampling_rate
    assert 0 < rate < 0.5
    assert bundle.manifest.sampling_rate == rate


QUICK = changed(TINY, epochs=2, batch=16, patience=0, checkpoint_s=0.0)


@pytest.fixture(scope="module")
def few(interactions: Interactions) -> Interactions:
    return interactions.head(800)


@pytest.fixture(scope="module")
def quick(few: Interactions, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Fifty steps, twenty-five an epoch, and as many again of the second pass."""
    return train(QUICK, live(few, refit=True), tmp_path_factory.mktemp("runs") / "quick")


def weights_of(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_run(result.path).network.state_dict()


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_the_same_seed_gives_the_same_weights(
    few: Interactions, quick: TrainResult, tmp_path: Path
) -> None:
    again = train(QUICK, live(few, refit=True), tmp_path / "again")
    assert_same(weights_of(quick), weights_of(again))
    assert again.metrics == quick.metrics


def test_another_seed_gives_others(few: Interactions, quick: TrainResult, tmp_path: Path) -> None:
    config = msgspec.structs.replace(changed(QUICK, epochs=1), seed=1)
    other = weights_of(train(config, live(few), tmp_path / "other"))
    assert not torch.equal(other["embedding.weight"], weights_of(quick)["embedding.weight"])


class Stop(Exception):
    """Ends a run as a signal would: at any moment, and nothing is tidied up."""


def interrupt(
    config: RunConfig, samples: LiveSplit, out: Path, phase: str, epoch: int, step: int
) -> None:
    """Train until a report of this step or of a later one."""

    def report(at: TrainingProgress) -> None:
        if at.phase == phase and (at.epoch, at.step) >= (epoch, step):
            raise Stop

    with pytest.raises(Stop):
        train(config, samples, out, report)
    assert (out / CHECKPOINT).exists()
    assert not (out / RUN).exists()


@pytest.mark.parametrize(
    ("phase", "epoch", "step"),
    [("fit", 1, 20), ("fit", 2, 20), ("refit", 1, 20)],
    ids=["first epoch", "second epoch", "second pass"],
)
def test_an_interrupted_run_goes_on_to_the_same_weights(
    few: Interactions, quick: TrainResult, tmp_path: Path, phase: str, epoch: int, step: int
) -> None:
    samples, out = live(few, refit=True), tmp_path / "run"
    interrupt(QUICK, samples, out, phase, epoch, step)
    reports: list[TrainingProgress] = []
    resumed = train(QUICK, samples, out, reports.append, resume=True)
    assert (reports[0].phase, reports[0].epoch) == (phase, epoch)
    assert_same(weights_of(quick), weights_of(resumed))
    assert resumed.metrics == quick.metrics
    assert [each.loss for each in resumed.curve] == [each.loss for each in quick.curve]
    assert not (out / CHECKPOINT).exists()


def test_what_a_network_draws_by_itself_is_drawn_alike_after_a_resume(
    few: Interactions, tmp_path: Path
) -> None:
    """Dropout draws from torch's own generator, SIM clusters the items at each epoch's start."""
    config = msgspec.structs.replace(
        changed(QUICK, epochs=1),
        network=NetworkConfig(d=8, M=8, hidden=(16, 8), dropout=0.3),
        long_term=SIMConfig(search="cluster", k=5),
    )
    whole = weights_of(train(config, live(few), tmp_path / "whole"))
    interrupt(config, live(few), tmp_path / "run", "fit", 1, 20)
    resumed = train(config, live(few), tmp_path / "run", resume=True)
    assert_same(whole, weights_of(resumed))


def test_without_a_checkpoint_a_resumed_run_starts(
    few: Interactions, quick: TrainResult, tmp_path: Path
) -> None:
    config = changed(QUICK, epochs=1)
    result = train(config, live(few), tmp_path / "new", resume=True)
    assert result.curve[0].loss == quick.curve[0].loss


@pytest.fixture
def stopped(few: Interactions, tmp_path: Path) -> Path:
    """A run that was interrupted."""
    interrupt(changed(QUICK, checkpoint_s=60.0), live(few), tmp_path / "run", "fit", 2, 20)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (changed(QUICK, learning_rate=0.5), "training.learning_rate"),
        (msgspec.structs.replace(QUICK, seed=5), "seed"),
        (
            msgspec.structs.replace(QUICK, long_term=EncodeConfig(m=3, K=9, L=64, beta=0.5)),
            "long_term.K",
        ),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(
    few: Interactions, stopped: Path, config: RunConfig, key: str
) -> None:
    message = rf"checkpoint\.pt is of another configuration \({key} differs\)"
    with pytest.raises(TrainingError, match=message) as caught:
        train(config, live(few), stopped, resume=True)
    assert "\n" not in str(caught.value)
    assert (stopped / CHECKPOINT).exists()


def test_a_checkpoint_of_other_data_is_refused(stopped: Path) -> None:
    other = planted_interactions(users=30, items=160)
    with pytest.raises(TrainingError, match="is of other data"):
        train(changed(QUICK, checkpoint_s=60.0), live(other), stopped, resume=True)


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_damaged_checkpoint_is_named(few: Interactions, stopped: Path, kept: int) -> None:
    checkpoint = stopped / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt cannot be read.*delete it") as caught:
        train(QUICK, live(few), stopped, resume=True)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_checkpoint_before(stopped: Path, few: Interactions) -> None:
    """Where the new checkpoint is written beside the old one, there is no room: /dev/full."""
    require(Path("/dev/full").exists(), "/dev/full")
    before = (stopped / CHECKPOINT).read_bytes()
    (stopped / f"{CHECKPOINT}.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"cannot be written.*go on with --resume") as caught:
        train(QUICK, live(few), stopped, resume=True)
    assert "\n" not in str(caught.value)
    assert (stopped / CHECKPOINT).read_bytes() == before
    assert [file.name for file in stopped.iterdir()] == [CHECKPOINT]


def test_a_place_that_cannot_be_written_to_is_named(few: Interactions, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"file/run/checkpoint\.pt cannot be written"):
        train(changed(QUICK, epochs=1), live(few), tmp_path / "file" / "run")


def test_a_run_stops_when_validation_no_longer_improves(few: Interactions, tmp_path: Path) -> None:
    """A learning rate this small changes no rank, so the second epoch is no better."""
    config = changed(QUICK, epochs=5, patience=2, learning_rate=1e-12)
    result = train(config, live(few), tmp_path / "run")
    assert len(result.curve) == 3
    assert result.epochs == 1


def test_the_second_pass_learns_from_everything(few: Interactions, tmp_path: Path) -> None:
    config = changed(QUICK, epochs=1)
    steps: dict[str, int] = {}
    result = train(
        config,
        live(few, refit=True),
        tmp_path / "run",
        lambda at: steps.update({at.phase: at.steps}),
    )
    assert steps["refit"] > steps["fit"]
    assert load_run(result.path).data["behaviors"] == len(few)


def rated(interactions: Interactions) -> Split:
    values = (interactions.items % 2 * 5).astype(np.float32)
    return split_requests(replace(interactions, values=values), Rated(), LastOfUser(2, 2))


def test_a_test_part_is_measured_beside_validation(few: Interactions, tmp_path: Path) -> None:
    result = train(changed(QUICK, epochs=1), rated(few), tmp_path / "run")
    assert {"auc", "log_loss", "test_auc", "test_log_loss"} <= result.metrics.keys()
    assert "hit10" not in result.metrics


@pytest.mark.parametrize("part", ["training", "validation"])
def test_labels_of_one_class_are_refused(few: Interactions, tmp_path: Path, part: str) -> None:
    split = rated(few)
    name = "train" if part == "training" else part
    labels = np.zeros_like(getattr(split, name).labels)
    split = replace(split, **{name: getattr(split, name)._replace(labels=labels)})
    with pytest.raises(TrainingError, match=f"every label of the {part} part is 0") as caught:
        train(changed(QUICK, epochs=1), split, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_no_number_ends_the_run(few: Interactions, tmp_path: Path) -> None:
    config = changed(QUICK, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"not a number in epoch 1, step 2; lower") as caught:
        train(config, live(few), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / RUN).exists()


def test_weights_that_the_last_step_broke_end_the_run(few: Interactions, tmp_path: Path) -> None:
    config = changed(QUICK, learning_rate=1e30, batch=100_000)
    with pytest.raises(TrainingError, match="a CTR is not a number in epoch 1, step 1"):
        train(config, live(few), tmp_path / "run")


def train_its_part(config: bytes, few: Interactions, out: Path) -> None:
    """What each of several processes does; the launcher has told it which one it is."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    train(read_config(msgspec.json.decode(config)), live(few), out)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(
    few: Interactions, warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: two processes find each other. `elastic_launch` is what ``torchrun`` itself calls."""
    config = msgspec.structs.replace(
        changed(QUICK, epochs=1, batch=33), long_term=DINLConfig(L=64), seed=3
    )
    alone = train(config, live(few), tmp_path / "alone")
    launched = elastic_launch(
        LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=2,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            start_method=warm.get_start_method(),
        ),
        train_its_part,
    )
    # In a thread, where it leaves the signal handlers of the tests alone.
    with ThreadPoolExecutor(1) as launcher:
        launcher.submit(launched, msgspec.json.encode(config), few, tmp_path / "both").result()
    both = load_run(tmp_path / "both")
    for name, value in weights_of(alone).items():
        torch.testing.assert_close(both.network.state_dict()[name], value, atol=1e-5, rtol=0)
    assert both.curve[0].loss == pytest.approx(alone.curve[0].loss, abs=1e-6)


def answered(users: int = 200, items: int = 150, each: int = 50) -> Interactions:
    """Students who answer questions right by how able they are and how hard the question is."""
    rng = np.random.default_rng(1)
    able, hard = rng.normal(0, 0.8, users), rng.normal(0, 0.8, items)
    who, what = np.tile(np.arange(users), each), rng.integers(0, items, users * each)
    right = rng.random(users * each) < 1 / (1 + np.exp(hard[what] - able[who]))
    return replace(
        numbered(who, what, 60 * np.arange(users * each)),
        values=right.astype(np.float32),
        actions=np.where(right, 1, 2).astype(np.uint8),
        action_names=["", "right", "wrong"],
    )


def test_rates_and_actions_tell_what_embeddings_learn_slowly(tmp_path: Path) -> None:
    """Each network sees the same behaviors; without rates and actions it cannot tell right ones."""
    protocol = {"kind": "rated", "threshold": 1.0}
    split = split_requests(answered(), Rated(threshold=1.0), LastOfUser(5, 5))
    aucs = {}
    schemas: dict[str, dict[str, Any]] = {"none": {"positive": [], "behavior": []}, "both": {}}
    for name, schema in schemas.items():
        config = read_config(
            {
                "protocol": protocol,
                "schema": schema,
                "network": {"d": 8, "M": 8, "hidden": [16, 8]},
                "long_term": {"network": "din"},
                "training": {"learning_rate": 0.01, "batch": 64, "epochs": 2, "threads": 1},
            }
        )
        aucs[name] = train(config, split, tmp_path / name).metrics["test_auc"]
    assert aucs["both"] > aucs["none"] + 0.02
