"""The report: figures for programs, tables for people, and the page of docs/chaos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from lifelong.machine import machine
from tests.chaos.run import RECOVERY_S, Injected, Run
from tests.chaos.scene import BUDGET_S

SUMMED: Final = (
    "events",
    "lost",
    "doubled",
    "foreign",
    "disordered",
    "destroyed",
    "reported",
    "unreported",
    "went_back",
    "not_current",
    "healthy_while_stuck",
    "not_ready_again",
)
"""Figures of a run that are added up over all."""


def compose(runs: Sequence[Run], command: str) -> dict[str, Any]:
    """The report of some runs."""
    rows = [run.row() for run in runs]
    recoveries = [one.recovery_s for run in runs for one in run.injected]
    return {
        "machine": machine(),
        "command": command,
        "runs": len(runs),
        **{name: sum(row.get(name, 0) for row in rows) for name in SUMMED},
        "injections": len(recoveries),
        "recovery_s_max": max((s for s in recoveries if s is not None), default=0.0),
        "never_recovered": recoveries.count(None),
        "current_s_max": max((row["current_s"] for row in rows), default=0.0),
        "wrong": sum(bool(run.wrong) for run in runs),
        "faults": by_fault(one for run in runs for one in run.injected),
        "results": rows,
    }


def by_fault(injected: Iterable[Injected]) -> list[dict[str, Any]]:
    """How often each fault was injected, how soon it was told, and how long recovery took."""
    found: dict[str, list[Injected]] = {}
    for one in injected:
        found.setdefault(one.fault, []).append(one)
    rows = []
    for fault, ones in sorted(found.items()):
        told = sorted(one.told_s for one in ones if one.told_s is not None)
        recovered = sorted(one.recovery_s for one in ones if one.recovery_s is not None)
        rows.append(
            {
                "fault": fault,
                "injected": len(ones),
                "told_s_median": _middle(told),
                "told_s_max": told[-1] if told else None,
                "recovery_s_median": _middle(recovered),
                "recovery_s_max": recovered[-1] if recovered else None,
                "never_recovered": len(ones) - len(recovered),
            }
        )
    return rows


def _middle(ordered: Sequence[float]) -> float | None:
    return ordered[len(ordered) // 2] if ordered else None


def new_console() -> Console:
    """Standard output is for the result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def tell(seed: int, one: Injected) -> None:
    """Print a fault that has been injected."""
    new_console().print(
        f"seed {seed} {one.at_s:6.1f} s  {one.fault}: {one.what};"
        f" lasted {one.lasted_s:.1f} s, recovery {seconds(one.recovery_s)}"
    )


def show(console: Console, report: dict[str, Any]) -> None:
    """Print what was injected and what was found."""
    faults = Table(title=f"Faults, {report['machine']}", title_justify="left")
    faults.add_column("fault")
    for name in ("injected", "told, median", "longest", "recovery, median", "longest", "never"):
        faults.add_column(name, justify="right")
    for row in report["faults"]:
        faults.add_row(
            row["fault"],
            str(row["injected"]),
            seconds(row["told_s_median"], "-"),
            seconds(row["told_s_max"], "-"),
            seconds(row["recovery_s_median"]),
            seconds(row["recovery_s_max"]),
            str(row["never_recovered"]),
        )
    console.print(faults)
    found = Table(title="What was found", title_justify="left", show_header=False)
    found.add_column()
    found.add_column(justify="right")
    for name in ("runs", *SUMMED):
        found.add_row(name.replace("_", " "), f"{report[name]:,}")
    console.print(found)


def page(report: dict[str, Any]) -> str:
    """The page that is made from a report."""
    total = {
        "runs": report["runs"],
        "events": report["events"],
        "faults": report["injections"],
        "lost": report["lost"],
        "doubled": report["doubled"],
        "foreign": report["foreign"],
        "disordered": report["disordered"],
        "unreported": report["unreported"],
        "interests gone back": report["went_back"],
        "not current": report["not_current"],
        "healthy while stuck": report["healthy_while_stuck"],
        "not ready again": report["not_ready_again"],
    }
    faults = "\n".join(
        f"| {row['fault']} | {row['injected']} | {seconds(row['told_s_median'], '')} |"
        f" {seconds(row['told_s_max'], '')} | {seconds(row['recovery_s_median'])} |"
        f" {seconds(row['recovery_s_max'])} |"
        for row in report["faults"]
    )
    wrong = "\n".join(
        f"- seed {row['seed']}: {'; '.join(row['wrong'])}"
        for row in report["results"]
        if row["wrong"]
    )
    return f"""\
# Proof by fault injection

Numbered events go through Apache Kafka and three worker processes into one LMDB store, while faults
are injected at moments that a seed draws. Afterwards every user's sequence is held against what the
broker took: which events, how often, and in which order. This page and [report.json](report.json)
are made by

    {report["command"]}

on {report["machine"]}. The same with `--seeds=1 --first=7` repeats
seed 7; `make chaos` runs more and longer.

| {" | ".join(total)} |
|{" ---: |" * len(total)}
| {" | ".join(f"{value:,}" for value in total.values())} |

- *Lost*: Kafka held the event until it could be read, and no sequence has it.
- *Unreported*: {report["destroyed"]:,} events were destroyed in Kafka before a worker had stored
  them, by the faults that do so; the workers reported {report["reported"]:,}.
- *Foreign*: of an aborted transaction, or of another user.
- *Disordered*: after a newer event of the same user and partition.
- *Interests gone back*: a state sampled during a run was older than the one before it.
- *Not current*: a user with a full segment that no state covered 60 s after the last event.
- *Healthy while stuck*: a partition that holds events stood still, or a fault that must be told
  held, for {BUDGET_S:.0f} s, and every worker said that it was ready.
- *Not ready again*: a worker was not ready {RECOVERY_S:.0f} s after all was in the store.

*Told* is for how long a fault that keeps workers from getting on had to last beyond its own time
until one said that it was not ready (0.0: it had said so before). *Recovery* is the time from the
end of a fault until the newest event of every partition is in the store. It holds the start of a
worker where one was killed, and what was sent meanwhile.

| fault | injected | told, median | longest | recovery, median | longest |
| --- | ---: | ---: | ---: | ---: | ---: |
{faults}

## What went wrong

{wrong or "Nothing."}
"""


def seconds(value: float | None, none: str = "never") -> str:
    """A time for people."""
    return none if value is None else f"{value:.1f} s"
