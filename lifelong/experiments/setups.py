"""What an experiment runs on: a data set, a protocol, and a scale.

A *setup* is a training configuration without a method. Known data sets are recognized by their
files; any other data come as a TOML file, as for ``lifelong train``.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from infra.errors import SettingsError
from lifelong.learning import SHIPPED
from models.config import RunConfig, load_tree, read_config
from models.data.schema import AUTO
from models.readers import READERS

Scale = Literal["small", "full"]
Tree = dict[str, Any]
"""A `RunConfig` as plain values."""

SEARCHED: Final = 20
"""Behaviors that a search lets through at the small scale: as many of L = 200 as the papers' 50 and
100 of 1,000 and 10,000, about."""

SMALL: Final[Tree] = {
    "network": {"d": 32, "M": 16, "hidden": (64, 32)},
    "training": {"batch": 256, "epochs": 8, "patience": 1, "threads": 1},
}
FULL: Final[Tree] = {
    "network": {"d": 32, "M": 50, "hidden": (64, 32)},
    "training": {"batch": 1024, "epochs": 10, "patience": 2, "threads": 2},
}
LENGTHS: Final[Mapping[Scale, int]] = {"small": 200, "full": 1000}
"""Behaviors that a method sees, L, by scale."""
RATES: Final[Mapping[Scale, tuple[float, ...]]] = {
    "small": (6e-3, 1.2e-2),
    "full": (3e-4, 1e-3, 3e-3),
}
"""Learning rates that each method is tried with: the same budget for all."""


@dataclass(frozen=True)
class Setup:
    """A data set with a protocol, at a scale."""

    name: str
    title: str
    scale: Scale
    tree: Tree
    """Everything but the method, the learning rate and the seed."""
    rates: tuple[float, ...]
    """Learning rates to choose from, by validation."""
    data: str
    """Says whose behaviors these are, the same on every machine."""
    seed: int = 0
    """The first seed; the others follow it."""
    known: Tree = field(default_factory=dict)
    """Where the section ``schema`` differs for networks that see rates, and actions of behaviors;
    nothing, where the data do not have them."""

    def method_tree(
        self, method: Mapping[str, Any], *, published: bool = False, known: bool = False
    ) -> Tree:
        """The configuration of a method (its ``long_term`` section), all but rate and seed.

        Args:
            published: as large as the papers have it, not as the scale does.
            known: let it see what ``known`` names.
        """
        tree = deepcopy(self.tree)
        if known:
            tree["schema"] = tree.get("schema", {}) | self.known
        own = dict(method)
        if published:
            return tree | {"long_term": own}
        if self.scale == "small" and own["network"] in {"sim", "eta", "twin", "ubr4ctr"}:
            own.setdefault("k", SEARCHED)
        own.setdefault("L", tree.get("long_term", {}).get("L", LENGTHS[self.scale]))
        tree["long_term"] = own
        return tree

    def config(self, tree: Tree) -> RunConfig:
        """The whole configuration of a cell."""
        return read_config(tree, self.name)


@dataclass(frozen=True)
class _Known:
    """A published data set under a protocol."""

    title: str
    reader: str
    protocol: Tree
    split: Tree
    schema: Tree
    small: Tree
    """Section ``samples`` at the small scale."""
    rates: tuple[float, ...] = RATES["small"]
    """Learning rates at the small scale; lower where a few epochs teach all that there is."""
    known: Tree = field(default_factory=dict)
    """`Setup.known`."""


_NEXT_ITEM: Final[Tree] = {
    "kind": "next_item",
    "negatives": 4,
    "evaluation_negatives": 49,
}


_UNKNOWN: Final[Tree] = {"behavior": (), "positive": ()}
"""A schema that asks nothing of the data's actions."""


def _films(
    name: str, title: str, reader: str, user: tuple[str, ...], liked: tuple[str, ...]
) -> dict[str, _Known]:
    """MovieLens under both protocols; only the protocol "rated" sees the ``user`` attributes."""
    schema: Tree = {"item": ("genre",), "category": "genre"}
    known: Tree = {"behavior": ("action",), "positive": liked}
    return {
        f"{name}-next-item": _Known(
            title=f"{title}, next item",
            reader=reader,
            protocol=_NEXT_ITEM,
            split={"kind": "last", "validation": 3, "test": 10},
            schema=schema,
            small={"users": 400, "min_history": 5},
            known=known,
        ),
        f"{name}-rated": _Known(
            title=f"{title}, rated",
            reader=reader,
            protocol={"kind": "rated", "threshold": 4.0},
            split={"kind": "last", "validation": 5, "test": 10},
            schema=schema | {"user": user, "behavior": ("action",)},
            small={"users": 700, "min_history": 5},
            rates=(1e-3, 3e-3),
            known=known,
        ),
    }


KNOWN: Final[Mapping[str, _Known]] = {
    **_films(
        "ml-1m",
        "MovieLens 1M",
        "movielens-1m",
        user=("gender", "age", "occupation"),
        liked=("rated 4", "rated 5"),
    ),
    "online-retail-2": _Known(
        title="Online Retail II, next item",
        reader="online-retail-2",
        protocol=_NEXT_ITEM,
        split={"kind": "time"},
        schema={},
        small={"users": 500, "min_history": 5, "evaluated": 4000},
    ),
    "taobao": _Known(
        title="Taobao, next item",
        reader="taobao",
        protocol=_NEXT_ITEM,
        split={"kind": "time"},
        schema={"item": ("category",), "category": "category", "behavior": ("action",)},
        known={"positive": ("purchase",)},
        small={"users": 500, "min_history": 5, "evaluated": 4000},
        rates=(3e-3, 6e-3),
    ),
    **_films(
        "ml-32m",
        "MovieLens 32M",
        "movielens-32m",
        user=(),
        liked=("rated 4", "rated 4.5", "rated 5"),
    ),
    "amazon-books": _Known(
        title="Amazon Books, next item",
        reader="amazon-books",
        protocol=_NEXT_ITEM,
        split={"kind": "time"},
        schema={},
        small={"users": 2000, "min_history": 5, "evaluated": 4000},
        rates=(3e-3, 6e-3),
    ),
}
"""Setups of the data sets that have a reader, by name; a data set's first is its default."""


def find_setup(data: str, protocol: str | None, scale: Scale) -> Setup:
    """The setup of what ``--data`` names.

    Args:
        data: the directory of a published data set, "shipped" for the purchases that come with the
            project, or a TOML file as ``lifelong train`` takes it.
        protocol: "next-item" or "rated"; None: the first that the data set has, or the file's own.
        scale: how much of it.

    Raises:
        SettingsError: nothing is known of what is there.
        TrainingError: the TOML file is wrong, or cannot be read.
    """
    if data == SHIPPED:
        return _known("online-retail-2", SHIPPED, "", protocol, scale)
    path = Path(data)
    if path.suffix == ".toml":
        return _own(path, protocol, scale)
    for name, known in KNOWN.items():
        if _holds(path, known.reader):
            return _known(name, known.reader, data, protocol, scale)
    readers = ", ".join(dict.fromkeys(known.reader for known in KNOWN.values()))
    raise SettingsError(
        f"--data {data}: no files of a data set that is known ({readers}); name its directory,"
        f' "{SHIPPED}" for the purchases that come with Lifelong, or a TOML file of your own data'
    )


def _holds(path: Path, reader: str) -> bool:
    return path.is_dir() and any((path / name).exists() for name in READERS[reader].files)


def _known(name: str, reader: str, path: str, protocol: str | None, scale: Scale) -> Setup:
    data_set = KNOWN[name].reader
    names = [other for other, known in KNOWN.items() if known.reader == data_set]
    if protocol is not None:
        wanted = protocol.replace("-", "_")
        names = [other for other in names if KNOWN[other].protocol["kind"] == wanted]
        if not names:
            have = {known.protocol["kind"] for known in KNOWN.values() if known.reader == data_set}
            raise SettingsError(
                f"--protocol {protocol}: {data_set} has no such setup; take"
                f" {' or '.join(sorted(have)).replace('_', '-')}"
            )
    known = KNOWN[names[0]]
    tree = deepcopy(SMALL if scale == "small" else FULL)
    tree |= {
        "name": names[0],
        "data": {"reader": reader, "path": path},
        "protocol": known.protocol,
        "split": known.split,
        "schema": _UNKNOWN | known.schema,
        # As in the papers, which withhold nothing.
        "samples": {"withheld": 0.0, **(known.small if scale == "small" else {"min_history": 5})},
    }
    rates = known.rates if scale == "small" else RATES[scale]
    data = _fingerprint(reader, path)
    return Setup(names[0], known.title, scale, tree, rates, data, known=known.known)


def _own(path: Path, protocol: str | None, scale: Scale) -> Setup:
    """A setup of one's own: whatever the file says, but for the method."""
    said = load_tree(path)
    config, name = read_config(said, str(path)), ""
    wanted = None if protocol is None else protocol.replace("-", "_")
    if wanted not in {None, config.protocol.__struct_config__.tag}:
        said["protocol"] = {"kind": wanted}  # another kind has other keys
        config, name = read_config(said, f"{path}, --protocol {protocol}"), f"-{protocol}"
    tree: Tree = msgspec.to_builtins(config)
    # What DIN sees, which is nothing, is no length for the others.
    tree["long_term"] = {"L": config.long_term.L} if config.long_term.L else {}
    del tree["training"]["learning_rate"], tree["seed"]
    rate = said.get("training", {}).get("learning_rate")
    rates = RATES[scale] if rate is None else (config.training.learning_rate,)
    data = _fingerprint(config.data.reader, config.data.path)
    # Tables go to a directory by that name: an example's must not go over the published setup's.
    name = f"{config.name}{name}"
    name = f"{name}-own" if name in KNOWN else name
    told: Tree = {"behavior": AUTO, "positive": AUTO}
    return Setup(name, config.name, scale, tree, rates, data, config.seed, told)


def _fingerprint(reader: str, path: str) -> str:
    """The reader, and sizes of the files that it reads."""
    if not path:
        return reader
    place = Path(path)
    names = READERS[reader].files if reader in READERS else ()
    files = [place / name for name in names if (place / name).exists()] or [place]
    if files == [place] and place.is_dir():
        files = sorted(place.iterdir())
    return ":".join([reader, *(str(file.stat().st_size) for file in files if file.is_file())])
