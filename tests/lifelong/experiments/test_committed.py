"""The committed tables are what the committed cells say, and a cell is what its code gives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from lifelong.experiments.cells import QUALITY, Cell, CellStore
from lifelong.experiments.quality import measure_quality
from lifelong.experiments.setups import find_setup
from lifelong.experiments.tables import METHODS, TABLES
from lifelong.learning import read_samples
from models.data.splits import Split

COMMITTED = Path(__file__).parents[3] / "docs" / "experiments"
PAGE = COMMITTED / "README.md"
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


def linked_cells() -> Iterator[tuple[str, str, str]]:
    """Cells of the page's tables whose columns link to tables: link, row's label, and text."""
    links: list[str] = []
    for line in PAGE.read_text().splitlines():
        if not line.startswith("|"):
            links = []
            continue
        label, *said = (cell.strip() for cell in line.strip("|").split("|"))
        if not links:
            links = re.findall(r"\]\((\S+/\S+)\.md\)", line)
        elif len(links) == len(said):
            yield from ((link, label, cell) for link, cell in zip(links, said, strict=True))


def test_the_page_says_what_its_tables_say() -> None:
    checked = 0
    for link, label, said in linked_cells():
        table = decoded(COMMITTED / f"{link}.json")
        for row in table["rows"]:
            if row["label"] == label and (figures := re.findall(r"[-+]?\d+\.\d+", said)):
                where = f"{label} of {link}: {said}"
                assert set(figures) <= figures_of(table, row), where
                if any(figure[0] in "+-" for figure in figures):
                    assert ("**" in said) == resolved(row), where
                checked += 1
    assert checked > 100


def figures_of(table: Any, row: Any) -> set[str]:
    """What may be said of a row: AUC and its spread, after one epoch, its difference, RI."""
    aucs = row["converged"]["auc"]
    found = {f"{fmean(aucs):.4f}", f"{stdev(aucs):.4f}", f"{fmean(row['one_epoch']['auc']):.4f}"}
    if difference := row["difference"]:
        found.add(f"{difference['auc']['observed']:+.4f}")
    if relevance := table["extras"].get("relevance"):
        found.add(f"{fmean(seed['methods'][row['label']]['ri'] or 0 for seed in relevance):.2f}")
    return found


def resolved(row: Any) -> bool:
    """Whether the interval of its difference leaves out zero."""
    interval = row["difference"]["auc"]
    return not interval["low"] <= 0 <= interval["high"]


@pytest.mark.long
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
