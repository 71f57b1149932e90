"""What a table says: as plain values, as Markdown, and in the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markdown import Markdown

from infra.errors import SettingsError
from infra.files import reason, replacing
from lifelong.experiments import extra_tables
from lifelong.experiments.cells import Record
from lifelong.experiments.extra_tables import lines, spread
from lifelong.experiments.setups import Setup
from lifelong.experiments.tables import Row, Table

FILES_ONLY: Final = ("GAUC", "one epoch: AUC", "epochs", "learning rate")
"""Columns for which a terminal has no room."""


@dataclass(frozen=True)
class RowResult:
    """A line of a table, measured."""

    row: Row
    learning_rate: float
    records: list[Record]
    """Finished cells, a seed each."""
    cells: list[str]
    """Keys of these cells."""
    difference: dict[str, Any] | None
    """Difference to the reference (`quality.measure_difference`); None: it is the reference,
    or there is none."""


def compose(
    name: str,
    table: Table,
    setup: Setup,
    *,
    seeds: int,
    trained: Sequence[Record],
    rows: Sequence[RowResult],
    extras: Mapping[str, Any],
    left_out: Sequence[str],
    not_chosen: Sequence[str] = (),
) -> dict[str, Any]:
    """A table's plain values, from which its Markdown and its figures are made.

    Args:
        trained: all runs that the table is of, those of extras too.
        left_out: labels of rows that the data do not allow.
        not_chosen: labels of rows that were not asked for.
    """
    first = trained[0] if trained else None
    tree = setup.tree
    return {
        "name": name,
        "title": table.title,
        "source": table.source,
        "figure": table.figure,
        "x_name": table.x_name or None,
        "setup": setup.name,
        "setup_title": setup.title,
        "scale": setup.scale,
        "data": None if first is None else first.result["samples"] | _lengths(first, table),
        "training": {key: tree["training"].get(key) for key in ("batch", "epochs", "patience")},
        "rates": list(setup.rates),
        "seeds": seeds,
        "reference": table.reference,
        "rows": [_row(each) for each in rows],
        "extras": dict(extras),
        "left_out": list(left_out),
        "not_chosen": list(not_chosen),
        "machines": sorted({each.machine for each in trained}),
        "revisions": sorted({each.revision for each in trained}),
        "seconds": round(sum(each.seconds for each in trained), 1),
    }


def _lengths(record: Record, table: Table) -> dict[str, int | None]:
    """M, and L where it is one for all rows."""
    config = record.configs[""]
    length = None if table.x_name == "L" else config["long_term"]["L"]
    return {"L": length, "M": config["network"]["M"]}


def _row(each: RowResult) -> dict[str, Any]:
    results = [record.result for record in each.records]

    def collected(when: str) -> dict[str, list[float]]:
        return {name: [result[when][name] for result in results] for name in results[0][when]}

    return {
        "label": each.row.label,
        "method": each.row.method,
        "x": each.row.x,
        "learning_rate": each.learning_rate,
        "epochs": [result["epochs"] for result in results],
        "curves": [[epoch["validation"]["auc"] for epoch in result["curve"]] for result in results],
        "one_epoch": collected("one_epoch"),
        "converged": collected("converged"),
        "difference": each.difference,
        "seconds": [record.seconds for record in each.records],
        "cells": each.cells,
    }


def write(found: Mapping[str, Any], directory: Path) -> list[str]:
    """Write a table as JSON and as Markdown, each whole or not at all; the files.

    Raises:
        SettingsError: they cannot be written.
    """
    stem = directory / str(found["name"])
    texts = {
        stem.with_suffix(".json"): json.dumps(found, indent=1, ensure_ascii=False) + "\n",
        stem.with_suffix(".md"): markdown(found),
    }
    try:
        for path, text in texts.items():
            with replacing(path) as file:
                file.write(text.encode())
    except OSError as error:
        raise SettingsError(f"--out {directory} cannot be written: {reason(error)}") from error
    return [str(path) for path in texts]


def markdown(found: Mapping[str, Any]) -> str:
    """The table for a page."""
    parts = [f"# {found['title']}", f"*{found['source']}. {_subject(found)}*"]
    if found["rows"]:
        parts.append(lines(*_table(found)))
    parts += _beside(found)
    if found["rows"]:
        parts.append(
            "± is the standard deviation over seeds. The difference is of the mean over seeds, with"
            " its 95 % interval by resampling users (seeds are taken as they are); **bold** where"
            " that leaves out zero. A variant has the learning rate of its method."
        )
    if found["machines"]:
        parts.append(
            f"Machine: {'; '.join(found['machines'])}. Revision: {', '.join(found['revisions'])}."
            f" These runs took {found['seconds'] / 60:.0f} minutes."
        )
    return "\n\n".join(parts) + "\n"


def _subject(found: Mapping[str, Any]) -> str:
    data = found["data"]
    if data is None:
        return f"{found['setup_title']}, scale {found['scale']}."
    length = f"L = {data['L']}, " if data["L"] else ""
    rates = " or ".join(f"{rate:g}" for rate in found["rates"])
    return (
        f"{found['setup_title']}, scale {found['scale']}: {data['users']:,} users,"
        f" {data['items']:,} items, {data['training']:,} requests to learn from, {data['test']:,}"
        f" to test; {length}M = {data['M']}; seeds: {found['seeds']}; learning rate {rates} by"
        " validation, seed 0."
    )


def _beside(found: Mapping[str, Any]) -> list[str]:
    """What was measured beside quality, and what was not."""
    parts = extra_tables.parts(found["extras"])
    if found["left_out"]:
        names = ", ".join(found["left_out"])
        parts.append(f"Left out, for the data have no behavior features: {names}.")
    if found.get("not_chosen"):
        parts.append(f"Not measured here: {'; '.join(found['not_chosen'])}.")
    return parts


def _table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table."""
    more = extra_tables.columns(found["extras"])
    difference = f"AUC − {found['reference']}"
    header = ["", "AUC", "GAUC", difference, "one epoch: AUC", "epochs", "learning rate"]
    rows = [
        [
            row["label"],
            spread(row["converged"].get("auc", [])),
            spread(row["converged"].get("gauc", [])),
            _difference(row["difference"], "auc"),
            spread(row["one_epoch"].get("auc", [])),
            ", ".join(map(str, row["epochs"])),
            f"{row['learning_rate']:g}",
            *(cell(row["label"]) for cell in more.values()),
        ]
        for row in found["rows"]
    ]
    return [*header, *more], rows


def _difference(found: Mapping[str, Any] | None, name: str) -> str:
    if found is None:
        return extra_tables.NONE
    one = found[name]
    text = f"{one['observed']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})"
    return f"**{text}**" if one["low"] > 0 or one["high"] < 0 else text


def show(console: Console, found: Mapping[str, Any]) -> None:
    """Print what fits a terminal: quality and what was measured beside it; the rest is in files."""
    console.print(f"[bold]{found['title']}[/bold] ({found['source']}). {_subject(found)}")
    parts = _beside(found)
    if found["rows"]:
        header, rows = _table(found)
        kept = [place for place, name in enumerate(header) if name not in FILES_ONLY]
        shown = lines(
            [header[place] for place in kept], [[row[place] for place in kept] for row in rows]
        )
        parts = [shown, f"In the files: {', '.join(FILES_ONLY)}.", *parts]
    console.print(Markdown("\n\n".join(parts)))
    for file in found["files"]:
        console.print(file, highlight=False, soft_wrap=True)
