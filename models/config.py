"""A training run's configuration: one TOML file, each section a small frozen class.

    name = "encode-shop"
    [data]        where the behaviors come from            `DataConfig`
    [protocol]    what is predicted                        `models.data.protocols`, `.live`
    [split]       which samples validate and test          `models.data.divisions`
    [samples]     which samples are used                   `models.data.selection.Selection`
    [schema]      what the network sees                    `models.data.schema.Schema`
    [network]     what all methods share                   `models.network.NetworkConfig`
    [long_term]   the method                               `models.networks`
    [training]    how it learns                            `TrainingConfig`

Flags override: ``--set training.epochs=3``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec

from infra.errors import TrainingError, hint
from models.data.divisions import ByTime, LastOfUser
from models.data.live import Live
from models.data.protocols import NextItem, Rated, Shown
from models.data.schema import Schema
from models.data.selection import Selection
from models.network import NetworkConfig
from models.networks import AnyConfig
from models.networks.encode import EncodeConfig

Count = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class DataConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the behaviors come from."""

    reader: str = "columns"
    """A published format, or "columns": any parquet or CSV (`models.readers.READERS`)."""
    path: str = ""
    """The file or directory, relative to where the command runs; "" is the shipped purchases."""
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """First part of the behaviors, by time, that is read; the rest is not looked at."""
    options: dict[str, Any] = {}
    """Further options of the reader, such as the names of columns."""


class TrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a network learns."""

    learning_rate: Positive = 1e-3
    """Learning rate of Adam, at the start."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate; "cosine": to zero along a half cosine over all epochs."""
    weight_decay: NotNegative = 0.0
    """Decoupled decay of the embedding tables."""
    epochs: Count = 1
    """Passes over the training part, at most."""
    patience: Annotated[int, msgspec.Meta(ge=0)] = 1
    """Epochs without a better validation AUC that end the run; 0: it goes on to the end."""
    batch: Count = 1024
    """Requests a step, over all processes together."""
    auxiliary_weight: NotNegative = 0.1
    """Weight of the long-term module's own loss (ENCODE, section 4.2)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Numbers that are computed with; "bfloat16": mixed precision, on a GPU."""
    compile: bool = False
    """Compile the network, on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network is trained; "auto": on a GPU where there is one."""
    threads: Count = 2
    """Threads of torch on the processor; another number gives other last digits."""
    checkpoint_s: NotNegative = 60.0
    """Seconds between checkpoints, at least; one is also written after each epoch."""
    log: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    """Where metrics go beside the console and the run's JSON."""


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training run."""

    name: str = "encode"
    """Name of the model, for its bundle."""
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Seed of weights, negatives and the order of samples."""
    data: DataConfig = DataConfig()
    """Where the behaviors come from."""
    protocol: NextItem | Rated | Shown | Live = Live()
    """What is predicted."""
    split: ByTime | LastOfUser = ByTime()
    """Which samples validate and test; the protocol "live" has its own way."""
    samples: Selection = Selection()
    """Which samples are used."""
    schema: Schema = Schema()
    """What the network sees."""
    network: NetworkConfig = NetworkConfig()
    """What all methods share."""
    long_term: AnyConfig = EncodeConfig()
    """The method, and its settings."""
    training: TrainingConfig = TrainingConfig()
    """How it learns."""


_DEFAULT: Final = RunConfig()


def load_config(
    path: Path, overrides: Mapping[str, Any] | None = None, method: str | None = None
) -> RunConfig:
    """Read a TOML file.

    Args:
        overrides: values by dotted key, {"training.epochs": 3}.
        method: another than the file's; of the file's settings of its own it keeps L alone.

    Raises:
        TrainingError: one line that names the file, the key and what is wrong; for a misspelt key
            the nearest right one.
    """
    return read_config(load_tree(path, overrides, method), str(path))


def load_tree(
    path: Path, overrides: Mapping[str, Any] | None = None, method: str | None = None
) -> dict[str, Any]:
    """What a TOML file says, as plain values: for whoever asks which keys it names.

    Args:
        overrides, method: as of `load_config`.

    Raises:
        TrainingError: as `load_config`, for what is no TOML.
    """
    try:
        tree = tomllib.loads(path.read_text())
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}; name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} is not TOML: {error}") from error
    own = tree.get("long_term")
    if method is not None and isinstance(own, dict | None):
        kept = {"L": own["L"]} if own and "L" in own else {}
        tree["long_term"] = {"network": method, **kept}
    for key, value in (overrides or {}).items():
        _put(tree, key, value)
    return tree


def read_config(tree: Mapping[str, Any], where: str = "the configuration") -> RunConfig:
    """A configuration from plain values; a section that does not say its kind is of the default's.

    Raises:
        TrainingError: as `load_config`.
    """
    tree = _with_kinds(tree)
    try:
        return msgspec.convert(tree, RunConfig, strict=True)
    except msgspec.ValidationError as error:
        raise TrainingError(f"{where}: {_explain(str(error), tree)}") from error
    except TrainingError as error:  # a section's own check
        raise TrainingError(f"{where}: {error}") from error


def _with_kinds(tree: Mapping[str, Any]) -> dict[str, Any]:
    filled = dict(tree)
    for name, default in ((name, getattr(_DEFAULT, name)) for name in RunConfig.__struct_fields__):
        tagged = getattr(default, "__struct_config__", None)
        if tagged is not None and tagged.tag_field and isinstance(filled.get(name), Mapping):
            filled[name] = {tagged.tag_field: tagged.tag, **filled[name]}
    return filled


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise TrainingError(f"--set {key}: {section} is a value, not a section")
    tree[last] = value


def _explain(message: str, tree: Mapping[str, Any]) -> str:
    """msgspec's words, with the key as a user writes it and, if misspelt, the nearest right one."""
    what, _, place = message.partition(" - at `$")
    place = place.removesuffix("`")
    key = place.removeprefix(".")
    named = re.search(r"`(.*)`", what)
    around, expected, value = _at(place, tree)
    if what.startswith("Object contains unknown field") and named:
        known = [name for kind in _kinds(expected, value) for name in _keys(kind)]
        unknown = f"{key}.{named[1]}" if key else named[1]
        return f"unknown key {unknown}; {hint(named[1], sorted(set(known)))}"
    choices = _choices(around, key.rpartition(".")[2]) or _literals(expected)
    if isinstance(value, str) and choices:
        return f"{key} = {value!r} is unknown; {hint(value, sorted(choices))}"
    return f"{key} = {value!r}: {what[0].lower()}{what[1:]}"


def _at(place: str, tree: Any) -> tuple[Any, Any, Any]:
    """Where msgspec's ".training.log[0]" leads: the type around it, its type, and the value."""
    around: Any = None
    hint: Any = RunConfig
    value = tree
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", place):
        around = hint
        if name:
            hints = [get_type_hints(kind).get(name) for kind in _kinds(hint, value)]
            hint = hints[0] if len(hints) == 1 else None
            value = value.get(name) if isinstance(value, Mapping) else None
        else:
            hint = get_args(hint)[0] if get_args(hint) else None
            value = value[int(index)] if isinstance(value, Sequence) else None
    return around, hint, value


def _structs(hint: Any) -> list[Any]:
    found = get_args(hint) or (hint,)
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]


def _kinds(hint: Any, values: Any) -> list[Any]:
    """The classes that a section may be of; where there are several, the one that it names."""
    kinds = _structs(hint)
    if len(kinds) > 1 and isinstance(values, Mapping):
        kinds = [
            kind
            for kind in kinds
            if values.get(kind.__struct_config__.tag_field) == kind.__struct_config__.tag
        ]
    return kinds


def _keys(kind: Any) -> tuple[str, ...]:
    tag = kind.__struct_config__.tag_field
    return (*kind.__struct_fields__, *([tag] if tag else []))


def _choices(hint: Any, key: str) -> list[str]:
    """What may be given for the key by which a section says its kind; nothing for another key."""
    configs = [kind.__struct_config__ for kind in _structs(hint)]
    return [str(config.tag) for config in configs if config.tag_field == key]


def _literals(hint: Any) -> list[str]:
    return [str(value) for value in get_args(hint)] if get_origin(hint) is Literal else []
