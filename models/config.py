"""A training run's configuration: one TOML file, each section a small frozen class.

    name = "encode-shop"
    [data]        where the behaviors come from            `DataConfig`
    [protocol]    what is predicted                        `models.protocols`, `models.live`
    [split]       which samples validate and test          `models.protocols`
    [samples]     which samples are used                   `models.protocols.Samples`
    [schema]      what the network sees                    `models.schema.Schema`
    [network]     what all methods share                   `models.network.NetworkConfig`
    [long_term]   the method                               `models.networks`
    [training]    how it learns                            `TrainingConfig`

Flags override: ``--set training.epochs=3``.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from infra.errors import TrainingError
from models.live import Live
from models.network import NetworkConfig
from models.networks import AnyConfig
from models.networks.encode import EncodeConfig
from models.protocols import ByTime, LastOfUser, NextItem, Rated, Samples, Shown
from models.schema import Schema


class DataConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the behaviors come from."""

    reader: str = "columns"
    """A published format, or "columns": any parquet or CSV (`models.readers.READERS`)."""
    path: str = ""
    """The file or directory, relative to where the command runs; "" is the shipped purchases."""
    share: float = 1.0
    """First part of the behaviors, by time, that is read; the rest is not looked at."""
    options: dict[str, Any] = {}
    """What the reader takes beside: a mapping of columns, for example."""


class TrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a network learns."""

    learning_rate: float = 1e-3
    """Adam's, at the start."""
    schedule: Literal["constant", "cosine"] = "constant"
    """"cosine": the learning rate falls to zero along a half cosine over all epochs."""
    weight_decay: float = 0.0
    """Decoupled decay of the embedding tables."""
    epochs: int = 1
    """Passes over the training part, at most."""
    patience: int = 1
    """Epochs without a better validation AUC that end the run."""
    batch: int = 1024
    """Requests a step, over all processes together."""
    auxiliary_weight: float = 0.1
    """Weight of the long-term module's own loss (ENCODE, section 4.2)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """"bfloat16": mixed precision, on a GPU."""
    compile: bool = False
    """Compile the network, on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto": a GPU where there is one."""
    threads: int = 2
    """Threads of torch on the processor; another number gives other last digits."""
    checkpoint_s: float = 60.0
    """Seconds between checkpoints, at least; one is also written after each epoch."""
    log: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    """Where metrics go beside the console and the run's JSON."""


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training run."""

    name: str = "encode"
    """Name of the model, for its bundle."""
    seed: int = 0
    """Of weights, negatives and the order of samples."""
    data: DataConfig = DataConfig()
    """Where the behaviors come from."""
    protocol: NextItem | Rated | Shown | Live = Live()
    """What is predicted."""
    split: ByTime | LastOfUser = ByTime()
    """Which samples validate and test; the protocol "live" has its own way."""
    samples: Samples = Samples()
    """Which samples are used."""
    schema: Schema = Schema()
    """What the network sees."""
    network: NetworkConfig = NetworkConfig()
    """What all methods share."""
    long_term: AnyConfig = EncodeConfig()
    """The method."""
    training: TrainingConfig = TrainingConfig()
    """How it learns."""


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a TOML file.

    Args:
        overrides: values by dotted key, {"training.epochs": 3}.

    Raises:
        TrainingError: one line that names the file, the key and what is wrong; for a misspelt key
            the nearest right one.
    """
    try:
        tree = tomllib.loads(path.read_text())
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}; name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} is not TOML: {error}") from error
    for key, value in (overrides or {}).items():
        _put(tree, key, value)
    return read_config(tree, str(path))


def read_config(tree: Mapping[str, Any], where: str = "the configuration") -> RunConfig:
    """A configuration from plain values.

    Raises:
        TrainingError: as `load_config`.
    """
    try:
        return msgspec.convert(tree, RunConfig, strict=True)
    except msgspec.ValidationError as error:
        raise TrainingError(f"{where}: {_explain(str(error), tree)}") from error
    except TrainingError as error:  # a section's own check
        raise TrainingError(f"{where}: {error}") from error


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise TrainingError(f"--set {key}: {section} is a value, not a section")
    tree[last] = value


def _explain(message: str, tree: Mapping[str, Any]) -> str:
    """msgspec's words, with the key as a user writes it and, if misspelt, the nearest right one."""
    what, _, place = message.partition(" - at `")
    key = place.removesuffix("`").removeprefix("$").removeprefix(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what)
    if unknown is None:
        value = _at(tree, key)
        return f"{key} = {value!r}: {what[0].lower()}{what[1:]}"
    section = key.split(".")[0] if key else ""
    known = list(_keys(section, _at(tree, key) if key else tree))
    near = difflib.get_close_matches(unknown[1], known, 1)
    hint = f"did you mean {near[0]}?" if near else f"it may hold {', '.join(sorted(known))}"
    return f"unknown key {f'{key}.' if key else ''}{unknown[1]}; {hint}"


def _at(tree: Any, key: str) -> Any:
    for part in filter(None, key.split(".")):
        if not isinstance(tree, Mapping) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _keys(section: str, values: Any) -> Iterator[str]:
    """The keys that a section may hold; of several kinds those of the kind that it names."""
    if not section:
        yield from RunConfig.__struct_fields__
        return
    hint = get_type_hints(RunConfig)[section]
    kinds = (
        get_args(hint)
        if get_origin(hint) is not None or isinstance(hint, type(int | str))
        else (hint,)
    )
    for kind in kinds:
        tag_field = kind.__struct_config__.tag_field
        if tag_field is None or len(kinds) == 1:
            yield from kind.__struct_fields__
        elif isinstance(values, Mapping) and values.get(tag_field) == kind.__struct_config__.tag:
            yield tag_field
            yield from kind.__struct_fields__
