"""``python -m tests.fuzz``: hostile clients of every kind against a scorer of its own."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from lifelong.machine import machine
from tests.fuzz.cases import Port
from tests.fuzz.run import Run, run_seed

WRONG = 3
"""Exit status where something was found."""


def main(
    *,
    requests: Annotated[int, typer.Option(min=1, help="Hostile connections.")] = 100_000,
    seed: Annotated[int, typer.Option()] = 1,
    first: Annotated[int, typer.Option(help="Number of the first case, to repeat one.")] = 0,
    warm: Annotated[int, typer.Option(help="Cases before memory is measured.")] = 10_000,
    port: Annotated[str | None, typer.Option(help="http or grpc; both unless told.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep log, bundle and store here.")] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="- for standard output.")
    ] = None,
) -> None:
    """Send a scorer what no client should, and look how it is."""
    if port not in {None, "http", "grpc"}:
        raise typer.BadParameter(f"no port {port!r}; there are http and grpc")
    only = cast(Port | None, port)
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    told: list[str] = []

    def tell(run: Run) -> None:
        if run.requests % 5_000 < 200:
            memory = f"{run.memory_now >> 20} MiB"
            console.print(f"{run.requests:,} of {requests:,}, {memory}, {len(run.wrong)} wrong")
        while len(told) < len(run.wrong):
            told.append(run.wrong[len(told)])
            console.print(f"  {told[-1]}", markup=False)

    with tempfile.TemporaryDirectory(prefix="lifelong-fuzz-") as name:
        directory = keep or Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        run = run_seed(seed, requests, directory, first=first, warm=warm, port=only, told=tell)
    command = "python -m tests.fuzz " + shlex.join(sys.argv[1:])
    report = {"machine": machine(), "command": command, **run.row()}
    if json_out is not None and str(json_out) != "-":
        json_out.write_text(json.dumps(report, indent=1) + "\n")
    _show(console, run)
    for one in run.wrong[len(told) :]:
        console.print(f"  {one}", markup=False)
    if str(json_out) == "-":
        print(json.dumps(report, indent=1))  # noqa: T201 - the result
    sys.exit(WRONG if run.wrong else 0)


def _show(console: Console, run: Run) -> None:
    table = Table(title=f"Seed {run.seed}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    figures = {
        "connections": f"{run.requests:,} in {run.seconds:.0f} s",
        **{f"  {kind}": f"{count:,}" for kind, count in sorted(run.kinds.items())},
        "held open or slow": f"{run.held:,}",
        "told": "",
        **{f"  {words}": f"{count:,}" for words, count in run.told.most_common()},
        "good requests in between": f"{run.good:,}",
        "memory at first, warm, at last": ", ".join(f"{one >> 20} MiB" for one in run.memory),
        "descriptors at first, at last": ", ".join(map(str, run.descriptors)),
        "wrong": f"{len(run.wrong)}",
    }
    for name, value in figures.items():
        table.add_row(name, value)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
