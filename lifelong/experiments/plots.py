"""The figures of a finished table: PNG to look at, SVG to print."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lifelong.drawing.labels import name_line, name_point, part_lines, part_points
from lifelong.drawing.style import BLUE, DASHED, GRAY, INK, PALE, SMALL, save, styled
from lifelong.evaluate.report import NOTHING
from lifelong.experiments import extra_plots
from lifelong.experiments.charts import (
    STEEP,
    UNBROKEN,
    Table,
    beside,
    colors_of,
    heading,
    interval,
    log_ticks,
    mean_line,
    moments,
    plane,
    rows_axis,
    seed_dots,
    seed_lines,
    ticks_at,
)
from lifelong.experiments.extra_tables import CLUSTERINGS

PARTS: Final = {"one_epoch": "after one epoch", "converged": "converged"}
"""When a run was measured."""

MEASURES: Final = {"auc": "AUC", "gauc": "GAUC, within users"}

OURS: Final = "ENCODE"

ALIKE: Final = 1.7
"""How many times the converged runs' span the span of all may be, for both to share an axis."""

PANEL: Final = 124.0
"""Width of a panel of learning curves, in points."""

BANDS: Final = 2
"""Most lines whose standard deviations do not yet hide each other."""


def draw(table: Table, directory: Path) -> list[str]:
    """Draw a table's figures into a directory, as PNG and SVG; the files that were made.

    ``NAME`` has the test AUC of each method or setting, ``NAME-curves`` validation AUC by epoch,
    and `EXTRAS` says how those are named that show what else was measured; of a table of nothing
    else the first is ``NAME``. What was not measured is not drawn.

    Raises:
        SettingsError: they cannot be written.
    """
    drawings: dict[str, Callable[[Table], Figure | None]] = {}
    if table["figure"] != "none":
        drawings[""] = _lines if table["figure"] == "line" else _methods
    drawings |= dict(EXTRAS[kind] for kind in table["extras"] if kind in EXTRAS)
    drawings["-curves"] = _curves
    figures: dict[str, Figure] = {}
    with styled():
        for ending, drawing in drawings.items():
            figure = drawing(table)
            if figure is not None:
                alone = table["figure"] == "none" and not figures
                figures[table["name"] + ending * (not alone)] = figure
    return save(figures, directory, "--out")


def _methods(table: Table) -> Figure | None:
    """A row a method: its mean, its seeds, and how it differs from the reference."""
    rows = [row for row in table["rows"] if any(_values(row, part) for part in PARTS)]
    if not rows:
        return None
    spans = [_span(rows, ["converged"]), _span(rows, PARTS)]
    parts = [tuple(PARTS)] if spans[1] <= ALIKE * spans[0] else [(part,) for part in PARTS]
    figure = Figure(figsize=(8.6, 2.0 + 0.3 * len(rows)), layout="constrained")
    panels = figure.subplots(
        1, len(parts), sharey=True, squeeze=False, width_ratios=[1, 1.6][-len(parts) :]
    )[0]
    for axes, shown in zip(panels, parts, strict=True):
        rows_axis(axes, [row["label"] for row in rows])
        for place, row in enumerate(rows):
            if "one_epoch" in shown:
                below = 0.2 if len(shown) > 1 else 0.0
                seed_dots(axes, place + below, _values(row, "one_epoch"), GRAY, PALE)
            if "converged" in shown:
                above = 0.1 if len(shown) > 1 else 0.0
                seed_dots(axes, place - above, _values(row))
        for row in rows:
            if _is_reference(row, table) and (values := _values(row, shown[-1])):
                axes.axvline(moments(values)[0], color=INK, linewidth=1, linestyle=DASHED, zorder=1)
        axes.set_xlabel(" and ".join(PARTS[part] for part in shown))
        most = 6 if axes is panels[-1] else 3
        axes.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    legend = "Dots: means; ticks: seeds; bars: standard deviation"
    legend += "; gray: after one epoch" * (len(parts) == 1)
    legend += "; gray numbers: may be 0" * _differences(panels[-1], table, rows)
    heading(figure, table, "Test AUC", f"{legend}{_dashed(table)}")
    return figure


def _differences(axes: Axes, table: Table, rows: Sequence[Table]) -> bool:
    """Write the differences to the reference at the right; whether an interval holds 0."""
    found = [_difference(row) for row in rows]
    if not any(found):
        return False
    beside(axes, -1.0, f"difference to {table['reference']}, 95 %", GRAY)
    for place, (row, one) in enumerate(zip(rows, found, strict=True)):
        if one is None:
            text = "the reference" if _is_reference(row, table) else NOTHING
            beside(axes, place, text, GRAY)
            continue
        beside(axes, place, interval(one), INK if _sure(one) else GRAY)
    return any(one is not None and not _sure(one) for one in found)


def _lines(table: Table) -> Figure | None:
    """AUC and GAUC against a setting; a line a method."""
    rows = [row for row in table["rows"] if _values(row)]
    settings = sorted({row["x"] for row in rows if row["x"] is not None})
    if not settings:
        return None
    methods = list(dict.fromkeys(row["method"] for row in rows if row["x"] is not None))
    colors = colors_of(methods)
    measures = [name for name in MEASURES if any(_values(row, measure=name) for row in rows)]
    figure = Figure(figsize=(4.6 * len(measures), 4.2), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    names = []
    for axes, measure in zip(panels, measures, strict=True):
        for row in rows:
            if row["x"] is None and (values := _values(row, measure=measure)):
                mean = moments(values)[0]
                axes.axhline(mean, color=INK, linewidth=1, linestyle=DASHED)
                names.append(name_line(axes, settings[-1], mean, row["label"], INK))
        for method in methods:
            own = [row for row in rows if row["method"] == method and row["x"] is not None]
            end = _setting_line(axes, own, measure, colors[method], band=len(methods) <= BANDS)
            if len(methods) > 1 and end is not None:
                names.append(name_line(axes, *end, method, colors[method]))
        plane(axes)
        if settings[0] > 0 and settings[-1] >= STEEP * settings[0]:
            axes.set_xscale("log")
        ticks_at(axes, settings)
        axes.set_xlabel(table["x_name"] or "")
        axes.set_title(MEASURES[measure], loc="left", fontsize=SMALL, color=GRAY)
    legend = "Lines: means; small dots: seeds"
    legend += "; bands: standard deviation" * (len(methods) <= BANDS)
    heading(figure, table, f"Test AUC by {table['x_name'] or 'setting'}", legend)
    part_lines(figure, names)
    return figure


def _setting_line(
    axes: Axes, rows: Sequence[Table], measure: str, color: str, *, band: bool
) -> tuple[float, float] | None:
    """Draw a method's line through its settings; where it ends."""
    found = sorted((float(row["x"]), _values(row, measure=measure)) for row in rows)
    found = [(x, values) for x, values in found if values]
    if not found:
        return None
    places = [x for x, _ in found]
    means, stds = np.array([moments(values) for _, values in found]).T
    if band:
        axes.fill_between(places, means - stds, means + stds, color=color, alpha=0.14, linewidth=0)
    axes.plot(places, means, color=color, linewidth=1.8, marker="o", markersize=5)
    for x, values in found:
        axes.scatter([x] * len(values), values, s=8, color=color, alpha=0.55, linewidth=0)
    return places[-1], float(means[-1])


def _serving(table: Table) -> Figure | None:
    """AUC against inference time, as ENCODE's figure 1."""
    serving = table["extras"]["serving"]
    return _against(
        table,
        {label: timed.get("ms") for label, timed in serving["methods"].items()},
        "inference time",
        f"inference time of a request of {serving['B']:,} candidates, ms",
        "left",
    )


def _speed(table: Table) -> Figure | None:
    """AUC against the speed of training, as SDIM's table 3."""
    methods = table["extras"]["speed"]["methods"]
    return _against(
        table,
        {label: timed.get("training_ratio") for label, timed in methods.items()},
        "training speed",
        f"training speed, times {table['reference']}'s",
        "right",
    )


def _clustering(table: Table) -> Figure | None:
    """AUC against the time of a clustering, as ENCODE's table 7."""
    timed = table["extras"]["clustering"]
    return _against(
        table,
        {label: timed["methods"].get(name, {}).get("ms") for label, name in CLUSTERINGS.items()},
        "time of a clustering",
        f"time to cluster a user's {timed['L']:,} behaviors, ms",
        "left",
    )


def _against(
    table: Table, costs: dict[str, float | None], shown: str, axis: str, better: str
) -> Figure | None:
    """Test AUC against what each row costs; a named point a row."""
    found = [
        (row, cost, _values(row))
        for row in table["rows"]
        if (cost := costs.get(row["label"])) is not None and _values(row)
    ]
    if not found:
        return None
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.subplots()
    names, ends = [], []
    for row, cost, values in found:
        ours = row["method"].startswith(OURS)
        color = BLUE if ours else INK if _is_reference(row, table) else GRAY
        mean, std = moments(values)
        axes.errorbar(cost, mean, std, color=color, marker="o", markersize=7)
        names.append(name_point(axes, cost, mean, row["label"], INK if color == GRAY else color))
        ends.append((mean - std, mean + std))
    plane(axes)
    axes.set_xscale("log")
    log_ticks(axes.xaxis)
    axes.margins(x=0.12, y=0.1)
    axes.set(xlabel=axis, ylabel="test AUC")
    legend = f"Better is up and {better}; bars: standard deviation between seeds"
    heading(figure, table, f"Test AUC and {shown}", legend)
    part_points(axes, names, ends)
    return figure


def _curves(table: Table) -> Figure | None:
    """Validation AUC by epoch; a panel a row, over all others in gray."""
    rows = [row for row in table["rows"] if row["curves"]]
    if not rows:
        return None
    columns = 4
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(8.6, 1.4 + 1.75 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, row in zip(panels, rows, strict=False):
        for other in rows:
            mean = mean_line(other["curves"])
            epochs = range(1, len(mean) + 1)
            axes.plot(epochs, mean, color=PALE, linewidth=0.8, zorder=1)
            if _is_reference(other, table):
                axes.plot(epochs, mean, color=INK, linewidth=1, linestyle=DASHED)
        _curve(axes, row, BLUE)
        plane(axes)
        size = min(SMALL, PANEL / (0.55 * max(len(each["label"]) for each in rows)))
        axes.set_title(row["label"], loc="left", fontsize=size, color=INK)
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(rows) - columns) : len(rows)]:
        axes.tick_params(labelbottom=True)
    _limit(panels[0], rows)
    panels[0].yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=3))
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("validation AUC", fontsize=10)
    legend = "Thick: mean of seeds; thin: seeds; dots: where a seed was best; gray: the others"
    legend += _dashed(table)
    heading(figure, table, "Validation AUC by epoch", legend)
    return figure


def _curve(axes: Axes, row: Table, color: str) -> None:
    """Draw a row's seeds, each with its best epoch, and their mean."""
    longest = max(map(len, row["curves"]))
    for best, curve in zip(row["epochs"], row["curves"], strict=True):
        axes.scatter(best, curve[best - 1], s=16, color=color, linewidth=0, zorder=4)
    seed_lines(axes, range(1, longest + 1), row["curves"], color)


def _limit(axes: Axes, rows: Sequence[Table]) -> None:
    """Set limits that a few bad beginnings do not move."""
    every = np.array([value for row in rows for curve in row["curves"] for value in curve])
    low, high = float(np.percentile(every, 2)), float(every.max())
    pad = 0.06 * (high - low) or 0.001
    axes.set_ylim(low - pad, high + pad)
    axes.set_xlim(0.8, max(len(curve) for row in rows for curve in row["curves"]) + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def _values(row: Table, part: str = "converged", measure: str = "auc") -> list[float]:
    """A measure of each seed; [] where the data cannot give it."""
    return list(row[part].get(measure, []))


def _span(rows: Sequence[Table], parts: Iterable[str]) -> float:
    every = [value for row in rows for part in parts for value in _values(row, part)]
    return max(every) - min(every) if every else 0.0


def _is_reference(row: Table, table: Table) -> bool:
    return bool(row["label"] == table["reference"])


def _dashed(table: Table) -> str:
    here = any(_is_reference(row, table) for row in table["rows"])
    return f"; dashed:{UNBROKEN}{table['reference']}" * here


def _difference(row: Table) -> dict[str, float] | None:
    """How the AUC differs from the reference's, if that was measured."""
    return dict(row["difference"]["auc"]) if row["difference"] else None


def _sure(difference: dict[str, float]) -> bool:
    return difference["low"] > 0 or difference["high"] < 0


EXTRAS: Final[dict[str, tuple[str, Callable[[Table], Figure | None]]]] = {
    "serving": ("-time", _serving),
    "speed": ("-speed", _speed),
    "clustering": ("-time", _clustering),
    "relevance": ("-relevance", extra_plots.relevance),
    "consistency": ("-hits", extra_plots.consistency),
    "weights": ("-weights", extra_plots.weights),
    "staleness": ("-stale", extra_plots.staleness),
    "warm-starts": ("-warm-starts", extra_plots.warm_starts),
}
"""What was measured beside quality: how its figure's name ends, and who draws it."""
