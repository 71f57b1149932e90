from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lifelong.experiments.quality import CONVERGED, ONE_EPOCH, measure_difference, measure_quality
from lifelong.experiments.setups import Setup
from lifelong.learning import read_samples
from models import training
from models.config import RunConfig
from models.metrics import auc
from models.protocols import Split


@pytest.fixture
def config(tiny: Setup) -> RunConfig:
    return tiny.config(tiny.method_tree({"network": "avg-pooling"}) | {"seed": 0})


@pytest.fixture
def samples(config: RunConfig) -> Split:
    found, _ = read_samples(config)
    assert isinstance(found, Split)
    return found


def test_the_best_epoch_and_the_first_are_measured_on_the_test(
    config: RunConfig, samples: Split, tmp_path: Path
) -> None:
    result = measure_quality(config, samples, tmp_path)
    labels = samples.test.labels
    assert result["one_epoch"]["auc"] == auc(np.load(tmp_path / ONE_EPOCH), labels)
    assert result["converged"]["auc"] == auc(np.load(tmp_path / CONVERGED), labels)
    assert result["samples"]["test"] == len(samples.test.cut)
    best = max(result["curve"], key=lambda epoch: epoch["validation"]["auc"])
    assert result["curve"].index(best) + 1 == result["epochs"]


def test_what_is_trained_is_not_trained_again(
    config: RunConfig, samples: Split, tmp_path: Path
) -> None:
    first = measure_quality(config, samples, tmp_path)
    trained = (tmp_path / "run" / training.RUN).stat().st_mtime_ns
    assert measure_quality(config, samples, tmp_path) == first
    assert (tmp_path / "run" / training.RUN).stat().st_mtime_ns == trained


def test_the_same_again_gives_the_same(config: RunConfig, samples: Split, tmp_path: Path) -> None:
    first, second = (measure_quality(config, samples, tmp_path / name) for name in "ab")
    assert first["converged"] == second["converged"]


def test_runs_are_compared_pairwise(config: RunConfig, samples: Split, tmp_path: Path) -> None:
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
