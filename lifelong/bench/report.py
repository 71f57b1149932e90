"""What a bench prints: one JSON object for programs, a table and a bar chart for people."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from lifelong.machine import machine

BAR: Final = 24
"""Characters of the longest bar; the whole table fits into 80."""


def compose(
    ours: str, rounds: dict[str, list[float]], unit: str, peers: list[str]
) -> dict[str, Any]:
    """The bench's result: medians over rounds, and per peer how many times faster ours is.

    Args:
        ours: name of our own row.
        rounds: per name, one value a round; more is better.
        unit: of the values.
        peers: the names to compare with.
    """
    medians = {name: median(values) for name, values in rounds.items() if values}
    return {
        "machine": machine(),
        "rounds": max(len(values) for values in rounds.values()),
        "peers": peers,
        "results": [
            {"name": name, "value": round(value, 1), "unit": unit}
            for name, value in medians.items()
        ],
        # Pair by pair, since the machine's speed drifts between rounds.
        "ratios": {
            peer: round(median(a / b for a, b in zip(rounds[ours], rounds[peer], strict=False)), 2)
            for peer in peers
            if rounds.get(peer)
        },
    }


def show(title: str, result: dict[str, Any], chart: Path | None) -> None:
    """Print the table with bars; draw the chart if a file is named for it."""
    console = Console()
    console.print(_across(title, result) if "B" in result["results"][0] else _bars(title, result))
    for more in result.get("tables", ()):
        console.print(_more(more))
    if chart is not None:
        draw = _draw_loads if "loads" in result else _draw
        draw(title, result, chart)
        console.print(f"chart: {chart}", highlight=False)


def _bars(title: str, result: dict[str, Any]) -> Table:
    """A row with a bar for each result."""
    most = max(row["value"] for row in result["results"])
    ratios = result["ratios"]
    table = Table(title=f"{title}: {result['machine']}", title_justify="left")
    table.add_column("")
    table.add_column(result["results"][0]["unit"], justify="right", no_wrap=True, min_width=9)
    if ratios:
        table.add_column("ours is", justify="right", no_wrap=True, min_width=14)
    table.add_column("", width=BAR)
    for row in result["results"]:
        faster = f"{ratios[row['name']]:.1f} x faster" if row["name"] in ratios else ""
        table.add_row(
            row["name"],
            f"{row['value']:,.0f}",
            *([faster] if ratios else []),
            Bar(most, 0, row["value"], width=BAR),
        )
    return table


def _across(title: str, result: dict[str, Any]) -> Table:
    """A row for each method and L, a column for each number of candidates; of a peer, or of another
    method that is held against, how many times faster ours is.
    """
    results = result["results"]
    sizes = sorted({row["B"] for row in results})
    table = Table(title=f"{title}, {results[0]['unit']}: {result['machine']}", title_justify="left")
    table.add_column("")
    table.add_column("L", justify="right")
    for size in sizes:
        table.add_column(f"B = {size:,}", justify="right")
    table.add_column("ours is", justify="right")
    cells: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for row in results:
        cells.setdefault((row["method"], row["L"]), {})[row["B"]] = row
    for (method, L), of_size in cells.items():
        ratio = result["ratios"].get(of_size[sizes[-1]]["name"])
        values = [f"{of_size[size]['value']:,.0f}" if size in of_size else "" for size in sizes]
        table.add_row(method, f"{L:,}", *values, f"{ratio:.1f} x faster" if ratio else "")
    return table


def _more(more: dict[str, Any]) -> Table:
    """A further table: its columns' names, and values by the names of its rows."""
    table = Table(title=more["title"], title_justify="left")
    table.add_column("", no_wrap=True)
    for column in more["columns"]:
        table.add_column(column, justify="right", no_wrap=True)
    for name, values in more["rows"].items():
        table.add_row(
            name, *(f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in values)
        )
    return table


def _draw_loads(_title: str, result: dict[str, Any], path: Path) -> None:
    """Goodput and latency against what was offered, a column for each number of candidates."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from lifelong.drawing.style import BLUE, DASHED, GRAY, LIGHT_BLUE, head, styled

    loads = result["loads"]
    with styled():
        figure, axes = plt.subplots(
            2, len(loads), figsize=(4.2 * len(loads), 6), sharex="col", squeeze=False
        )
        for (upper, lower), load in zip(axes.T, loads, strict=True):
            rows = load["rows"]
            offered = [row["offered"] for row in rows]
            upper.plot(offered, [row["value"] for row in rows], "o-", color=BLUE)
            upper.axvline(load["capacity"], color=GRAY, linestyle=DASHED, linewidth=1)
            upper.set_title(f"B = {load['B']:,}, deadline {load['deadline_ms']:.0f} ms", loc="left")
            for key, color in (("p99_ms", BLUE), ("p50_ms", LIGHT_BLUE)):
                quantiles = [row[key] for row in rows]
                lower.plot(offered, quantiles, "o-", color=color, label=key.removesuffix("_ms"))
            lower.axhline(load["deadline_ms"], color=GRAY, linestyle=DASHED, linewidth=1)
            upper.set_ylim(bottom=0)
            lower.set_yscale("log")
            lower.set_xlabel("offered, requests/s")
            for axis in (upper, lower):
                axis.xaxis.set_major_formatter("{x:,.0f}")
            upper.yaxis.set_major_formatter("{x:,.0f}")
            lower.yaxis.set_major_formatter("{x:g}")
            lower.yaxis.set_minor_formatter("{x:g}")
        axes[0][0].set_ylabel("answered in time, rankings/s")
        axes[1][0].set_ylabel("latency of rankings, ms")
        axes[1][0].legend(frameon=False)
        below = f"Dashed: what it can do, and the deadline. {result['machine']}"
        head(figure, "What a scorer answers in time, by what is offered", below)
        figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw(title: str, result: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from lifelong.drawing.style import BLUE, GRAY, LIGHT_BLUE, PALE

    # Of a bench that tells stages, the rows that have them.
    rows = [row for row in result["results"] if "stages" in row] or result["results"]
    rows = rows[::-1]
    names = [row["name"] for row in rows]
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.45 * len(names)))
    if "stages" in rows[0]:
        ends = [0.0] * len(rows)
        for stage, color in zip(rows[0]["stages"], (PALE, GRAY, LIGHT_BLUE, BLUE), strict=True):
            spent = [row["stages"][stage] for row in rows]
            axes.barh(names, spent, left=ends, color=color, label=stage)
            ends = [end + more for end, more in zip(ends, spent, strict=True)]
        axes.legend(frameon=False)
        whole = axes.barh(names, ends, fill=False, linewidth=0)
    else:
        colors = [GRAY if name in result["peers"] else BLUE for name in names]
        whole = axes.barh(names, [row["value"] for row in rows], color=colors)
    axes.bar_label(whole, [f"{row['value']:,.0f}" for row in rows], padding=4)
    axes.set_title(f"{title} ({result['results'][0]['unit']})", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
