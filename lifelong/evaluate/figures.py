"""The figures of an evaluation: reliability, and AUC by slice; PNG to look at, SVG to print."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from infra.arrays import F64
from lifelong.drawing.style import BLUE, DASHED, GRAY, GRID, INK, LIGHT_BLUE, head, save, styled
from lifelong.evaluate.report import SLICES, slice_label

WIDE: Final = 30.0
"""Largest over smallest CTR from which both axes are logarithmic: most CTRs are low, and would lie
on top of each other. A bin without a positive then stands on the lower edge."""

CHANCE: Final = 0.5
"""AUC of a ranking at random, where bars begin."""

COLUMNS: Final = {"AUC": 44.0, "positives": 100.0}
"""Figures beside the bars, and where they end, in points."""


def draw(report: dict[str, Any], directory: Path) -> list[str]:
    """Draw an evaluation's figures into a directory; the files that were made.

    Raises:
        SettingsError: they cannot be written.
    """
    with styled():
        figures = {"reliability": _reliability(report), "auc-by-slice": _slices(report)}
    return save(figures, directory, "--plots")


def _reliability(report: dict[str, Any]) -> Figure:
    calibration = report["calibration"]
    predicted, observed, weight = (
        np.array(calibration[name], np.float64) for name in ("predicted", "observed", "weight")
    )
    figure = Figure(figsize=(5.6, 6.0), layout="constrained")
    axes = figure.subplots()
    low, high = _wilson(observed, weight)
    positive = np.concatenate([predicted, observed[observed > 0]])
    wide = predicted[0] > 0 and bool(positive.max() > WIDE * positive.min())
    least = float(positive.min()) / 2 if wide else 0.0
    most = 1.0 if wide else min(1.0, 1.08 * float(max(predicted[-1], high.max())))
    axes.plot([least, most], [least, most], color=GRAY, linewidth=1, linestyle=DASHED)
    shown = np.maximum(observed, least)
    axes.errorbar(
        predicted,
        shown,
        yerr=[shown - np.clip(low, least, shown), np.maximum(high - shown, 0)],
        color=BLUE,
        marker="o",
        markersize=4.5,
        linewidth=1.2,
        elinewidth=1,
        ecolor=LIGHT_BLUE,
    )
    if wide:
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_percent))
            axis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=12))
            axis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.set(xlim=(least, most), ylim=(least, most), aspect="equal")
    axes.set(xlabel="predicted CTR, mean of a bin", ylabel="observed CTR")
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    measures = report["measures"]
    head(
        figure,
        "Predicted and observed CTR",
        f"{_subject(report)}\n{len(predicted)} bins of about {weight.mean():,.0f} candidates, with"
        f" 95 % intervals\ncalibration error {measures['calibration_error']:.4f},"
        f" predicted / observed {measures['calibration_ratio']:.3f}",
    )
    return figure


def _slices(report: dict[str, Any]) -> Figure:
    names = [name for name in SLICES if len(report["slices"][name]) > 1] or ["history"]
    heights = [len(report["slices"][name]) + 1.6 for name in names]
    figure = Figure(figsize=(7.2, 1.3 + 0.28 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, name in zip(panels[:, 0], names, strict=True):
        _bars(axes, name, report)
    first, last = panels[0, 0], panels[-1, 0]
    for text, offset in COLUMNS.items():
        _beside(first, text, offset, -0.9)
    found = [part["auc"] for name in names for part in report["slices"][name]]
    known = [auc for auc in found if auc is not None]
    last.set_xlim(min([CHANCE, *known]), max([CHANCE + 0.05, *known]))
    last.set_xlabel("AUC; 0.5 is chance, dashed: of all together", color=GRAY)
    last.spines["bottom"].set_visible(True)
    last.tick_params(axis="x", length=3)
    head(figure, "AUC by slice", _subject(report))
    return figure


def _bars(axes: Axes, name: str, report: dict[str, Any]) -> None:
    """One panel: a bar a slice from chance to its AUC, and the figures beside it."""
    parts = report["slices"][name]
    places = range(len(parts))
    aucs = [CHANCE if part["auc"] is None else part["auc"] for part in parts]
    axes.barh(places, [auc - CHANCE for auc in aucs], left=CHANCE, height=0.7, color=BLUE)
    for place, part in zip(places, parts, strict=True):
        auc = "one class" if part["auc"] is None else f"{part['auc']:.3f}"
        for text, offset in zip((auc, f"{part['positives']:,}"), COLUMNS.values(), strict=True):
            _beside(axes, text, offset, place)
    if report["measures"]["auc"] is not None:
        axes.axvline(report["measures"]["auc"], color=INK, linewidth=1, linestyle=DASHED)
    axes.set_yticks(places, [slice_label(name, part) for part in parts])
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.tick_params(axis="both", length=0)
    axes.set_title(f"by {SLICES[name]}", loc="left", fontsize=9.5, color=GRAY, pad=7)
    axes.spines["bottom"].set_visible(False)


def _beside(axes: Axes, text: str, offset: float, place: float) -> None:
    """A figure of a column at the right of the bars."""
    axes.annotate(
        text,
        (1.0, place),
        (offset, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=9,
        color=GRAY if place < 0 else INK,
        annotation_clip=False,
    )


def _subject(report: dict[str, Any]) -> str:
    return (
        f"{report['name']} ({report['method']}), {report['part']}, {report['requests']:,} requests"
    )


def _wilson(share: F64, count: F64) -> tuple[F64, F64]:
    """The 95 % interval of a share of ``count`` rows, by Wilson's score."""
    z = 1.96
    scale = 1 + z * z / count
    center = (share + z * z / (2 * count)) / scale
    half = z / scale * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return np.maximum(center - half, 0.0), np.minimum(center + half, 1.0)


def _percent(value: float, _place: object = None) -> str:
    return f"{100 * value:.3g} %"
