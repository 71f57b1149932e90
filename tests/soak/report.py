"""The report: figures for programs, tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from lifelong.machine import machine
from tests.soak.run import Injected, Run


def compose(runs: Sequence[Run], command: str) -> dict[str, Any]:
    """The report of some runs."""
    return {
        "machine": machine(),
        "command": command,
        "wrong": sum(bool(run.wrong) for run in runs),
        "results": [run.row() for run in runs],
    }


def new_console() -> Console:
    """Standard output is for the result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def tell(seed: int, one: Injected) -> None:
    """Print a fault that has been injected."""
    new_console().print(
        f"seed {seed} {one.at_s:7.1f} s  {one.fault}: {one.what}; lasted {one.lasted_s:.1f} s"
    )


def show(console: Console, report: dict[str, Any]) -> None:
    """Print what was done and what was found."""
    for row in report["results"]:
        table = Table(
            title=f"Seed {row['seed']}, {row['store']}", title_justify="left", show_header=False
        )
        table.add_column()
        table.add_column(justify="right")
        for name, value in _figures(row).items():
            table.add_row(name, value)
        console.print(table)
        for one in [*row["wrong"], *row["examples"]]:
            console.print(f"  {one}", markup=False)


def _figures(row: dict[str, Any]) -> dict[str, str]:
    grown = [f"{warm >> 20} to {last >> 20} MiB" for warm, last in row["memory"].values()]
    files = row["descriptors"]
    return {
        "requests": f"{row['requests']:,} in {row['seconds']:.0f} s",
        **{f"  {name}": f"{count:,}" for name, count in row["outcomes"].items()},
        "clients that hung up": f"{row['hung_up']:,}",
        "CTRs compared": f"{row['ctrs']:,}, at most {row['largest_difference']:.1e} apart",
        **{f"  answers by {name}": f"{count:,}" for name, count in row["answers"].items()},
        "probes of readiness": f"{row['probes']:,}",
        "faults": f"{sum(row['faults'].values()):,}",
        **{f"  {name}": f"{count:,}" for name, count in row["faults"].items()},
        "memory of a process": ", ".join(grown) or "none grew old",
        "descriptors of a process": ", ".join(f"{value}" for value in files.values()),
        "wrong": f"{len(row['wrong'])}",
    }
