"""Where metrics of a run go beside the console: TensorBoard, MLflow; loaded when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from infra.errors import TrainingError


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training run stands; told every few steps and after each epoch."""

    phase: str
    """Which pass it is in: "fit" or "refit"."""
    epoch: int
    """Epoch under way, from 1."""
    epochs: int
    step: int
    """Steps of this epoch that are done."""
    steps: int
    loss: float
    """Mean cross-entropy of this epoch so far, nats."""
    auxiliary: float
    """Mean of the long-term module's own loss in this epoch so far."""
    validation: dict[str, float] | None = None
    """Measures of the validation part (`models.prediction.measure_network`), after an epoch."""


class Tracker(Protocol):
    """Who is told of a run's progress."""

    def report(self, progress: TrainingProgress) -> None:
        """Note a report of progress: losses every few steps, and validation after an epoch."""

    def close(self) -> None:
        """Write what is not written yet."""


class TensorBoard:
    """A tracker that writes event files into a directory, under ``tensorboard``."""

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError(
                'training.log names "tensorboard", which is not installed; pip install tensorboard'
            ) from error
        self._writer: Any = SummaryWriter(str(directory / "tensorboard"))

    def report(self, progress: TrainingProgress) -> None:
        """Note a report of progress."""
        step = (progress.epoch - 1) * progress.steps + progress.step
        for name, value in _values(progress).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is not written yet."""
        self._writer.close()


class MLflow:
    """A tracker that logs to the MLflow server, or directory, that its environment names."""

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        try:
            import mlflow  # type: ignore[import-not-found]
        except ImportError as error:
            raise TrainingError(
                'training.log names "mlflow", which is not installed; pip install mlflow'
            ) from error
        self._mlflow: Any = mlflow
        mlflow.start_run(run_name=name)
        mlflow.log_params(parameters)

    def report(self, progress: TrainingProgress) -> None:
        """Note a report of progress."""
        step = (progress.epoch - 1) * progress.steps + progress.step
        self._mlflow.log_metrics(_values(progress), step=step)

    def close(self) -> None:
        """Write what is not written yet."""
        self._mlflow.end_run()


def _values(progress: TrainingProgress) -> dict[str, float]:
    prefix = progress.phase
    values = {f"{prefix}/loss": progress.loss, f"{prefix}/auxiliary": progress.auxiliary}
    for name, value in (progress.validation or {}).items():
        values[f"{prefix}/validation_{name}"] = value
    return values
