"""The committed tables are what the committed cells say, and a cell is what its code gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lifelong.experiments.cells import QUALITY, Cell, CellStore
from lifelong.experiments.quality import measure_quality
from lifelong.experiments.setups import find_setup
from lifelong.experiments.tables import METHODS, TABLES
from lifelong.learning import read_samples
from models.protocols import Split

COMMITTED = Path(__file__).parents[3] / "docs" / "experiments"
TABLES_OF = sorted(path for path in COMMITTED.glob("*/*.json") if path.stem in TABLES)

OTHER_MACHINE = 0.003
"""How far another processor's rounding may lead training astray, in AUC."""


def decoded(path: Path) -> Any:
    return json.loads(path.read_text())


def test_there_are_committed_tables() -> None:
    assert TABLES_OF


@pytest.mark.parametrize("path", TABLES_OF, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_table_is_what_its_cells_say(path: Path) -> None:
    for row in decoded(path)["rows"]:
        for seed, key in enumerate(row["cells"]):
            (cell,) = (path.parent / "cells").glob(f"{QUALITY}-*-{key}.json")
            record = decoded(cell)
            assert record["seed"] == seed
            assert row["converged"]["auc"][seed] == record["result"]["converged"]["auc"]
            assert row["one_epoch"]["auc"][seed] == record["result"]["one_epoch"]["auc"]


def test_a_cell_measured_again_gives_the_same(tmp_path: Path) -> None:
    setup = find_setup("shipped", None, "small")
    committed = CellStore(setup, COMMITTED / setup.name)
    tree = setup.method_tree(METHODS["DIN"]) | {"seed": 0}
    tree["training"] |= {"learning_rate": setup.rates[-1]}
    record = committed.load(Cell(kind=QUALITY, label="DIN", trees={"": tree}))
    assert record is not None
    config = setup.config(tree)
    samples, _ = read_samples(config)
    assert isinstance(samples, Split)
    again = measure_quality(config, samples, tmp_path)
    assert again["samples"] == record.result["samples"]
    for when in ("one_epoch", "converged"):
        for measure in ("auc", "gauc"):
            kept = record.result[when][measure]
            assert again[when][measure] == pytest.approx(kept, abs=OTHER_MACHINE)
