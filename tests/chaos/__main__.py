"""``python -m tests.chaos``: a proof by fault injection, on a Kafka and workers of its own."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.kafka.jars import apache_obstacle
from tests.chaos.faults import FAULTS
from tests.chaos.report import compose, new_console, page, show, tell
from tests.chaos.run import Run, run_seed
from tests.chaos.scene import Size

WRONG = 3
"""Exit status where something was found."""


def main(
    *,
    seeds: Annotated[int, typer.Option(min=1, help="How many runs.")] = 20,
    first: Annotated[int, typer.Option(help="The first seed.")] = 1,
    events: Annotated[int, typer.Option(min=1000, help="Events of a run.")] = 1_000_000,
    users: Annotated[int, typer.Option(min=1)] = 3000,
    rate: Annotated[float, typer.Option(help="Events a second during a fault.")] = 10_000,
    extra: Annotated[int, typer.Option(min=0, help="Faults of a run beyond one of each.")] = 4,
    fault: Annotated[list[str] | None, typer.Option(help="Only these faults.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Seeds run at the same time.")] = 1,
    keep: Annotated[Path | None, typer.Option(help="Keep logs, broker and store here.")] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="- for standard output.")
    ] = None,
    page_out: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Write the page, Markdown.")
    ] = None,
) -> None:
    """Inject faults at moments drawn from seeds, and check that nothing is lost or doubled."""
    console = new_console()
    obstacle = apache_obstacle()
    if obstacle is not None:
        raise typer.BadParameter(f"Apache Kafka cannot run here: {obstacle}")
    unknown = set(fault or ()) - set(FAULTS)
    if unknown:
        raise typer.BadParameter(f"no fault {min(unknown)!r}; there are {', '.join(FAULTS)}")

    same = [f"--events={events}", f"--users={users}", f"--rate={rate:g}", f"--extra={extra}"]
    same += [f"--fault={one}" for one in fault or ()]
    runs: list[Run] = []
    report: dict[str, Any] = {}
    size, chosen = Size(events, users, rate), tuple(fault or FAULTS)

    def run_apart(seed: int) -> Run:
        with _directory(keep, seed) as directory:
            return _run_apart(seed, size, directory, chosen, extra)

    with ThreadPoolExecutor(jobs) as pool:
        for run in pool.map(run_apart, range(first, first + seeds)):
            runs.append(run)
            wrong = "; ".join(run.wrong)
            console.print(f"seed {run.seed} {run.seconds:6.1f} s  {wrong or 'nothing wrong'}")
            if wrong:
                console.print(f"  again: {_command(1, run.seed, same)}")
            # After each, so that a run that is interrupted leaves what was found.
            report = compose(runs, _command(len(runs), first, same))
            _write(report, json_out, page_out)
    show(console, report)
    if str(json_out) == "-":
        print(json.dumps(report, indent=1))  # noqa: T201 - the result
    sys.exit(WRONG if report["wrong"] else 0)


def _run_apart(seed: int, size: Size, directory: Path, faults: tuple[str, ...], extra: int) -> Run:
    """A seed's run in a process of its own, so that none can spoil another."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(
                run_seed, seed, size, directory, faults, extra=extra, told=partial(tell, seed)
            ).result()
        except BrokenProcessPool:
            return Run(seed, failure="the process that injected the faults has crashed")


@contextmanager
def _directory(keep: Path | None, seed: int) -> Iterator[Path]:
    """Where a run keeps its files."""
    if keep is not None:
        directory = keep / f"seed-{seed}"
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="lifelong-chaos-") as name:
        yield Path(name)


def _command(seeds: int, first: int, options: list[str]) -> str:
    """What repeats these seeds."""
    return "python -m tests.chaos " + shlex.join([f"--seeds={seeds}", f"--first={first}", *options])


def _write(report: dict[str, Any], json_out: Path | None, page_out: Path | None) -> None:
    if json_out is not None and str(json_out) != "-":
        json_out.write_text(json.dumps(report, indent=1) + "\n")
    if page_out is not None:
        page_out.write_text(page(report))


if __name__ == "__main__":
    typer.run(main)
