"""``lifelong dashboards``: each dashboard as a picture, all its panels drawn from a Prometheus."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from infra.deploy.asking import Series, Span, ask, fill, legend
from infra.deploy.causes import SCORER_JOB, WORKER_JOB
from infra.deploy.dashboards import DASHBOARDS, Dashboard, Panel
from infra.deploy.local import LocalPrometheus, obstacle
from infra.deploy.rules import rules
from infra.errors import PrometheusError
from lifelong.dashboards.drawing import Drawn, Line, draw
from lifelong.demo.processes import free_port
from lifelong.demo.run import Demo, DemoOptions, Steps
from lifelong.drawing.style import save, styled
from lifelong.shipped import BUNDLES, Purchases
from scorer.client import RankClient, ScorerError

POINTS: Final = 300
"""Values of a series, at most, in a picture."""

SCRAPE_S: Final = 15.0
"""What a Prometheus of somebody's scrapes at, mostly: rates need four of those."""

DEMO: Final = DemoOptions(events=90_000, rate=1_000, more={"scorer.sampled": "0.05"})
"""A demo that lasts long enough to be looked at."""

ASK_EVERY_S: Final = 0.1
"""How often the scorer beside is asked for a ranking, of `CANDIDATES` items."""

CANDIDATES: Final = 100
STRIDE: Final = 9973
"""Rows from one purchase whose user is asked about to the next: of many users, and most of those
who buy most."""


@dataclass(frozen=True)
class DashboardOptions:
    """What the command line chose."""

    directory: Path
    """Where the pictures go."""
    prometheus: str | None = None
    """Its URL; None: one of our own, beside a demo."""
    hours: float = 6.0
    """The time that is shown, until now; of a demo it is all of its own."""


def run_dashboards(options: DashboardOptions, *, quiet: bool) -> dict[str, Any]:
    """Draw them; what each panel shows, by dashboard, and which show nothing.

    Raises:
        PrometheusError: it cannot be started or asked.
        SettingsError: the pictures cannot be written.
    """
    console = Console(file=sys.stderr) if quiet else Console()
    if options.prometheus is not None:
        now = time.time()
        span = span_until(now, options.hours * 3600)
        said = f"{options.prometheus}, {options.hours:g} h until {_moment(now)}"
        read = reader(options.prometheus, span, max(4 * SCRAPE_S, span.step + SCRAPE_S))
        report = render(options.directory, read, span, said)
    else:
        with _demonstrated(console) as (url, began):
            now = time.time()
            span = span_until(now, now - began)
            report = render(options.directory, reader(url, span, 10), span, _of_demo(now - began))
    if not quiet:
        for board in report["dashboards"]:
            console.print(f"{board['file']}: {len(board['panels'])} panels", highlight=False)
        for empty in report["empty"]:
            console.print(f"nothing told for {empty}", highlight=False)
    return report


Reader = Callable[[str], list[Series]]
"""What is told for an expression of a panel."""


def reader(url: str, span: Span, window_s: float) -> Reader:
    """Asks a Prometheus, rates taken over ``window_s`` seconds."""
    return lambda expr: ask(url, fill(expr, window_s, span.end - span.start), span)


def span_until(now: float, seconds: float) -> Span:
    """The time until now, in steps that are whole seconds.

    >>> span_until(1000.0, 600.0)
    Span(start=400.0, end=1000.0, step=2)
    """
    return Span(now - seconds, now, max(1, math.ceil(seconds / POINTS)))


def render(
    directory: Path,
    read: Reader,
    span: Span,
    said: str,
    boards: Sequence[Dashboard] = DASHBOARDS,
) -> dict[str, Any]:
    """Draw dashboards into a directory, ``said`` under their titles."""
    shown = {board: [_told(panel, read) for panel in board.panels] for board in boards}
    with styled():
        figures = {board.uid: draw(board, panels, span, said) for board, panels in shown.items()}
    files = save(figures, directory, "--render", ("png",), thin=True)
    return {
        "dashboards": [
            _row(board, panels, file)
            for (board, panels), file in zip(shown.items(), files, strict=True)
        ],
        "empty": [
            f"{board.title} / {drawn.panel.title}"
            for board, panels in shown.items()
            for drawn in panels
            if drawn.empty
        ],
    }


def _told(panel: Panel, read: Reader) -> Drawn:
    lines = [
        Line(legend(form, series.labels), series)
        for expr, form in panel.queries
        for series in read(expr)
    ]
    return Drawn(panel, lines)


def _row(board: Dashboard, panels: list[Drawn], file: str) -> dict[str, Any]:
    """A dashboard for ``--json``: the last value of each series that told one."""
    return {
        "title": board.title,
        "file": file,
        "panels": [
            {
                "title": drawn.panel.title,
                "unit": drawn.panel.unit,
                "last": {
                    line.name: next(filter(math.isfinite, reversed(line.series.values)))
                    for line in drawn.lines
                    if any(map(math.isfinite, line.series.values))
                },
            }
            for drawn in panels
        ],
    }


@contextlib.contextmanager
def _demonstrated(console: Console) -> Iterator[tuple[str, float]]:
    """A Prometheus, by its URL, that has scraped a demo since a moment.

    A second scorer, with the bundle of TWIN, stands beside that of the demo: panels of TWIN's
    search would be empty without it.
    """
    if (missing := obstacle()) is not None:
        raise PrometheusError(
            f"Prometheus cannot run here: {missing}; or name one, --prometheus URL"
        )
    with contextlib.ExitStack() as stack, Steps(console) as steps:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="lifelong-boards-"))
        )
        demo = Demo(DEMO, directory, stack, steps)
        demo.start()
        twin = demo.scorer_beside(BUNDLES["twin"])
        targets = {WORKER_JOB: [demo.worker_url], SCORER_JOB: [demo.scorer_url, twin]}
        prometheus = stack.enter_context(
            LocalPrometheus(
                directory / "prometheus",
                rules(),
                {
                    job: [url.removeprefix("http://") for url in urls]
                    for job, urls in targets.items()
                },
                port=free_port(9090),
            )
        )
        while not ask(prometheus.url, "sum(up) == 3", Span(now := time.time(), now, 1)):
            time.sleep(0.1)
        began = time.time()
        with _asking(twin):
            demo.stream()
        yield prometheus.url, began


@contextlib.contextmanager
def _asking(url: str) -> Iterator[None]:
    """Ask a scorer for rankings as long as this lasts; that one is refused is no news."""
    ended = threading.Event()
    purchases = Purchases.load()

    def run() -> None:
        with RankClient(url) as client:
            for number in itertools.count():
                if ended.wait(ASK_EVERY_S):
                    return
                row = number * STRIDE % purchases.history_rows
                with contextlib.suppress(ScorerError):
                    client.rank(purchases.users[purchases.user[row]], purchases.items[:CANDIDATES])

    thread = threading.Thread(target=run, name="asking")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _of_demo(seconds: float) -> str:
    return (
        f"lifelong demo, {DEMO.rate:,.0f} events a second for {seconds:.0f} s, ENCODE, and a second"
        " scorer with TWIN beside; time since Prometheus began to look, one look a second"
    )


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
