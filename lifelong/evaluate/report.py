"""What an evaluation prints for people, and the words that its tables and figures share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from rich.console import Console
from rich.table import Table

MEASURES: Final = {
    "auc": "AUC",
    "gauc": "GAUC, within users",
    "log_loss": "log loss, nats",
    "calibration_error": "expected calibration error",
    "calibration_ratio": "calibration ratio, predicted / observed",
    "hit10": "hit rate at 10",
}

SLICES: Final = {
    "history": "behaviors in the history",
    "popularity": "popularity of the item, behaviors per million",
    "staleness": "behaviors since the last clustering",
}

WHOLE: Final = ("history", "staleness")
"""Slices of counts, whose bounds are whole numbers."""

NOTHING: Final = "-"


def show(console: Console, report: dict[str, Any]) -> None:
    """Print everything that was measured."""
    if "measures" in report:
        _say(console, heading(report))
        _show(console, _measures(report))
        for name in SLICES:
            if len(report["slices"][name]) > 1:
                _show(console, _slices(report, name))
        for line in _unknown(report):
            _say(console, line)
    for name in ("golden", "golden_sequences"):
        if name in report:
            golden, kind = report[name], "requests" if name == "golden" else "sequences"
            _say(
                console,
                f"{golden['requests']} golden {kind} repeated: CTRs differ by"
                f" {golden['max_difference']:.1e} at most",
            )
    if "relevance" in report:
        _show(console, _relevance(report["relevance"]))
    if "baseline" in report:
        _show(console, _baseline(report["baseline"]))
    for note in report.get("notes", []):
        _say(console, f"Note: {note}.")
    for path in report.get("plots", []):
        _say(console, f"plot: {path}")


def slice_label(name: str, part: dict[str, Any]) -> str:
    """The bounds of a slice as people write them.

    >>> slice_label("history", {"lower": 3.0, "upper": 8.0})
    '3-7'
    >>> slice_label("popularity", {"lower": 12.4, "upper": None})
    '12.4+'
    """
    lower, upper = part["lower"], part["upper"]
    if upper is None:
        return f"{_number(lower)}+"
    if name not in WHOLE:
        return f"{_number(lower)}-{_number(upper)}"
    last = upper - 1
    return _number(lower) if last == lower else f"{_number(lower)}-{_number(last)}"


def heading(report: dict[str, Any]) -> str:
    """What was evaluated, on what."""
    return (
        f"{report['name']} ({report['method']}, {report['kind']}) on {report['part']}:"
        f" {report['requests']:,} requests, {report['candidates']:,} candidates,"
        f" {report['positives']:,} positives"
    )


def _measures(report: dict[str, Any]) -> Table:
    table = _table("", "measure", "value")
    for name, title in MEASURES.items():
        if report["measures"][name] is not None:
            table.add_row(title, _figure(report["measures"][name]))
    return table


def _slices(report: dict[str, Any], name: str) -> Table:
    columns = ("candidates", "positives", "AUC", "GAUC", "log loss", "ratio")
    table = _table(f"By {SLICES[name]}", "", *columns)
    for part in report["slices"][name]:
        figures = (part[key] for key in ("auc", "gauc", "log_loss", "calibration_ratio"))
        table.add_row(
            slice_label(name, part),
            f"{part['rows']:,}",
            f"{part['positives']:,}",
            *map(_figure, figures),
        )
    return table


def _unknown(report: dict[str, Any]) -> Iterator[str]:
    """How the CTRs were corrected, and what is said of items that are not known."""
    rate = report["calibration"]["sampling_rate"]
    if rate != 1:
        yield f"CTRs are corrected for training having seen {rate:.2%} of the negatives."
    unknown = report["unknown"]
    if unknown["candidates"]:
        yield (
            f"{unknown['candidates']:,} candidates are unknown, {unknown['positives']:,} of them"
            f" positives: predicted {unknown['predicted']:.4f}, observed {unknown['observed']:.4f}"
        )
    ranks = unknown["ranks"]
    yield (
        f"An unknown item among the {ranks['among']} most popular: rank {ranks['median']:.0f} at"
        f" the median of {ranks['users']:,} users ({ranks['quantiles']['p5']:.0f} to"
        f" {ranks['quantiles']['p95']:.0f} for 90 %), first for {ranks['first']:.0%}"
    )


def _relevance(relevance: dict[str, Any]) -> Table:
    title = f"Beside DIN-L, {relevance['pairs']:,} pairs of a request and a candidate"
    table = _table(title, "", "value")
    table.add_row("relevance indicator RI, nats (less is better)", _figure(relevance["indicator"]))
    table.add_row("RI of DIN-L itself, the least", _figure(relevance["least"]))
    table.add_row("RI of uniform weights", _figure(relevance["uniform"]))
    if relevance["hit_rate"] is not None:
        title = (
            f"share of DIN-L's top {relevance['top']} that the search finds"
            f" ({relevance['long_pairs']:,} pairs see more)"
        )
        table.add_row(title, _figure(relevance["hit_rate"]))
    table.caption = f"all weights mixed with {relevance['smoothing']:.0%} of uniform ones"
    return table


def _baseline(baseline: dict[str, Any]) -> Table:
    table = _table(
        f"Better than {baseline['path']} ({baseline['method']}) by",
        "measure",
        "baseline",
        "difference",
        "95 % interval",
        "p",
    )
    for name in ("auc", "gauc"):
        found = baseline[name]
        table.add_row(
            name.upper(),
            _figure(baseline["measures"][name]),
            _signed(found["observed"]),
            f"{_signed(found['low'])} to {_signed(found['high'])}",
            NOTHING if found["p"] is None else f"{found['p']:.3f}",
        )
    table.caption = f"users resampled {baseline['auc']['replicates']} times"
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left", caption_justify="left")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _show(console: Console, table: Table) -> None:
    console.print(table)
    console.print()


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.4f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
