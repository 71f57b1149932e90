"""What a run leaves in its directory, and how it is read back.

    checkpoint.pt         while it learns: everything that it needs to go on
    run.json              once it is finished: configuration, metrics, learning curve, data
    weights.pt            the network's
    inputs.msgpack        the tables of items and users that it sees, as npz
    vocabulary.msgpack    item ids, titles and popularity, in the order of the embeddings' rows

A finished run takes the place of its checkpoint in one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch

from infra.arrays import F32
from infra.errors import TrainingError, one_line
from infra.files import replacing, write_directory
from models.config import RunConfig, read_config
from models.data.rates import RateCounts
from models.data.schema import Inputs
from models.data.splits import AnySplit
from models.features import Rates
from models.network import Network
from models.prediction import make_network

CHECKPOINT: Final = "checkpoint.pt"
"""File of a run that is not finished: everything that it needs to go on."""

WEIGHTS: Final = "weights.pt"
INPUTS: Final = "inputs.msgpack"
RUN: Final = "run.json"
VOCABULARY: Final = "vocabulary.msgpack"


class Vocabulary(msgspec.Struct, frozen=True):
    """vocabulary.msgpack: one entry an item, row 0 ("") for unknown ones."""

    item_ids: list[str]
    titles: list[str]
    popularity: list[float]
    rates: list[float] = []
    """The items' rates; none where the network sees none."""


class Epoch(msgspec.Struct, frozen=True):
    """An epoch of a learning curve."""

    loss: float
    """Mean training cross-entropy, nats."""
    auxiliary: float
    validation: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    path: Path
    """The run's directory."""
    metrics: dict[str, float]
    """`models.prediction.measure_network` of the best epoch's validation, and of the test as
    ``test_<metric>``."""
    epochs: int
    """The epoch found best, from 1."""
    curve: list[Epoch]
    """Learning curve of the first pass."""
    seconds: float


@dataclass(frozen=True)
class Run:
    """A finished training run, read back."""

    config: RunConfig
    network: Network
    inputs: Inputs
    vocabulary: Vocabulary
    metrics: dict[str, float]
    data: dict[str, Any]
    epochs: int
    curve: list[Epoch]


def save_run(
    result: TrainResult,
    config: RunConfig,
    network: Network,
    samples: AnySplit,
    data: dict[str, Any],
    baselines: dict[str, float],
) -> None:
    """Write a finished run into its directory, in the place of its checkpoint.

    Args:
        result: what the run came to, and where.
        config: the run's.
        network: the one learned, as it ended.
        samples: what it learned from.
        data: what to say of where they came from.
        baselines: measures of other rankings, kept beside its own.

    Raises:
        TrainingError: it cannot be written; the checkpoint stays.
    """
    interactions, n_training = samples.interactions, samples.n_training
    weights, tables = BytesIO(), BytesIO()
    torch.save({name: value.cpu() for name, value in network.state_dict().items()}, weights)
    arrays = {f"item.{name}": rows for name, rows in network.inputs.items.items()}
    arrays |= {f"user.{name}": rows for name, rows in network.inputs.users.items()}
    np.savez_compressed(tables, allow_pickle=False, **arrays)
    rows = np.arange(len(interactions.item_ids), dtype=np.int32)
    vocabulary = Vocabulary(
        interactions.item_ids,
        interactions.titles,
        interactions.popularity(rows, n_training).tolist(),
        _rates(network.inputs.rates, samples).tolist(),
    )
    run = {
        "config": msgspec.to_builtins(config),
        "metrics": result.metrics | baselines,
        "data": {
            **data,
            "behaviors": n_training,
            "users": len(np.unique(interactions.users[:n_training])),
            "from": int(interactions.times[:n_training].min()),
            "until": int(interactions.times[:n_training].max()),
        },
        "heights": dict(network.inputs.heights),
        "actions": network.inputs.actions,
        "rates": msgspec.to_builtins(network.inputs.rates),
        "n_users": network.inputs.n_users,
        "sampling_rate": network.sampling_rate,
        "epochs": result.epochs,
        "curve": msgspec.to_builtins(result.curve),
        "seconds": result.seconds,
        "device": str(network.embedding.weight.device),
    }
    files = {
        WEIGHTS: weights.getvalue(),
        INPUTS: tables.getvalue(),
        VOCABULARY: msgspec.msgpack.encode(vocabulary),
        RUN: msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n",
    }
    try:
        write_directory(result.path, files)
    except OSError as error:
        raise TrainingError(
            f"the run {result.path} cannot be written: {error.strerror}; "
            "its checkpoint stays, make room and go on with --resume"
        ) from error


def _rates(rates: Rates | None, samples: AnySplit) -> F32:
    """f32[n + 1]: the items' rates by all that was learned from; none without ``rates``."""
    if rates is None:
        return np.zeros(0, np.float32)
    rows = np.arange(len(samples.interactions.item_ids), dtype=np.int32)
    counts = RateCounts.of(samples.interactions, samples.sequences, rates)
    return counts.of_items(rows, samples.n_training)


def load_run(path: Path) -> Run:
    """Read a run's directory.

    Raises:
        TrainingError: there is no finished run, or it cannot be read.
    """
    try:
        described = msgspec.json.decode((path / RUN).read_bytes())
        vocabulary = msgspec.msgpack.decode((path / VOCABULARY).read_bytes(), type=Vocabulary)
        # Runs of before there was an "auto" have no positive actions.
        described["config"]["schema"].setdefault("positive", [])
        config = read_config(described["config"], str(path / RUN))
        with np.load(BytesIO((path / INPUTS).read_bytes())) as tables:
            kinds: dict[str, dict[str, Any]] = {"item": {}, "user": {}}
            for key in tables.files:
                kind, _, name = key.partition(".")
                kinds[kind][name] = tables[key]
        inputs = Inputs(
            schema=config.schema,
            n_items=len(vocabulary.item_ids) - 1,
            n_users=described["n_users"],
            items=kinds["item"],
            users=kinds["user"],
            heights=described["heights"],
            actions=tuple(described.get("actions", ())),
            rates=msgspec.convert(described.get("rates"), Rates | None),
        )
        network = make_network(config, inputs)
        network.load_state_dict(torch.load(path / WEIGHTS, weights_only=True))
        network.sampling_rate = described.get("sampling_rate", 1.0)
    except FileNotFoundError as error:
        raise TrainingError(
            f"{path} holds no finished training run ({Path(error.filename).name} is absent); "
            "make one with `lifelong train`"
        ) from error
    except Exception as error:  # a damaged file: zip, pickle, msgspec and torch have their own
        reason = one_line(error, 200)
        raise TrainingError(f"the run in {path} cannot be read: {reason}; train again") from error
    return Run(
        config=config,
        network=network.eval(),
        inputs=inputs,
        vocabulary=vocabulary,
        metrics=described["metrics"],
        data=described["data"],
        epochs=described["epochs"],
        curve=msgspec.convert(described["curve"], list[Epoch]),
    )


def read_checkpoint(path: Path, config: RunConfig, device: torch.device) -> dict[str, Any] | None:
    """The checkpoint, or None if there is none.

    Raises:
        TrainingError: it is of another configuration, or cannot be read.
    """
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
        theirs, _ = saved["config"], saved["fitted"]
    except Exception as error:  # pickle, zip and torch all have their own
        reason = one_line(error, 200)
        raise TrainingError(f"{path} cannot be read: {reason}; delete it to start anew") from error
    changed = _differing(theirs, msgspec.to_builtins(config))
    if changed:
        raise TrainingError(
            f"{path} is of another configuration ({changed} differs); "
            "use that one, or another --out"
        )
    return saved


def write_checkpoint(path: Path, saved: dict[str, Any]) -> None:
    """Put a checkpoint into the place of the one before it.

    Raises:
        TrainingError: there is no room, or no permission; the one before it stays.
    """
    try:
        with replacing(path) as file:
            torch.save(saved, file)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk as RuntimeError
        raise TrainingError(
            f"the checkpoint {path} cannot be written: {one_line(error, 120)}; "
            "the one before it stays, make room and go on with --resume"
        ) from error


def _differing(before: Any, after: Any, key: str = "") -> str:
    """The first key, dotted, at which two configurations differ in what a run learns."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return "" if before == after else key
    for name in before.keys() | after.keys():
        if key == "training" and name in {"checkpoint_s", "log"}:
            continue
        found = _differing(before.get(name), after.get(name), f"{key}.{name}".lstrip("."))
        if found:
            return found
    return ""
