"""``python -m tests.soak``: a scorer under mixed load and faults, whose every answer is checked."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tests.soak.faults import faults_of
from tests.soak.places import PLACES
from tests.soak.report import compose, new_console, show, tell
from tests.soak.run import run_seed

WRONG = 3
"""Exit status where something was found."""


def main(
    *,
    seconds: Annotated[float, typer.Option(min=5, help="How long each run is loaded.")] = 1800,
    seed: Annotated[list[int] | None, typer.Option(help="A run; may be given again.")] = None,
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 100,
    processes: Annotated[int, typer.Option(min=2, help="Of the scorer.")] = 2,
    store: Annotated[
        str, typer.Option(help=f"That the scorer reads: {', '.join(PLACES)}.")
    ] = "lmdb",
    fault: Annotated[list[str] | None, typer.Option(help="Only these faults.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep logs, bundles and stores here.")] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="- for standard output.")
    ] = None,
) -> None:
    """Load a scorer, do to it what happens to scorers, and check every answer."""
    if store not in PLACES:
        raise typer.BadParameter(f"no store {store!r}; there are {', '.join(PLACES)}")
    there_are = faults_of(store)
    if unknown := set(fault or ()) - set(there_are):
        raise typer.BadParameter(f"no fault {min(unknown)!r}; there are {', '.join(there_are)}")
    console = new_console()
    runs = []
    command = "python -m tests.soak " + shlex.join(sys.argv[1:])
    for one in seed or [1]:
        with _directory(keep, one) as directory:
            run = run_seed(
                one,
                seconds,
                directory,
                tuple(fault or ()),
                store=store,
                rate=rate,
                processes=processes,
                told=partial(tell, one),
            )
        runs.append(run)
        # After each, so that a run that is interrupted leaves what was found.
        report = compose(runs, command)
        if json_out is not None and str(json_out) != "-":
            json_out.write_text(json.dumps(report, indent=1) + "\n")
    report = compose(runs, command)
    show(console, report)
    if str(json_out) == "-":
        print(json.dumps(report, indent=1))  # noqa: T201 - the result
    sys.exit(WRONG if report["wrong"] else 0)


@contextmanager
def _directory(keep: Path | None, seed: int) -> Iterator[Path]:
    """Where a run keeps its files."""
    if keep is not None:
        directory = keep / f"seed-{seed}"
        for old in directory.glob("*"):
            if old.name == "bundles":
                continue
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="lifelong-soak-") as name:
        yield Path(name)


if __name__ == "__main__":
    typer.run(main)
