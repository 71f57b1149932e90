from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.axes import Axes

from infra.deploy.asking import Series, Span
from infra.deploy.dashboards import Dashboard, Panel
from lifelong.dashboards.drawing import RED, Drawn, Line, draw

SPAN = Span(1000.0, 1010.0, 1.0)
TIMES = [1000.0 + second for second in range(11)]


def line(name: str, *values: float) -> Line:
    return Line(name, Series({}, TIMES[: len(values)], values))


def drawn(panel: Panel, *lines: Line) -> Axes:
    """The plot of a panel."""
    board = Dashboard("One", (panel,))
    return draw(board, [Drawn(panel, lines)], SPAN, "of a test").axes[0]


def texts(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    named = [] if legend is None else [text.get_text() for text in legend.get_texts()]
    return [*(text.get_text() for text in axes.texts), *named]


def limits(axes: Axes) -> list[float]:
    return [
        float(np.asarray(line.get_ydata())[0]) for line in axes.lines if line.get_color() == RED
    ]


def test_a_panel_has_title_legend_and_units() -> None:
    axes = drawn(Panel("Latency", (), "s"), line("p50", 0.001, 0.002), line("p99", 0.03, 0.04))

    assert axes.get_title("left") == "Latency"
    assert texts(axes) == ["p99", "p50"]
    assert axes.yaxis.get_major_formatter()(0.02) == "20 ms"


def test_a_limit_near_the_values_is_drawn() -> None:
    axes = drawn(Panel("Latency", (), "s", 0.05), line("p99", 0.03, 0.04))

    assert limits(axes) == [0.05]
    assert "bad from 50 ms" in texts(axes)


def test_a_limit_far_above_is_written_alone() -> None:
    axes = drawn(Panel("Behind", (), "s", 60), line("0", 0.03, 0.04))

    assert limits(axes) == []
    assert "bad from 60 s" in texts(axes)


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (1500.0, "1.5 k")])
def test_a_stat_is_its_last_number(value: float, text: str) -> None:
    axes = drawn(Panel("Lost", (), bad=1, kind="stat"), line("lost", 7, value))

    assert texts(axes) == [text, "lost", "bad from 1"]
    assert (axes.texts[0].get_color() == RED) == (value >= 1)


@pytest.mark.parametrize("values", [(), (math.nan, math.nan)])
def test_a_panel_of_which_nothing_is_told_says_so(values: tuple[float, ...]) -> None:
    panel = Panel("Rate", ())

    assert Drawn(panel, [line("a", *values)]).empty
    assert "nothing told" in texts(drawn(panel, line("a", *values)))


def test_a_legend_names_the_largest_and_counts_the_others() -> None:
    axes = drawn(Panel("Many", ()), *(line(f"s{n:02}", n, n) for n in range(12)))

    assert texts(axes)[0] == "s11"
    assert texts(axes)[-1] == "and 4 more"
