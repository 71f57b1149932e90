"""The figures of what is measured beside quality: where methods look, and what freshness is worth.

Each function takes a table and draws the extra of its own name; None, where that was not measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lifelong.drawing.labels import name_line, part_lines
from lifelong.drawing.style import BLUE, DASHED, GRAY, INK, SMALL
from lifelong.evaluate.report import NOTHING
from lifelong.experiments.charts import (
    COLORS,
    STEEP,
    Table,
    beside,
    colors_of,
    heading,
    interval,
    known,
    log_ticks,
    plane,
    rows_axis,
    seed_dots,
    seed_lines,
    ticks_at,
)

Result = dict[str, Any]
"""What a measurement gave."""

VARIANTS: Final = (
    {
        "longer": ("not stale, as many seen", INK),
        "attended": ("newer ones attended to", BLUE),
        "recent": ("newer ones not in the interests", "#d55e00"),
    },
    {"unseen": ("newer ones not seen at all", GRAY)},
)
"""What becomes of behaviors newer than the interests; a panel each, for the last loses far more."""

STARTS: Final = {"cold": BLUE, "warm": "#d55e00"}

ALONG: Final = {
    "objective": "mean cosine to the center",
    "stays": "share that keeps its cluster",
}
"""What is compared along a stream, beside test AUC."""

SHADES: Final = ("#8ab8de", "#5f9fd3", "#3d84c2", "#2066a8", "#084594")
"""Colors of one method's curves."""

CROWD: Final = 250.0
"""Area of the dot of all behaviors, in square points."""


def relevance(table: Table) -> Figure | None:
    """The relevance indicator of every method (ENCODE, Table 3)."""
    seeds = _seeds(table, "relevance")
    if not seeds:
        return None
    reference, top = seeds[0]["reference"], seeds[0]["top"]
    found = {
        label: known(seed["methods"][label].get("ri") for seed in seeds)
        for label in seeds[0]["methods"]
        if label != reference
    }
    shown = {label: values for label, values in found.items() if values}
    if not shown:
        return None
    figure = Figure(figsize=(8.0, 2.2 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    rows_axis(axes, list(shown))
    beside(axes, -1.0, f"finds of {reference}'s top {top}", GRAY)
    for place, (label, values) in enumerate(shown.items()):
        seed_dots(axes, place, values)
        hits = known(seed["methods"][label].get("hit_rate") for seed in seeds)
        beside(axes, place, f"{100 * np.mean(hits):.0f} %" if hits else NOTHING)
    for bound in ("least", "uniform"):
        if limits := known(seed[bound] for seed in seeds):
            x = float(np.mean(limits))
            axes.axvline(x, color=INK, linewidth=1, linestyle=DASHED, zorder=1)
    axes.set_xlabel("relevance indicator RI, nats; less is better")
    legend = f"Dots: means; ticks: seeds; dashed: {reference} itself, equal weights"
    if smoothing := seeds[0].get("smoothing"):
        legend += f" ({100 * smoothing:g} % mixed into all)"
    heading(figure, table, f"Likeness to {reference}'s attention", legend)
    return figure


def consistency(table: Table) -> Figure | None:
    """How much of its attention's own top a search finds, by its size (TWIN, Figure 4)."""
    seeds = _seeds(table, "consistency")
    labels = seeds[0]["methods"] if seeds else {}
    found = {
        label: [seed["methods"][label] for seed in seeds if seed["methods"][label].get("hits")]
        for label in labels
    }
    found = {label: results for label, results in found.items() if results}
    if not found:
        return None
    top = seeds[0]["top"]
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.subplots()
    colors = colors_of(list(found))
    first = next(iter(found.values()))[0]
    oracle = [min(size, top) for size in first["sizes"]]
    names = []
    for line, text, color in (
        (first["chance"], "at random", GRAY),
        (oracle, f"oracle  {top:.1f}", INK),
    ):
        axes.plot(first["sizes"], line, color=color, linewidth=1, linestyle=DASHED)
        names.append(name_line(axes, first["sizes"][-1], line[-1], text, color))
    by_hits = sorted(found, key=lambda label: _mean(found[label], "hits_at_top"))
    for number, label in enumerate(by_hits):
        results = found[label]
        end = seed_lines(
            axes, results[0]["sizes"], [one["hits"] for one in results], colors[label], marker="o"
        )
        text = f"{label}  {_mean(results, 'hits_at_top'):.1f}"
        names.insert(1 + number, name_line(axes, *end, text, colors[label]))
    plane(axes)
    axes.set_xscale("log")
    log_ticks(axes.xaxis)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.axvline(top, color=GRAY, linewidth=0.8, zorder=1)
    axes.set_ylim(0, 1.05 * top)
    axes.set(
        xlabel="behaviors that the search lets through", ylabel=f"hits among the real top {top}"
    )
    legend = f"Thick: mean of seeds; thin: seeds; numbers: hits of {top} let through (gray line)"
    heading(figure, table, "Hits among the attention's own top", legend)
    part_lines(figure, names)
    return figure


def weights(table: Table) -> Figure | None:
    """Weights of behaviors by their cosine to the candidate (SDIM, Figure 2)."""
    seeds = _seeds(table, "weights")
    result = seeds[0] if seeds else {}
    drawings = []
    if result.get("curves"):
        drawings.append(_weight_curves)
    if any(one.get("weight") for one in result.get("methods", {}).values()):
        drawings.append(_learned_weights)
    if not drawings:
        return None
    figure = Figure(figsize=(5.0 * len(drawings), 4.6), layout="constrained")
    names = []
    for axes, drawing in zip(
        figure.subplots(1, len(drawings), squeeze=False)[0], drawings, strict=True
    ):
        names += drawing(axes, result)
        plane(axes)
        axes.set_xlim(-1.05, 1.05)
        ticks_at(axes, (-1, -0.5, 0, 0.5, 1))
        axes.set_xlabel("cosine of behavior and candidate")
    legend = "At the right: the larger a dot, the more behaviors are of that cosine"
    heading(figure, table, "Weights of behaviors", legend, seeds=len(seeds))
    part_lines(figure, names)
    return figure


def _weight_curves(axes: Axes, result: Result) -> list[Any]:
    """Draw the weights as the papers have them; the names of the curves."""
    cosine = result["cosine"]
    middle = len(cosine) // 2
    curves = result["curves"]
    shades = iter(SHADES)
    others = iter(("#d55e00", "#009e73", GRAY))
    names = []
    for label in sorted(curves, key=lambda label: float(curves[label][middle])):
        curve = curves[label]
        attention = label == "target attention"
        color = INK if attention else next(shades if label.startswith("SDIM") else others, GRAY)
        axes.plot(cosine, curve, color=color, linewidth=1.8, linestyle=DASHED if attention else "-")
        names.append(name_line(axes, cosine[-1], curve[-1], label, color))
    axes.set_ylabel("weight, of that at cosine 1")
    axes.set_title("in theory", loc="left", fontsize=SMALL, color=GRAY)
    return names


def _learned_weights(axes: Axes, result: Result) -> list[Any]:
    """Draw the weights as trained runs have them; the names of the curves."""
    edges = np.array(result["edges"])
    centers = (edges[1:] + edges[:-1]) / 2
    names = []
    for label, one in result["methods"].items():
        if not one.get("weight"):
            continue
        color = COLORS.get(label, GRAY)
        weight = np.array(one["weight"], np.float64)
        axes.plot(centers, weight, color=color, linewidth=1.5)
        axes.scatter(
            centers, weight, s=CROWD * np.array(one["behaviors"]) + 3, color=color, linewidth=0
        )
        last = np.flatnonzero(~np.isnan(weight))[-1]
        names.append(name_line(axes, centers[last], weight[last], label, color))
        if one.get("expected"):
            expected = np.array(one["expected"], np.float64)
            axes.plot(centers, expected, color=color, linewidth=1, linestyle=DASHED)
            names.append(
                name_line(axes, centers[last], expected[last], f"{label}, expected", color)
            )
    axes.axhline(1, color=GRAY, linewidth=0.8)
    low, high = axes.dataLim.intervaly
    if low > 0 and high > STEEP * low:
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
    axes.set_ylabel("weight, times uniform")
    axes.set_title("as trained", loc="left", fontsize=SMALL, color=GRAY)
    return names


def staleness(table: Table) -> Figure | None:
    """What AUC is lost when interests are n behaviors old, by what becomes of those."""
    seeds = _seeds(table, "staleness")
    stale = {
        label: [_by_age(seed["runs"][label]) for seed in seeds]
        for label in (seeds[0]["runs"] if seeds else ())
    }
    stale = {label: runs for label, runs in stale.items() if any(runs)}
    if not stale:
        return None
    figure = Figure(figsize=(2.4 + 3.6 * len(stale), 6.4), layout="constrained")
    panels = figure.subplots(
        len(VARIANTS), len(stale), sharex="col", sharey="row", squeeze=False, height_ratios=[1.6, 1]
    )
    names = []
    for column, (label, runs) in zip(panels.T, stale.items(), strict=True):
        ages = sorted(set().union(*runs))
        for axes, variants in zip(column, VARIANTS, strict=True):
            axes.axhline(0, color=GRAY, linewidth=0.8)
            for variant, (text, color) in variants.items():
                lines = [[_loss(run.get(n), variant) for n in ages] for run in runs]
                style = DASHED if variant == "longer" else "-"
                end = seed_lines(axes, ages, lines, color, marker="o", linestyle=style)
                if axes in panels[:, -1]:
                    names.append(name_line(axes, *end, text, color))
            plane(axes)
            axes.set_xscale("log")
            axes.minorticks_off()
        counts = [next(run[n]["requests"] for run in runs if n in run) for n in ages]
        ticks = [f"{n:,}\n{count:,}" for n, count in zip(ages, counts, strict=True)]
        column[-1].set_xticks(ages, ticks, fontsize=8.5)
        column[-1].set_xlabel("behaviors newer than the interests\n(requests that have as many)")
        column[0].set_title(label, loc="left", fontsize=SMALL, color=INK)
    figure.supylabel("test AUC, less that of fresh interests", fontsize=10)
    legend = "Thick: mean of seeds; thin: seeds; each point compares the same requests"
    heading(figure, table, "What staleness costs", legend, seeds=len(seeds))
    part_lines(figure, names)
    return figure


def _by_age(run: Result) -> dict[int, Result]:
    """What was measured, by the number n of newer behaviors."""
    return {one["n"]: one for one in run.get("stale", ()) if "measures" in one}


def _loss(one: Result | None, variant: str) -> float | None:
    if one is None or variant not in one["measures"]:
        return None
    stale, fresh = one["measures"][variant]["auc"], one["measures"]["fresh"]["auc"]
    return None if stale is None or fresh is None else float(stale - fresh)


def warm_starts(table: Table) -> Figure | None:
    """Warm against cold clustering along streams; a line of panels a step."""
    seeds = _seeds(table, "warm-starts")
    streams = [
        (label, run, stream)
        for seed in seeds[:1]
        for label, run in seed["runs"].items()
        for stream in run.get("streams", ())
        if stream.get("along")
    ]
    if not streams:
        return None
    figure = Figure(figsize=(10.0, 1.5 + 2.7 * len(streams)), layout="constrained")
    panels = figure.subplots(len(streams), len(ALONG) + 1, sharey="col", squeeze=False)
    names = []
    for line, (label, _, stream) in zip(panels, streams, strict=True):
        along = stream["along"]
        for axes, (measure, text) in zip(line, ALONG.items(), strict=False):
            for start, color in STARTS.items():
                end = seed_lines(
                    axes,
                    range(len(along)),
                    [[one[measure][start] for one in along]],
                    color,
                    marker="o",
                )
                if axes is line[-2] and not np.isnan(end[1]):
                    names.append(name_line(axes, *end, start, color))
            axes.set_title(text, loc="left", fontsize=SMALL, color=GRAY)
        _compare_starts(line[-1], stream)
        for axes in line:
            plane(axes)
            axes.set_xlim(-0.3, len(along) - 0.7)
            axes.set_xticks(range(len(along)), [f"{one['warm_starts'][0]}" for one in along])
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        line[0].set_ylabel(f"{label}, every {stream['step']}\nnew behaviors")
    for axes in panels[-1]:
        axes.set_xlabel("warm starts in a row, at least")
    run = streams[0][1]
    iterations = run["iterations"]
    legend = (
        f"K = {run['K']}; a warm start goes on from the centers before,"
        f" {iterations['warm']} iterations at most; a cold one begins afresh, {iterations['cold']}"
    )
    heading(figure, table, "Warm and cold clustering along streams", legend, seeds=1)
    part_lines(figure, names)
    return figure


def _compare_starts(axes: Axes, stream: Result) -> None:
    """Draw test AUC of warm clusterings less that of cold ones, on the same requests."""
    aucs = [(one["auc"]["warm"], one["auc"]["cold"]) for one in stream["along"]]
    difference = [None if None in pair else pair[0] - pair[1] for pair in aucs]
    axes.axhline(0, color=GRAY, linewidth=0.8)
    seed_lines(axes, range(len(difference)), [difference], INK, marker="o")
    title = "test AUC, warm \N{MINUS SIGN} cold"
    of_all = stream["all"].get("differences")
    if of_all and of_all["auc"]["observed"] is not None:
        title += f"\nall: {interval(of_all['auc'])}"
    axes.set_title(title, loc="left", fontsize=SMALL, color=GRAY)


def _seeds(table: Table, kind: str) -> list[Result]:
    """An extra's results: one a seed, or one of all."""
    extra = table["extras"][kind]
    return list(extra) if isinstance(extra, Sequence) else [extra]


def _mean(results: Iterable[Result], name: str) -> float:
    return fmean(result[name] for result in results)
