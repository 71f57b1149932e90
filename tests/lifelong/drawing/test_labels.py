from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lifelong.drawing.labels import name_line, name_point, part_lines, part_points, spread


@pytest.mark.parametrize("wanted", [[3.0, 3.0, 3.0], [99.0, 100.0, 2.0], [0.0, 1.0, 50.0]])
def test_names_keep_their_distance_and_their_order(wanted: list[float]) -> None:
    places = spread(np.array(wanted), 10.0, 100.0)

    order = np.argsort(wanted, kind="stable")
    assert (np.diff(places[order]) >= 10 - 1e-9).all()
    assert places.min() >= 0
    assert places.max() <= 100


def test_names_of_lines_that_end_alike_do_not_overlap() -> None:
    figure = Figure(layout="constrained")
    panels = figure.subplots(1, 2)
    names = []
    for axes in panels:
        axes.plot([0, 1], [0, 1])
        names += [name_line(axes, 1, y, "ENCODE", "k") for y in (0.5, 0.5, 0.51, 0.9)]

    part_lines(figure, names)

    assert not overlapping(figure, names)


def test_names_of_close_points_do_not_overlap() -> None:
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    points = [(1.0, 0.5), (1.01, 0.5), (1.0, 0.51), (1.02, 0.49), (3.0, 0.9), (0.0, 0.1)]
    axes.plot(*zip(*points, strict=True), "o")
    names = [name_point(axes, x, y, "TWIN w/o Para-Con", "k") for x, y in points]

    part_points(axes, names, [(y, y) for _, y in points])

    assert not overlapping(figure, names)
    panel = axes.get_window_extent()
    assert all(panel.containsx(Text.get_window_extent(name).x1) for name in names)


def overlapping(figure: Figure, names: Sequence[Text]) -> bool:
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(name) for name in names]
    return any(one.overlaps(other) for one, other in combinations(boxes, 2))
