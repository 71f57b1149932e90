"""Dashboards as pictures: one figure a dashboard, a plot a panel, as Grafana would lay them out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from infra.arrays import F64
from infra.deploy.asking import Series, Span
from infra.deploy.dashboards import COLUMNS, Dashboard, Panel
from lifelong.drawing.style import BLUE, DASHED, GRAY, GRID, INK, PALE, head

WIDTH: Final = 4.5
HEIGHT: Final = 2.55
"""Inches of a panel."""

COLORS: Final = (BLUE, "#e8590c", "#2b8a3e", "#9c36b5", "#0c8599", "#f08c00", INK, GRAY)
RED: Final = "#c92a2a"
GREEN: Final = "#2b8a3e"

NAMED: Final = len(COLORS)
"""Most series that a legend names, the largest."""

NEAR: Final = 3.0
"""A limit that lies so many times above the largest value is written, and not drawn: the values
would be a line at the bottom."""

SMALL: Final = 7.5

ROW: Final = 0.08
"""Share of a plot's height that a row of its legend takes."""


class Line(NamedTuple):
    """A series of a panel."""

    name: str
    """As a legend says it."""
    series: Series


class Drawn(NamedTuple):
    """A panel and what was told for it."""

    panel: Panel
    lines: Sequence[Line]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to see."""
        return not any(line.series.told for line in self.lines)


def draw(board: Dashboard, panels: Sequence[Drawn], span: Span, below: str) -> Figure:
    """The figure of a dashboard; in the house's style where it is drawn under `styled`.

    Args:
        board: the dashboard.
        panels: each of its panels with what was told for it.
        span: the time that is shown.
        below: what stands under the title.
    """
    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(WIDTH * COLUMNS, HEIGHT * rows + 0.7))
    grid = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axes, drawn in zip(grid, panels, strict=False):
        title = drawn.panel.title
        fitting = WIDTH * 72 / (0.6 * len(title))
        axes.set_title(title, loc="left", fontsize=min(9.5, fitting), color=INK, pad=16)
        if drawn.panel.kind == "stat":
            _stat(axes, drawn)
        else:
            _plot(axes, drawn, span)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    head(figure, f"Lifelong / {board.title}", below)
    return figure


def _plot(axes: Axes, drawn: Drawn, span: Span) -> None:
    lines = sorted(drawn.lines, key=lambda line: -_largest(line.series))
    for place, line in enumerate(lines):
        color = COLORS[min(place, len(COLORS) - 1)]
        times, values = unbroken(line.series, span)
        few = int(np.isfinite(values).sum()) < 3
        axes.plot(
            times,
            values,
            color=color,
            linewidth=1.3,
            marker="o" if few else None,
            markersize=2.5,
            label=line.name if place < NAMED else None,
            zorder=3 - 0.01 * place,
        )
    most = max((_largest(line.series) for line in lines), default=math.nan)
    _limit(axes, drawn.panel, most)
    rows = 0 if drawn.empty else _legend(axes, len(lines) - NAMED)
    _scale(axes, drawn.panel.unit, span, rows)
    if drawn.empty:
        axes.text(0.5, 0.5, "nothing told", transform=axes.transAxes, ha="center", color=GRAY)


def _largest(series: Series) -> float:
    finite = [value for value in series.values if math.isfinite(value)]
    return max(finite, default=-math.inf)


def _legend(axes: Axes, more: int) -> int:
    """In the upper left of a plot, in as many columns as names are short; how many rows it has."""
    handles, names = axes.get_legend_handles_labels()
    names = [_short(name) for name in names]
    if more > 0:
        handles.append(axes.plot([], [], linewidth=0)[0])
        names.append(f"and {more} more")
    longest = max(map(len, names))
    columns = 1 if longest > 20 or len(names) < 3 else 2 if longest > 3 else 4
    axes.legend(
        handles,
        names,
        loc="upper left",
        fontsize=SMALL - 0.5,
        frameon=False,
        borderpad=0.2,
        handlelength=1.2,
        labelspacing=0.25,
        labelcolor=INK,
        ncols=columns,
        columnspacing=1.0,
    )
    return math.ceil(len(names) / columns)


def _short(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _limit(axes: Axes, panel: Panel, most: float) -> None:
    """From where on it is bad: written always, drawn where the values come near it."""
    if panel.bad is None:
        return
    word = "below" if panel.below else "from"
    axes.text(
        1.0,
        1.03,
        f"bad {word} {_format(panel.unit)(panel.bad)}",
        transform=axes.transAxes,
        ha="right",
        fontsize=SMALL,
        color=RED,
    )
    if panel.below or most * NEAR >= panel.bad:
        axes.axhline(panel.bad, color=RED, linewidth=1, linestyle=DASHED, zorder=2)


def _scale(axes: Axes, unit: str, span: Span, rows: int) -> None:
    """Both axes, with room above the lines for the rows of a legend."""
    most = axes.dataLim.ymax
    top = most / (0.92 - rows * ROW) if 0 < most < math.inf else 1.0
    axes.set_ylim(-0.02 * top, top)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _format(unit)(value)))
    axes.set_xlim(0, span.end - span.start)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 3, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value)))
    axes.tick_params(labelsize=SMALL, color=PALE)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _stat(axes: Axes, drawn: Drawn) -> None:
    """The last value as a number, in the color that Grafana gives it."""
    axes.set_axis_off()
    for place, line in enumerate(drawn.lines):
        told = [value for value in line.series.values if math.isfinite(value)]
        value = told[-1] if told else math.nan
        bad = drawn.panel.bad
        wrong = bad is not None and (value < bad if drawn.panel.below else value >= bad)
        axes.text(
            (place + 0.5) / len(drawn.lines),
            0.5,
            _format(drawn.panel.unit)(value),
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=34,
            color=RED if wrong else GREEN,
        )
        axes.text(
            (place + 0.5) / len(drawn.lines),
            0.18,
            line.name,
            transform=axes.transAxes,
            ha="center",
            fontsize=SMALL,
            color=GRAY,
        )
    _limit(axes, drawn.panel, math.nan)


def unbroken(series: Series, span: Span) -> tuple[F64, F64]:
    """f64[n] each: seconds since the start, and values; NaN where the series was away.

    >>> times, values = unbroken(Series({}, [11.0, 14.0], [1.0, 2.0]), Span(10.0, 20.0, 1.0))
    >>> times.tolist(), values.tolist()
    ([1.0, 2.0, 4.0], [1.0, nan, 2.0])
    """
    times = np.array(series.times, np.float64) - span.start
    values = np.array(series.values, np.float64)
    gaps = np.flatnonzero(np.diff(times) > 1.5 * span.step) + 1
    times = np.insert(times, gaps, times[gaps - 1] + span.step)
    return times, np.insert(values, gaps, np.nan)


def clock(seconds: float) -> str:
    """A time since the start.

    >>> clock(75), clock(5400)
    ('1:15', '1 h 30')
    """
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    return f"{whole // 3600} h {whole % 3600 // 60:02}"


def _format(unit: str) -> Callable[[float], str]:
    return {"s": duration, "percentunit": percent, "bytes": size}.get(unit, number)


def number(value: float) -> str:
    """A number, as short as it may be.

    >>> number(0.25), number(1500), number(2_000_000)
    ('0.25', '1.5 k', '2 M')
    """
    for factor, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{name}"
    return f"{value:.4g}"


def duration(value: float) -> str:
    """Seconds in the unit that suits them.

    >>> duration(0.0025), duration(120), duration(900), duration(0)
    ('2.5 ms', '120 s', '15 min', '0 s')
    """
    for least, factor, name in (
        (7200, 3600, "h"),
        (600, 60, "min"),
        (1, 1, "s"),
        (1e-3, 1e-3, "ms"),
        (1e-6, 1e-6, "µs"),
    ):
        if abs(value) >= least:
            return f"{value / factor:.3g} {name}"
    return "0 s"


def percent(value: float) -> str:
    """A share.

    >>> percent(0.001), percent(0.5)
    ('0.1 %', '50 %')
    """
    return f"{100 * value:.4g} %"


def size(value: float) -> str:
    """Bytes.

    >>> size(0), size(5_000_000)
    ('0 B', '5 MB')
    """
    for factor, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {name}"
    return f"{value:.3g} B"
