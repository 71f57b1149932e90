"""What the figures of all tables share: colors of methods, seeds as dots and as lines, headings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from infra.arrays import F64
from lifelong.drawing.style import BLUE, GRAY, GRID, INK, LIGHT_BLUE, head

COLORS: Final = {
    "ENCODE": BLUE,
    "DIN-L": INK,
    "TWIN": "#d55e00",
    "SIM soft": "#009e73",
    "SIM hard": "#e69f00",
    "ETA": "#cc79a7",
    "SDIM": "#56b4e9",
}
"""Methods keep their colors, which color-blind people tell apart (Okabe and Ito, 2008)."""

UNBROKEN: Final = "\N{NO-BREAK SPACE}"
"""The space between a number and what it counts."""

STEEP: Final = 8.0
"""Largest over smallest value from which an axis is logarithmic."""

Table = dict[str, Any]
"""What `lifelong.experiments.report.compose` gives, as JSON has it."""


def heading(
    figure: Figure, table: Table, shown: str, legend: str, *, seeds: int | None = None
) -> None:
    """Title and subtitle: what is shown, of what data, and how to read it.

    Args:
        figure: complete but for these.
        table: the one that the figure is of.
        shown: begins the subtitle.
        legend: ends it.
        seeds: how many were measured, if not as many as for the table.
    """
    seeds = seeds or table["seeds"]
    told = [f"{shown} on {table['setup_title']} ({table['scale']})"]
    if data := table["data"]:
        told[0] += f": {data['users']:,} users"
        told += [f"{data['items']:,} items", f"{data['test']:,} test requests"]
        if data["L"]:  # None where lengths are what is compared
            told.append(f"L = {data['L']:,}")
    told.append(f"{seeds} seed{'s' * (seeds > 1)}")
    subject = ", ".join([told[0], *(part.replace(" ", UNBROKEN) for part in told[1:])])
    source = table["source"][:1].upper() + table["source"][1:]
    head(figure, table["title"], f"{subject}\n{source}. {legend}")


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """A color a name: a method's own, else one that is free."""
    if len(names) == 1:
        return {names[0]: BLUE}
    taken = {"ENCODE", "DIN-L", *names}
    free = cycle([color for name, color in COLORS.items() if name not in taken] or [GRAY])
    return {name: COLORS.get(name) or next(free) for name in names}


def known(values: Iterable[float | None]) -> list[float]:
    """The values that were measured."""
    return [value for value in values if value is not None]


def moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation over seeds; 0 of one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=len(values) > 1))


def interval(difference: Table) -> str:
    """A difference with its 95 % interval, where that was resampled.

    >>> interval({"observed": 0.001, "low": 0.0002, "high": 0.0018})
    '+0.0010  (+0.0002 to +0.0018)'
    """
    observed, low, high = (
        None if value is None else f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")
        for value in (difference[name] for name in ("observed", "low", "high"))
    )
    return f"{observed}" if low is None or high is None else f"{observed}  ({low} to {high})"


def mean_line(lines: Iterable[Sequence[float | None] | None]) -> F64:
    """The mean of seeds' lines, as far as all of them go; [] of none."""
    given = [np.array(line, np.float64) for line in lines if line and known(line)]
    shortest = min(map(len, given), default=0)
    if not shortest:
        return np.empty(0)
    mean: F64 = np.array([line[:shortest] for line in given]).mean(axis=0)
    return mean


def seed_lines(
    axes: Axes,
    places: Sequence[float],
    lines: Sequence[Sequence[float | None] | None],
    color: str,
    *,
    marker: str = "",
    linestyle: Any = "-",
) -> tuple[float, float]:
    """Draw each seed's line, thin, and their mean, thick; where the mean ends."""
    if len(lines) > 1:
        for line in lines:
            values = np.array(line or [], np.float64)  # None becomes NaN
            axes.plot(places[: len(values)], values, color=color, linewidth=0.8, alpha=0.45)
    mean = mean_line(lines)
    axes.plot(
        places[: len(mean)],
        mean,
        color=color,
        linewidth=2,
        linestyle=linestyle,
        marker=marker,
        markersize=4.5,
        zorder=3,
    )
    there = np.flatnonzero(~np.isnan(mean))
    return (places[there[-1]], float(mean[there[-1]])) if len(there) else (places[0], np.nan)


def seed_dots(
    axes: Axes, place: float, values: Sequence[float], color: str = BLUE, pale: str = LIGHT_BLUE
) -> None:
    """Draw seeds in a row: mean as a dot, standard deviation as a bar, each seed as a tick."""
    if not values:
        return
    mean, std = moments(values)
    axes.plot(
        [mean - std, mean + std],
        [place, place],
        color=pale,
        linewidth=4,
        solid_capstyle="round",
        zorder=2,
    )
    axes.scatter(values, [place] * len(values), s=60, marker="|", color=color, zorder=3)
    axes.scatter(mean, place, s=44, color=color, edgecolor="white", linewidth=0.8, zorder=4)


def rows_axis(axes: Axes, names: Sequence[str]) -> None:
    """Give each name a row, from the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for place in range(len(names)):
        axes.axhline(place, color=GRID, linewidth=0.8, zorder=0)


def beside(axes: Axes, place: float, text: str, color: str = INK) -> None:
    """Write a figure at the right of a row; place -1 is above the first."""
    axes.annotate(
        text,
        (1.0, place),
        (12, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center_baseline",
        fontsize=9,
        color=color,
        annotation_clip=False,
    )


def plane(axes: Axes) -> None:
    """Put a grid behind lines."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def log_ticks(axis: Axis) -> None:
    """Put ticks of a logarithmic axis at 1, 2 and 5 times powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def ticks_at(axes: Axes, places: Sequence[float]) -> None:
    """Put ticks on the horizontal axis where something was measured, and nowhere else."""
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
