"""Names beside lines and points, placed so that none lies on another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, product
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox, ScaledTranslation

from infra.arrays import F64
from lifelong.drawing.style import GRAY, SMALL

LINE: Final = 12.5
"""Distance from one name to the next below it, in points."""

SIDES: Final = (
    (1.0, 0.0, "left", "center"),
    (-1.0, 0.0, "right", "center"),
    (0.0, 1.0, "center", "bottom"),
    (0.0, -1.0, "center", "top"),
    (0.8, 0.6, "left", "bottom"),
    (0.8, -0.6, "left", "top"),
    (-0.8, 0.6, "right", "bottom"),
    (-0.8, -0.6, "right", "top"),
)
"""Sides of a point where its name may stand, the best first: direction, and own alignment."""

AWAY: Final = (9.0, 16.0, 26.0, 38.0)
"""How far from its point, in points; a thin line leads to it from the second on."""

ROUNDS: Final = 4
"""Times that every point's name is placed anew, the others staying where they are."""

HIDDEN: Final = 100.0
"""Cost of a name that lies on something, by the share of its area that does."""

OUTSIDE: Final = 100.0
"""Cost of a name that leaves the panel, by the share of its area that does."""

CROSSED: Final = 2.0
"""Cost of each other point that the line to a name runs over."""

NEARER: Final = 0.02
"""Cost of each place that comes before a name's own, so that the first are preferred."""

DOT: Final = 5.5
"""Half the width of a point, in points."""

_Place = tuple[float, tuple[float, float, str, str]]


def name_line(axes: Axes, x: float, y: float, text: str, color: str) -> Annotation:
    """A line's name at the right of the panel; a thin line leads to (x, y), where it ends."""
    shift = ScaledTranslation(12 / 72, 0, axes.figure.dpi_scale_trans)
    return axes.annotate(
        text,
        (x, y),
        (1.0, y),
        textcoords=axes.get_yaxis_transform() + shift,
        va="center",
        color=color,
        fontsize=SMALL,
        annotation_clip=False,
        arrowprops={
            "arrowstyle": "-",
            "relpos": (0, 0.5),
            "color": color,
            "linewidth": 0.6,
            "alpha": 0.6,
            "shrinkA": 1,
            "shrinkB": 3,
        },
    )


def name_point(axes: Axes, x: float, y: float, text: str, color: str) -> Annotation:
    """A point's name, which `part_points` puts in its place."""
    return axes.annotate(
        text,
        (x, y),
        (AWAY[0], 0),
        textcoords="offset points",
        va="center",
        color=color,
        fontsize=SMALL,
        arrowprops={
            "arrowstyle": "-",
            "color": GRAY,
            "linewidth": 0.6,
            "shrinkA": 0,
            "shrinkB": 5,
        },
    )


def part_lines(figure: Figure, names: Sequence[Annotation]) -> None:
    """Move `name_line` names of a finished figure apart, each panel's for itself."""
    figure.draw_without_rendering()  # only now the panels have their sizes
    panels = {id(name.axes): name.axes for name in names}
    for key, group in groupby(sorted(names, key=lambda name: id(name.axes)), lambda n: id(n.axes)):
        axes, own = panels[key], list(group)
        assert axes is not None
        points = 72 / figure.dpi
        box = axes.get_window_extent()
        ends = np.array([axes.transData.transform(name.xy)[1] for name in own])
        apart = spread((ends - box.y0) * points, LINE, box.height * points) / points + box.y0
        for name, y in zip(own, apart, strict=True):
            name.xyann = (1.0, float(axes.transData.inverted().transform((0, y))[1]))


def spread(wanted: F64, gap: float, height: float) -> F64:
    """The places nearest to those wanted that lie at least ``gap`` apart, in [0, height].

    >>> spread(np.array([5.0, 4.0, 20.0]), 3.0, 30.0).tolist()
    [6.0, 3.0, 20.0]
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    # Without the steps they must only not decrease: pool neighbors that do, into their mean.
    pools: list[list[float]] = []
    for place in wanted[order] - steps:
        pools.append([float(place)])
        while len(pools) > 1 and np.mean(pools[-2]) >= np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    flat = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    flat = np.clip(flat, 0, max(0.0, height - steps[-1]))
    found = np.empty(len(wanted))
    found[order] = flat + steps
    return found


def part_points(
    axes: Axes, names: Sequence[Annotation], drawn: Sequence[tuple[float, float]]
) -> None:
    """Give each `name_point` name of a finished figure the place where it hides least.

    Args:
        axes: the panel, with nothing else in it.
        names: of its points.
        drawn: what is drawn of each point: its lower and its upper end.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    panel = axes.get_window_extent()
    reach = DOT * figure.dpi / 72
    dots = []
    for name, ends in zip(names, drawn, strict=True):
        (x, low), (_, high) = (axes.transData.transform((name.xy[0], end)) for end in ends)
        _, y = axes.transData.transform(name.xy)
        dots.append(Bbox([[x - reach, y - reach], [x + reach, y + reach]]))
        dots.append(Bbox([[x - reach / 3, low], [x + reach / 3, high]]))
    boxes: list[Bbox] = [Bbox.null() for _ in names]
    for _ in range(ROUNDS):
        for index, name in enumerate(names):
            others = [*dots, *(box for other, box in enumerate(boxes) if other != index)]
            found = []
            for number, place in enumerate(product(AWAY, SIDES)):
                box = _stand(name, place)
                area = box.width * box.height
                hidden = sum(_shared(box, other) for other in others)
                cost = (HIDDEN * hidden + OUTSIDE * (area - _shared(box, panel))) / area
                cost += _taken_for_others(box, dots[::2], index)
                cost += CROSSED * (_crossed(place, dots[::2], index) if place[0] > AWAY[0] else 0)
                found.append((cost + NEARER * number, place, box))
            _, place, boxes[index] = min(found, key=lambda one: one[0])
            _stand(name, place)


def _stand(name: Annotation, place: _Place) -> Bbox:
    """Put a name in a place; the box that it takes, with a little air."""
    away, (right, up, horizontal, vertical) = place
    name.xyann = (away * right, away * up)
    name.set(ha=horizontal, va=vertical)
    if name.arrow_patch is not None:
        name.arrow_patch.set_visible(away > AWAY[0])
    return Text.get_window_extent(name).padded(2)


def _taken_for_others(box: Bbox, dots: Sequence[Bbox], index: int) -> float:
    """How much nearer another point is to a name than its own, of a line's height."""
    distances = [
        max(box.x0 - dot.x1, dot.x0 - box.x1, 0.0) + max(box.y0 - dot.y1, dot.y0 - box.y1, 0.0)
        for dot in dots
    ]
    own = distances.pop(index)
    return float(max(0.0, own - min(distances, default=own)) / box.height)


def _crossed(place: _Place, dots: Sequence[Bbox], index: int) -> int:
    """How many other points a line to a name at that place runs over."""
    away, (right, up, _, _) = place
    own = dots[index]
    scale = own.width / (2 * DOT)
    x, y = (own.x0 + own.x1) / 2, (own.y0 + own.y1) / 2
    steps = np.linspace(0, away * scale, 12)
    return sum(
        any(dot.contains(x + step * right, y + step * up) for step in steps)
        for other, dot in enumerate(dots)
        if other != index
    )


def _shared(first: Bbox, second: Bbox) -> float:
    """The area that two boxes share."""
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return float(max(width, 0.0) * max(height, 0.0))
