from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import DataError
from lifelong.experiments.quality import (
    CONVERGED,
    ONE_EPOCH,
    RUN,
    is_trained,
    measure_difference,
    measure_quality,
    train_run,
)
from lifelong.experiments.setups import find_setup
from lifelong.learning import read_samples
from models import runs
from models.config import RunConfig
from models.data.splits import Split
from models.measures.predictions import auc
from tests.infra.disks import full_disk
from tests.lifelong.experiments.conftest import TINY


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    path = tmp_path_factory.mktemp("setup") / "tiny.toml"
    path.write_text(TINY)
    tiny = find_setup(str(path), None, "small")
    return tiny.config(tiny.method_tree({"network": "avg-pooling"}) | {"seed": 0})


@pytest.fixture(scope="module")
def samples(config: RunConfig) -> Split:
    found, _ = read_samples(config)
    assert isinstance(found, Split)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cell that is measured has its run."""
    return tmp_path_factory.mktemp("runs") / "place"


@pytest.fixture(scope="module")
def measured(config: RunConfig, samples: Split, place: Path) -> dict[str, Any]:
    return measure_quality(config, samples, place)


def test_the_best_epoch_and_the_first_are_measured_on_the_test(
    samples: Split, place: Path, measured: dict[str, Any]
) -> None:
    labels = samples.test.labels
    assert measured["one_epoch"]["auc"] == auc(np.load(place / ONE_EPOCH), labels)
    assert measured["converged"]["auc"] == auc(np.load(place / CONVERGED), labels)
    assert measured["samples"]["test"] == len(samples.test.cut)
    best = max(measured["curve"], key=lambda epoch: epoch["validation"]["auc"])
    assert measured["curve"].index(best) + 1 == measured["epochs"]


def test_what_is_trained_is_not_trained_again(
    config: RunConfig, samples: Split, place: Path, measured: dict[str, Any]
) -> None:
    trained = (place / RUN / runs.RUN).stat().st_mtime_ns
    assert measure_quality(config, samples, place) == measured
    assert (place / RUN / runs.RUN).stat().st_mtime_ns == trained


def test_the_same_again_gives_the_same(
    config: RunConfig, samples: Split, measured: dict[str, Any], tmp_path: Path
) -> None:
    again = measure_quality(config, samples, tmp_path)
    assert again["converged"] == measured["converged"]


@pytest.mark.usefixtures("measured")
def test_predictions_without_room_are_told_and_made_again(
    config: RunConfig, samples: Split, place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / RUN, tmp_path / RUN)
    with pytest.raises(DataError, match=CONVERGED) as raised, full_disk():
        train_run(config, samples, tmp_path)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [RUN]
    train_run(config, samples, tmp_path)
    assert is_trained(tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / CONVERGED), np.load(place / CONVERGED))


def test_runs_are_compared_pairwise(samples: Split, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    labels = samples.test.labels
    for name, noise in (("good", 0.5), ("bad", 2.0)):
        for seed in range(2):
            place = tmp_path / f"{name}{seed}"
            place.mkdir()
            ctrs = labels + rng.normal(0, noise, labels.shape)
            np.save(place / CONVERGED, ctrs.astype(np.float32))
    good, bad = ([tmp_path / f"{name}{seed}" for seed in range(2)] for name in ("good", "bad"))
    found = measure_difference(good, bad, samples)
    assert found["auc"]["low"] > 0
    assert found["gauc"]["observed"] == -measure_difference(bad, good, samples)["gauc"]["observed"]
