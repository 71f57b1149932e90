"""Training: cross-entropy (ENCODE, Eq. 2) and, weighted, the long-term module's own loss.

A run learns on the training part, watches validation after each epoch, keeps the best and stops
when it no longer improves. Everything random follows from the seed, the epoch and the step, so a
run that was interrupted goes on from its checkpoint to the same numbers. Under ``torchrun`` each
process takes its share of every batch; the gradients are those of the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from infra.errors import TrainingError
from models.config import RunConfig
from models.data.batches import Batch, Gatherer, prefetch
from models.data.interactions import Interactions
from models.data.live import LiveSplit
from models.data.protocols import Rated
from models.data.requests import Requests
from models.data.schema import Inputs
from models.data.splits import AnySplit
from models.devices import determinism, process_count, process_rank, sum_over_processes
from models.network import Network
from models.prediction import make_gatherer, make_network, measure_network
from models.runs import CHECKPOINT, Epoch, TrainResult, read_checkpoint, save_run, write_checkpoint
from models.tracking import Tracker, TrainingProgress

REPORT_EVERY: Final = 20
"""Steps between reports of progress."""

OnProgress = Callable[[TrainingProgress], None]

OnEpoch = Callable[[int, Network, Gatherer], None]
"""Called after each epoch of the first pass, from 1, with the network as it then is."""


def train(
    config: RunConfig,
    samples: AnySplit,
    out: Path,
    on_progress: OnProgress = lambda _: None,
    *,
    data: dict[str, Any] | None = None,
    baselines: dict[str, float] | None = None,
    resume: bool = False,
    trackers: tuple[Tracker, ...] = (),
    on_epoch: OnEpoch = lambda _number, _network, _gatherer: None,
) -> TrainResult:
    """Train a network and leave it in ``out``.

    Args:
        samples: what to learn from and to watch.
        data: what to say in the bundle about where they came from.
        baselines: measures of other rankings, to be kept beside the network's own.
        resume: go on from the checkpoint in ``out``; without one, start.
        trackers: told of every report and epoch.
        on_epoch: may look at the network after each epoch, and must leave it as it is.

    Raises:
        TrainingError: the run cannot start or go on.
    """
    began = time.monotonic()
    _check_classes(samples.validation, "validation")
    config = resolved(config, samples.interactions)
    with determinism(config) as device:
        checkpoint = out / CHECKPOINT
        saved = read_checkpoint(checkpoint, config, device) if resume else None
        fitted = msgspec.convert(saved["fitted"], _Fitted | None) if saved else None
        known: AnySplit = samples
        last = None
        if fitted is None:
            last = _Pass(config, samples, checkpoint, "fit", device, on_progress, trackers)
            if saved is not None:
                last.resume(saved)
            fitted = last.fit(on_epoch)
            saved = None
        if isinstance(samples, LiveSplit) and samples.config.refit:
            known = samples.whole()
            last = _Pass(config, known, checkpoint, "refit", device, on_progress, trackers, fitted)
            if saved is not None:
                last.resume(saved)
            last.run(fitted.best, watch=False)
        assert last is not None  # a pass that is done is only left for one that is not
        result = TrainResult(
            out, fitted.metrics, fitted.best, fitted.curve, time.monotonic() - began
        )
        if process_rank() == 0:
            save_run(result, config, last.network, known, data or {}, baselines or {})
    return result


def resolved(config: RunConfig, interactions: Interactions) -> RunConfig:
    """The configuration with a schema as the data have it.

    Raises:
        TrainingError: see `models.data.schema.Schema.resolved`.
    """
    threshold = config.protocol.threshold if isinstance(config.protocol, Rated) else None
    schema = config.schema.resolved(interactions, threshold)
    return msgspec.structs.replace(config, schema=schema)


def batch_loss(
    network: nn.Module, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Summed cross-entropy (Eq. 2), the weights' sum, and the module's own loss (0 without one)."""
    logits, auxiliary = network(batch, generator)
    entropy = functional.binary_cross_entropy_with_logits(
        logits.float(), batch.labels, reduction="none"
    )
    if auxiliary is None:
        auxiliary = entropy.new_zeros(())
    return (entropy * batch.weights).sum(), batch.weights.sum(), auxiliary


@dataclass
class _State:
    """Where a pass stands; with the weights, all that its going on depends on."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done of the epoch after those."""
    total: float = 0.0
    auxiliary: float = 0.0
    seconds: float = 0.0
    best: int = 0
    curve: list[Epoch] = field(default_factory=list)


class _Fitted(msgspec.Struct, frozen=True):
    """What the first pass found."""

    metrics: dict[str, float]
    best: int
    curve: list[Epoch]


class _Pass:
    """One pass of learning over the samples; ``fitted`` is what the pass before it found."""

    def __init__(
        self,
        config: RunConfig,
        samples: AnySplit,
        checkpoint: Path,
        phase: str,
        device: torch.device,
        on_progress: OnProgress,
        trackers: tuple[Tracker, ...],
        fitted: _Fitted | None = None,
    ) -> None:
        self.config, self.samples, self.checkpoint = config, samples, checkpoint
        self.phase, self.device, self.fitted = phase, device, fitted
        self.on_progress, self.trackers = on_progress, trackers
        self.inputs = Inputs.of(samples.interactions, config.schema, samples.n_training)
        self.gatherer = make_gatherer(config, samples, self.inputs)
        self.network = make_network(config, self.inputs).to(device)
        self.network.sampling_rate = samples.sampling_rate
        self.learner = _learner(config, self.network, device)
        self.optimizer = _optimizer(config, self.network)
        self.generator = torch.Generator()
        self.state = _State()
        self.epochs = config.training.epochs
        """Epochs that `run` goes through, at most."""
        self.steps = 0
        """Steps of the epoch at hand."""
        self.best_weights: dict[str, Tensor] = {}
        self._saved = time.monotonic()

    def fit(self, on_epoch: OnEpoch) -> _Fitted:
        """Learn and watch, take the weights of the best epoch, and measure them."""
        state, samples = self.state, self.samples
        self.run(self.config.training.epochs, watch=True, on_epoch=on_epoch)
        self.network.load_state_dict(self.best_weights)
        metrics = dict(state.curve[state.best - 1].validation)
        if samples.test is not None and len(samples.test.cut):
            measured = measure_network(self.network, self.gatherer, samples, samples.test)
            metrics |= {f"test_{name}": value for name, value in measured.items()}
        return _Fitted(metrics, state.best, state.curve)

    def run(self, epochs: int, *, watch: bool, on_epoch: OnEpoch | None = None) -> None:
        """Learn for so many epochs; with ``watch``, validate after each and stop in time."""
        state, patience = self.state, self.config.training.patience
        self.epochs = epochs
        while state.epoch < epochs and not (
            watch and state.epoch - state.best >= patience > 0 and state.best
        ):
            self._epoch(state.epoch)
            state.epoch, state.step = state.epoch + 1, 0
            if watch:
                self._validate()
            if on_epoch is not None:
                on_epoch(state.epoch, self.network, self.gatherer)
            self._save()

    def _epoch(self, number: int) -> None:
        training, state = self.config.training, self.state
        requests = self.samples.epoch(number)
        R = len(requests.cut)
        steps = self.steps = -(-R // training.batch)
        if not steps:
            raise TrainingError("there is no request to learn from; give more behaviors")
        self.network.train()
        if not state.step:
            _check_classes(requests, "training")
            state.total = state.auxiliary = state.seconds = 0.0
            # What it keeps is in the checkpoint, so that it is not made anew in mid-epoch.
            self.network.long.on_epoch(self.network.item_table().detach())
        began, before = time.monotonic(), state.seconds
        with closing(prefetch(self._batches(requests, state.step))) as batches:
            for batch in batches:
                _set_rate(self.optimizer, self.config, number + state.step / steps)
                self._step(batch.to(self.device), number, steps)
                state.seconds = before + time.monotonic() - began
                if time.monotonic() - self._saved > training.checkpoint_s and state.step < steps:
                    self._save()

    def _batches(self, requests: Requests, first: int) -> Iterator[Batch]:
        """This process's share of each batch, from step ``first`` on."""
        size, rank, processes = self.config.training.batch, process_rank(), process_count()
        for begin in range(first * size, len(requests.cut), size):
            rows = np.arange(begin, min(begin + size, len(requests.cut)))
            # Every process takes part in every step, if only with a request that does not count.
            mine = rows[rank::processes]
            part = requests.part(mine if len(mine) else rows[:1])
            yield self.gatherer(
                part if len(mine) else part._replace(weights=np.zeros_like(part.weights))
            )

    def _step(self, batch: Batch, number: int, steps: int) -> None:
        training, state = self.config.training, self.state
        self._seed(number)
        with _precision(self.config, self.device):
            entropy, weight, auxiliary = batch_loss(self.learner, batch, self.generator)
        whole = sum_over_processes(
            torch.stack([entropy.detach(), weight, auxiliary.detach()]).double()
        )
        # DDP averages gradients over processes: times their number the sum is the whole batch's.
        share = entropy * process_count() / whole[1].clamp(min=1.0).float()
        self.optimizer.zero_grad(set_to_none=True)
        (share + training.auxiliary_weight * auxiliary).backward()  # type: ignore[no-untyped-call]
        loss, own = float(whole[0] / whole[1].clamp(min=1.0)), float(whole[2]) / process_count()
        if not np.isfinite(loss + own):
            raise _not_a_number("the loss", number, state.step + 1)
        self.optimizer.step()
        state.step += 1
        state.total += loss
        state.auxiliary += own
        if state.step % REPORT_EVERY == 0 or state.step == steps:
            self._report(number, steps)

    def _seed(self, number: int) -> None:
        """Seed a step's draws by where it stands, and by nothing that came before it."""
        place = [self.config.seed, 3, number, self.state.step, process_rank()]
        seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)
        self.generator.manual_seed(seed)
        torch.manual_seed(seed)  # dropout's, on every device

    def _report(self, number: int, steps: int, validation: dict[str, float] | None = None) -> None:
        state = self.state
        done = max(state.step, 1) if validation is None else steps
        progress = TrainingProgress(
            phase=self.phase,
            epoch=number + 1,
            epochs=self.epochs,
            step=done,
            steps=steps,
            loss=state.total / done,
            auxiliary=state.auxiliary / done,
            validation=validation,
        )
        if process_rank() == 0:
            self.on_progress(progress)
            for tracker in self.trackers:
                tracker.report(progress)

    def _validate(self) -> None:
        state, number = self.state, self.state.epoch - 1
        steps = self.steps
        validation = measure_network(
            self.network, self.gatherer, self.samples, self.samples.validation
        )
        if "auc" not in validation:  # the last step broke what the loss before it did not show
            raise _not_a_number("a CTR", number, steps)
        epoch = Epoch(state.total / steps, state.auxiliary / steps, validation, state.seconds)
        state.curve.append(epoch)
        if not state.best or validation["auc"] > state.curve[state.best - 1].validation["auc"]:
            state.best = state.epoch
            self.best_weights = {
                key: value.clone() for key, value in self.network.state_dict().items()
            }
        self._report(number, steps, validation)

    def _save(self) -> None:
        """Write the checkpoint whole, or leave the one before."""
        self._saved = time.monotonic()
        if process_rank():
            return
        saved = {
            "config": msgspec.to_builtins(self.config),
            "fitted": msgspec.to_builtins(self.fitted),
            "state": msgspec.to_builtins(self.state),
            "network": self.network.state_dict(),
            "best": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
        }
        write_checkpoint(self.checkpoint, saved)

    def resume(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            TrainingError: it is of other data.
        """
        try:
            self.network.load_state_dict(saved["network"])
        except RuntimeError as error:
            raise TrainingError(
                f"{self.checkpoint} is of other data: its tables have other sizes; "
                "use those, or another --out"
            ) from error
        self.optimizer.load_state_dict(saved["optimizer"])
        self.best_weights = saved["best"]
        self.state = msgspec.convert(saved["state"], _State)


def _check_classes(requests: Requests, part: str) -> None:
    counted = requests.labels[requests.weights > 0]
    if len(counted) and counted.min() == counted.max():
        raise TrainingError(
            f"every label of the {part} part is {counted[0]:g}, which leaves nothing to tell "
            "apart; give more behaviors, or change [protocol] or [split]"
        )


def _not_a_number(what: str, number: int, step: int) -> TrainingError:
    return TrainingError(
        f"{what} is not a number in epoch {number + 1}, step {step}; lower training.learning_rate"
    )


def _learner(config: RunConfig, network: Network, device: torch.device) -> nn.Module:
    learner: nn.Module = network
    if config.training.compile and device.type == "cuda":
        learner = torch.compile(network)  # type: ignore[assignment]
    if process_count() > 1:
        learner = DistributedDataParallel(learner, find_unused_parameters=True)
    return learner


def _optimizer(config: RunConfig, network: Network) -> torch.optim.Optimizer:
    tables = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    parameters = [each for each in network.parameters() if each.requires_grad]
    return torch.optim.AdamW(
        [
            {
                "params": [each for each in parameters if id(each) in tables],
                "weight_decay": config.training.weight_decay,
            },
            {
                "params": [each for each in parameters if id(each) not in tables],
                "weight_decay": 0.0,
            },
        ],
        lr=config.training.learning_rate,
    )


def _set_rate(optimizer: torch.optim.Optimizer, config: RunConfig, epochs_done: float) -> None:
    training = config.training
    rate = training.learning_rate
    if training.schedule == "cosine":
        rate *= 0.5 * (1 + np.cos(np.pi * min(epochs_done / training.epochs, 1.0)))
    for group in optimizer.param_groups:
        group["lr"] = rate


def _precision(config: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    if config.training.precision == "bfloat16" and device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()
