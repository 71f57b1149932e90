"""Training of ENCODE: cross-entropy and, with weight 0.1, the dynamic triplet loss (section 3.2).

A run first learns on the earlier part of the interactions and watches the later part to know when
to stop; then it learns as long on all of them, since a model for tomorrow should know yesterday.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from infra.errors import TrainingError
from models.bundle import BetaMode, Vocabulary, write_directory
from models.data import (
    Batch,
    BatchBuilder,
    Requests,
    SamplingConfig,
    Sequences,
    evaluation_requests,
    training_requests,
)
from models.encode import Clusters, Encode, EncodeConfig
from models.evaluation import Quality, baseline_qualities, log_loss, ranking_quality
from models.interactions import Interactions
from models.layers import dynamic_triplet_loss

CHECKPOINT: Final = "checkpoint.pt"
RUN: Final = "run.json"
VOCABULARY: Final = "vocabulary.msgpack"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelConfig:
    """The network; see `models.encode.EncodeConfig`."""

    d: int = 32
    """Width of an embedding."""
    m: int = 4
    """Width of a projected embedding."""
    K: int = 30
    """Clusters of a user."""
    L: int = 1000
    """Behaviors that are clustered."""
    M: int = 50
    """Recent behaviors that are attended to one by one."""
    T: int = 15
    """Iterations of k-means."""
    beta: float = 20.0
    """Scaling factor of Eq. 9."""
    beta_mode: BetaMode = "divide"
    """Whether beta divides the cosine (the paper), multiplies it or is learned."""
    hidden: tuple[int, int] = (64, 32)
    """Widths of the tower's hidden layers."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How the network learns."""

    learning_rate: float = 6e-3
    """Adam's, at the start; it falls to zero along a half cosine."""
    weight_decay: float = 0.0
    """Decoupled decay of the item table."""
    epochs: int = 3
    """Passes over the interactions, at most; the learning rate falls over as many."""
    patience: int = 1
    """Epochs without a better validation that end the run."""
    batch: int = 128
    """Requests a step."""
    triplet_weight: float = 0.1
    """Weight of the dynamic triplet loss (ENCODE, section 4.2)."""
    threads: int = 2
    """Threads of torch; another number gives other last digits."""


@dataclass(frozen=True)
class ValidationConfig:
    """What the run watches."""

    share: float = 0.1
    """Last part of the interactions that the first pass does not learn from."""
    requests: int = 3000
    """Requests of one positive among 99."""
    refit: bool = True
    """Learn again, on everything, for the number of epochs found best."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    name: str = "encode"
    """Name of the model, for its bundle."""
    seed: int = 0
    """Of weights, of requests and of negatives."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """The requests."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The learning."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """The stopping."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands; passed to ``on_progress`` every few steps and after each epoch."""

    phase: str
    """"fit" or "refit"."""
    epoch: int
    """From 1."""
    epochs: int
    step: int
    """Steps of this epoch that are done."""
    steps: int
    loss: float
    """Mean cross-entropy of this epoch so far, nats."""
    triplet_loss: float
    """Mean triplet loss of this epoch so far."""
    validation: Quality | None = None
    """After an epoch of the first pass."""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    path: Path
    """The run's directory: checkpoint.pt, run.json, vocabulary.msgpack."""
    metrics: dict[str, float]
    """Validation of the first pass, and of the rules on the same requests."""
    epochs: int
    """Epochs found best."""
    losses: list[float]
    """Mean training cross-entropy of each epoch of the last pass."""
    seconds: float


def train(
    config: TrainConfig,
    interactions: Interactions,
    out: Path,
    on_progress: OnProgress = lambda _: None,
    data: dict[str, Any] | None = None,
) -> TrainResult:
    """Train a network and leave its checkpoint in ``out`` (written whole, or not at all).

    Args:
        interactions: everything the model may know.
        data: what to say in the bundle about where they came from.

    Raises:
        TrainingError: there is too little to learn from, or the loss is not a number.
    """
    began = time.monotonic()
    with _Deterministic(config):
        size = int(len(interactions) * (1 - config.validation.share))
        earlier = interactions.head(size)
        watch = _Validation(config, interactions, size)
        network, best, quality, losses = _fit(config, earlier, watch, on_progress)
        metrics = {**quality, **watch.baselines}
        if config.validation.refit:
            network, losses = _refit(config, interactions, best, on_progress)
        known = interactions if config.validation.refit else earlier
    _save(out, config, network, known, metrics, data or {}, best)
    return TrainResult(out, metrics, best, losses, time.monotonic() - began)


class _Validation:
    """Requests of the last part of the interactions, and what rules make of them."""

    def __init__(self, config: TrainConfig, interactions: Interactions, begin: int) -> None:
        sequences = Sequences.of(interactions)
        rng = np.random.default_rng([config.seed, 1])
        self.requests = evaluation_requests(
            interactions, sequences, begin, config.validation.requests, rng
        )
        if not len(self.requests.cut):
            raise TrainingError(
                f"the last {config.validation.share:.0%} of {len(interactions)} behaviors give no "
                "request to validate on; train on more behaviors or raise validation.share"
            )
        self.builder = builder(config.model, interactions, sequences)
        self.baselines = baseline_qualities(interactions, sequences, self.requests)

    def __call__(self, network: Encode) -> dict[str, float]:
        """AUC, GAUC, hit rate at 10 and log loss of the network."""
        ctrs = predict(network, self.builder, self.requests)
        quality = ranking_quality(ctrs)
        return {**asdict(quality), "log_loss": log_loss(ctrs, self.requests.labels)}


def builder(model: ModelConfig, interactions: Interactions, sequences: Sequences) -> BatchBuilder:
    """The batch builder that fits a model."""
    return BatchBuilder(interactions, sequences, K=model.K, L=model.L, M=model.M, T=model.T)


def predict(network: Encode, batches: BatchBuilder, requests: Requests, size: int = 64) -> Floats:
    """CTRs f32[R, B] by the torch network; items that it has no row for count as unknown."""
    rng = np.random.default_rng(0)  # anchors are drawn and not used
    projected = project_table(network, len(batches.interactions.item_ids))
    with torch.no_grad():
        return np.concatenate(
            [
                torch.sigmoid(forward(network, batch)).numpy()
                for batch in batches.batches(requests, size, lambda: projected, rng)
            ]
        )


def project_table(network: Encode, rows: int) -> Floats:
    """f32[rows, m]: projections of the item table; rows beyond it are never asked for."""
    with torch.no_grad():
        table = network.project(network.embedding.weight).numpy()
    padded = np.zeros((max(rows, len(table)), table.shape[1]), np.float32)
    padded[: len(table)] = table
    return padded


def forward(network: Encode, batch: Batch) -> Tensor:
    """Logits [R, B] of a batch."""
    clusters = Clusters(
        rows=torch.from_numpy(batch.member_rows),
        counts=torch.from_numpy(batch.member_counts),
        cluster=torch.from_numpy(batch.member_cluster),
        centers=torch.from_numpy(batch.centers),
    )
    R, width = batch.interest_mask.shape
    interests = network.interests(clusters)
    slots = interests.new_zeros(R * width, interests.shape[1])
    slots = slots.index_copy(0, torch.from_numpy(batch.slot), interests)
    return network.logits(
        interests=slots.view(R, width, -1),
        interest_mask=torch.from_numpy(batch.interest_mask),
        recent=network.embedding(torch.from_numpy(batch.recent)),
        recent_mask=torch.from_numpy(batch.recent_mask),
        user=torch.from_numpy(batch.user),
        candidates=network.embedding(torch.from_numpy(batch.candidates)),
        cross=torch.from_numpy(batch.cross),
    )


def losses_of(network: Encode, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy (Eq. 2) and the mean dynamic triplet loss (Eqs. 5-7) of a batch."""
    entropy = functional.binary_cross_entropy_with_logits(
        forward(network, batch), torch.from_numpy(batch.labels), reduction="none"
    )
    weights = torch.from_numpy(batch.weights)
    loss = (entropy * weights).sum() / weights.sum().clamp(min=1.0)
    if not len(batch.anchors):
        return loss, loss.new_zeros(())
    # The embeddings are constants of this loss, see `dynamic_triplet_loss`.
    involved, place = np.unique(batch.member_rows[batch.anchors], return_inverse=True)
    behaviors = network.embedding.weight.detach()[torch.from_numpy(involved)]
    projected = network.project(behaviors)
    anchor, first, second = torch.from_numpy(place.reshape(-1, 3)).unbind(1)
    return loss, dynamic_triplet_loss(behaviors, projected, anchor, first, second).mean()


def _fit(
    config: TrainConfig, interactions: Interactions, watch: _Validation, on_progress: OnProgress
) -> tuple[Encode, int, dict[str, float], list[float]]:
    """The first pass: the best network, its epoch, its validation, and all epochs' losses."""
    run = _Run(config, interactions, "fit", config.optimizer.epochs, on_progress)
    best = 0
    best_quality: dict[str, float] = {}
    best_state: dict[str, Tensor] = {}
    for epoch in range(1, config.optimizer.epochs + 1):
        run.epoch(epoch)
        quality = watch(run.network)
        run.report(epoch, Quality(quality["auc"], quality["gauc"], quality["hit10"]))
        if not best or quality["auc"] > best_quality["auc"]:
            best, best_quality = epoch, quality
            best_state = {key: value.clone() for key, value in run.network.state_dict().items()}
        elif epoch - best >= config.optimizer.patience:
            break
    run.network.load_state_dict(best_state)
    return run.network, best, best_quality, run.losses


def _refit(
    config: TrainConfig, interactions: Interactions, epochs: int, on_progress: OnProgress
) -> tuple[Encode, list[float]]:
    """The second pass: on everything, as many epochs along the same schedule."""
    run = _Run(config, interactions, "refit", epochs, on_progress)
    for epoch in range(1, epochs + 1):
        run.epoch(epoch)
    return run.network, run.losses


class _Run:
    """One pass of learning over some interactions."""

    REPORT_EVERY: Final = 20

    def __init__(
        self,
        config: TrainConfig,
        interactions: Interactions,
        phase: str,
        epochs: int,
        on_progress: OnProgress,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.interactions, self.phase = config, interactions, phase
        self.epochs, self.on_progress = epochs, on_progress
        self.sequences = Sequences.of(interactions)
        self.builder = builder(config.model, interactions, self.sequences)
        self.network = Encode(network_config(config.model, len(interactions.item_ids) - 1))
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [self.network.embedding.weight],
                    "weight_decay": config.optimizer.weight_decay,
                },
                {
                    "params": [
                        parameter
                        for name, parameter in self.network.named_parameters()
                        if name != "embedding.weight" and parameter.requires_grad
                    ],
                    "weight_decay": 0.0,
                },
            ],
            lr=config.optimizer.learning_rate,
        )
        self.losses: list[float] = []
        self._last = Progress(phase, 0, epochs, 0, 0, float("nan"), float("nan"))

    def epoch(self, epoch: int) -> None:
        """Learn from one epoch's requests."""
        settings = self.config.optimizer
        rng = np.random.default_rng([self.config.seed, 2, epoch])
        requests = training_requests(self.interactions, self.sequences, self.config.sampling, rng)
        steps = -(-len(requests.cut) // settings.batch)
        if not steps:
            raise TrainingError(
                f"{len(self.interactions)} behaviors give no request to learn from; "
                "train on more, or lower sampling.behaviors_per_request"
            )
        rows = len(self.interactions.item_ids)
        batches = self.builder.batches(
            requests, settings.batch, lambda: project_table(self.network, rows), rng
        )
        total = total_triplet = 0.0
        for step, batch in enumerate(batches, 1):
            self._set_rate((epoch - 1 + step / steps) / settings.epochs)
            loss, triplet = losses_of(self.network, batch)
            self.optimizer.zero_grad(set_to_none=True)
            (loss + settings.triplet_weight * triplet).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.item()
            total_triplet += triplet.item()
            if not np.isfinite(total):
                raise TrainingError(
                    f"the loss is not a number in epoch {epoch}, step {step}; "
                    "lower optimizer.learning_rate"
                )
            if step % self.REPORT_EVERY == 0 or step == steps:
                self._last = Progress(
                    self.phase, epoch, self.epochs, step, steps, total / step, total_triplet / step
                )
                self.on_progress(self._last)
        self.losses.append(total / steps)

    def report(self, epoch: int, validation: Quality) -> None:
        """Pass on an epoch's validation."""
        values = {**vars(self._last), "epoch": epoch, "validation": validation}
        self.on_progress(Progress(**values))

    def _set_rate(self, done: float) -> None:
        rate = self.config.optimizer.learning_rate * 0.5 * (1 + np.cos(np.pi * min(done, 1.0)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate


def network_config(model: ModelConfig, n_items: int) -> EncodeConfig:
    """The network's configuration for a vocabulary."""
    return EncodeConfig(n_items=n_items, **vars(model))


class _Deterministic:
    """torch's threads and algorithms as the run wants them, put back afterwards."""

    def __init__(self, config: TrainConfig) -> None:
        self.threads = config.optimizer.threads

    def __enter__(self) -> None:
        self.before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before[0])
        torch.use_deterministic_algorithms(self.before[1])


@dataclass(frozen=True)
class Run:
    """A finished run as read back from its directory."""

    config: TrainConfig
    network: Encode
    vocabulary: Vocabulary
    metrics: dict[str, float]
    data: dict[str, Any]
    epochs: int


def _save(
    out: Path,
    config: TrainConfig,
    network: Encode,
    interactions: Interactions,
    metrics: dict[str, float],
    data: dict[str, Any],
    epochs: int,
) -> None:
    weights = BytesIO()
    torch.save(network.state_dict(), weights)
    vocabulary = Vocabulary(
        interactions.item_ids,
        interactions.titles,
        [float(value) for value in interactions.popularity_table()],
    )
    described = {
        **data,
        "behaviors": len(interactions),
        "users": len(interactions.user_ids),
        "from": int(interactions.times[0]),
        "until": int(interactions.times[-1]),
    }
    run = {"config": asdict(config), "metrics": metrics, "data": described, "epochs": epochs}
    write_directory(
        Path(out),
        {
            CHECKPOINT: weights.getvalue(),
            VOCABULARY: msgspec.msgpack.encode(vocabulary),
            RUN: msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n",
        },
    )


def load_run(path: Path) -> Run:
    """Read a run's directory.

    Raises:
        TrainingError: there is no finished run, or it cannot be read.
    """
    try:
        described = msgspec.json.decode((path / RUN).read_bytes())
        vocabulary = msgspec.msgpack.decode((path / VOCABULARY).read_bytes(), type=Vocabulary)
        config = msgspec.convert(described["config"], TrainConfig)
        network = Encode(network_config(config.model, len(vocabulary.item_ids) - 1))
        network.load_state_dict(torch.load(path / CHECKPOINT, weights_only=True))
    except FileNotFoundError as error:
        raise TrainingError(
            f"{path} holds no finished training run ({Path(error.filename).name} is absent); "
            "make one with `lifelong train`"
        ) from error
    except Exception as error:  # a damaged file: pickle, msgspec and torch all have their own
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"the run in {path} cannot be read: {reason}; train again") from error
    return Run(
        config,
        network,
        vocabulary,
        described["metrics"],
        described["data"],
        described["epochs"],
    )
