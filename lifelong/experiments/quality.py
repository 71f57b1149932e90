"""What a configuration is worth: trained to convergence, and measured on the test.

Early stopping watches validation; the test is looked at after one epoch, which is how the papers
train, and with the weights of the best epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from infra.arrays import F32
from infra.errors import DataError
from infra.files import reason, replacing
from lifelong.evaluate.run import RESAMPLINGS, differences
from models import devices, prediction, runs, training
from models.config import RunConfig
from models.data.batches import Gatherer
from models.data.splits import Split
from models.measures.quality import measure
from models.network import Network

RUN: Final = "run"
ONE_EPOCH: Final = "one-epoch.npy"
CONVERGED: Final = "converged.npy"
"""Files of CTRs f32[R, B] of the test's requests, at the two moments."""

RESAMPLED: Final = 100_000_000
"""Predictions that the bootstrap ranks in all, about: half a minute."""


def is_trained(place: Path) -> bool:
    """Whether a run, and its predictions, are there."""
    return (place / RUN / runs.RUN).exists() and (place / CONVERGED).exists()


def train_run(config: RunConfig, samples: Split, place: Path) -> Path:
    """Train, unless that has been done, and keep the predictions; the run's directory.

    Raises:
        TrainingError: it cannot be trained, or what came of it cannot be written.
    """
    run = place / RUN
    if is_trained(place):
        return run

    def look(number: int, network: Network, gatherer: Gatherer) -> None:
        if number == 1:
            _keep(place / ONE_EPOCH, prediction.predict(network, gatherer, samples.test))

    if not (run / runs.RUN).exists():
        without = replace(samples, test=samples.test.part(slice(0)))
        training.train(config, without, run, resume=True, on_epoch=look)
    trained = runs.load_run(run)
    network = trained.network.to(devices.pick_device(config))
    gatherer = prediction.make_gatherer(config, samples, trained.inputs)
    _keep(place / CONVERGED, prediction.predict(network, gatherer, samples.test))
    return run


def measure_quality(config: RunConfig, samples: Split, place: Path) -> dict[str, Any]:
    """Train and measure one configuration: what a quality cell holds.

    Returns:
        "samples": their numbers; "epochs": the best, from 1; "curve": of each epoch training loss
        and validation measures; "one_epoch" and "converged": measures of the test
        (`models.measures.quality.Measures`), by name.
    """
    trained = runs.load_run(train_run(config, samples, place))
    users = samples.users(samples.test)
    return {
        "samples": {
            "users": len(samples.interactions.user_ids),
            "items": int(samples.known.sum()),
            "training": len(samples.train.cut),
            "validation": len(samples.validation.cut),
            "test": len(samples.test.cut),
            "behaviors_seen": round(float(samples.history(samples.test).mean()), 1),
        },
        "epochs": trained.epochs,
        "curve": msgspec.to_builtins(trained.curve),
        "one_epoch": measure(np.load(place / ONE_EPOCH), samples.test, users).named(),
        "converged": measure(np.load(place / CONVERGED), samples.test, users).named(),
    }


def measure_difference(
    first: Sequence[Path], second: Sequence[Path], samples: Split
) -> dict[str, Any]:
    """How much better one configuration is than another: test AUC and GAUC, users resampled.

    Args:
        first: places of the one configuration's runs, a seed each.
        second: places of the other's, of the same seeds.

    Returns:
        Per measure a `models.measures.predictions.Difference`, of the mean over seeds, as plain
        values.
    """
    requests = samples.test
    pairs = zip(first, second, strict=True)
    ours, theirs = zip(
        *((np.load(one / CONVERGED), np.load(other / CONVERGED)) for one, other in pairs),
        strict=True,
    )
    size = 2 * len(ours) * requests.labels.size
    replicates = int(np.clip(RESAMPLED // size, 200, RESAMPLINGS))
    return differences(np.stack(ours), np.stack(theirs), requests, samples, replicates)


def _keep(path: Path, ctrs: F32) -> None:
    try:
        with replacing(path) as file:
            np.save(file, ctrs)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({reason(error)}); see to that and start again: finished"
            " cells are kept"
        ) from error
