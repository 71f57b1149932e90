"""Cells: what is measured once and kept as JSON, so that a table is taken up where it was left.

A cell is known by what was asked of it, never by when or where it ran. It stands in a file of its
own that says how it came about: configuration, seed, git revision, machine, seconds.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

from infra.errors import DataError
from infra.files import reason, replacing
from lifelong.experiments.setups import Setup, Tree
from lifelong.machine import machine

QUALITY: Final = "quality"
"""The kind of a cell that trains and measures one configuration."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """Something to be measured."""

    kind: str
    """`QUALITY`, or what else is measured, of trained runs."""
    label: str
    """What people call it; another label makes no other cell."""
    seed: int = 0
    trees: dict[str, Tree]
    """Configurations by role; a quality cell has one, of the role ""."""
    options: dict[str, Any] = {}
    """Options of the measurement."""

    @property
    def tree(self) -> Tree:
        """The one configuration of a quality cell."""
        return self.trees[""]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A finished cell."""

    kind: str
    label: str
    seed: int
    configs: dict[str, Any]
    """Whole `RunConfig`s by role, defaults included."""
    options: dict[str, Any]
    revision: str
    """Git revision of the code; "+" where files had been changed."""
    machine: str
    seconds: float
    result: dict[str, Any]


class CellStore:
    """Finished cells of a setup, a file each, and beside them what is too big to be kept."""

    def __init__(self, setup: Setup, directory: Path) -> None:
        self.setup = setup
        self.cells = directory / "cells"
        """Directory of the finished cells, to be committed."""
        self.runs = directory / "runs"
        """Directory of trained networks and predictions, by key; they can be made again."""

    def key(self, kind: str, trees: dict[str, Tree], options: dict[str, Any]) -> str:
        """Twelve characters that say what a cell is of: all that decides what comes out."""
        asked = {
            "kind": kind,
            "data": self.setup.data,
            "trees": {role: _deciding(self._whole(tree)) for role, tree in trees.items()},
            "options": options,
        }
        plain = msgspec.json.encode(asked, order="deterministic")
        return hashlib.sha256(plain).hexdigest()[:12]

    def path(self, cell: Cell) -> Path:
        """The cell's file."""
        slug = re.sub(r"[^a-z0-9]+", "-", cell.label.lower()).strip("-")
        key = self.key(cell.kind, cell.trees, cell.options)
        return self.cells / f"{cell.kind}-{slug}-{cell.seed}-{key}.json"

    def run(self, tree: Tree) -> Path:
        """Where the run of a configuration, and its predictions, are."""
        return self.runs / self.key(QUALITY, {"": tree}, {})

    def load(self, cell: Cell) -> Record | None:
        """The finished cell, under whatever label; None if it is still to be measured."""
        key = self.key(cell.kind, cell.trees, cell.options)
        for path in sorted(self.cells.glob(f"{cell.kind}-*-{key}.json")):
            try:
                return msgspec.json.decode(path.read_bytes(), type=Record)
            except (OSError, msgspec.MsgspecError) as error:
                raise DataError(
                    f"{path} cannot be read ({error}); delete it to measure it again"
                ) from error
        return None

    def save(self, cell: Cell, result: dict[str, Any], seconds: float) -> Record:
        """Keep what was measured; whole or not at all.

        Raises:
            DataError: it cannot be written.
        """
        record = Record(
            kind=cell.kind,
            label=cell.label,
            seed=cell.seed,
            configs={role: self._whole(tree) for role, tree in cell.trees.items()},
            options=cell.options,
            revision=revision(),
            machine=machine(),
            seconds=round(seconds, 1),
            result=result,
        )
        path = self.path(cell)
        try:
            with replacing(path) as file:
                file.write(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
        except OSError as error:
            raise DataError(
                f"{path} cannot be written ({reason(error)}); see to that and start again: finished"
                " cells are kept"
            ) from error
        return record

    def _whole(self, tree: Tree) -> dict[str, Any]:
        whole: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self.setup.config(tree)))
        whole["data"].pop("path")
        return whole


@cache
def revision() -> str:
    """The git revision of the code that runs; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        asked = ["git", "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty=+"]
        found = subprocess.run(asked, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _deciding(config: dict[str, Any]) -> dict[str, Any]:
    """A whole configuration without what does not matter to what comes out; nothing withheld is as
    before anything could be.
    """
    training = {
        name: value
        for name, value in config["training"].items()
        if name not in {"checkpoint_s", "log"}
    }
    samples = {
        name: value for name, value in config["samples"].items() if value or name != "withheld"
    }
    # Cells of before there were rates are of networks without them.
    schema = {
        name: value for name, value in config["schema"].items() if name != "positive" or value
    }
    whole = {name: part for name, part in config.items() if name != "name"}
    return whole | {"schema": schema, "training": training, "samples": samples}
