"""One load test: what is asked of it, how it goes, what it tells."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from infra.errors import SettingsError
from infra.settings import Settings
from lifelong.arrivals import drawn
from lifelong.loadtest.asking import Asked, ask_all
from lifelong.loadtest.sending import Fresh, Sent, follow, producer_of, send_all
from lifelong.loadtest.traffic import PREFIX, Traffic, made_up
from models.bundle import Bundle
from scorer.client import AsyncRankClient, RankClient

SEED: Final = 7


@dataclass(frozen=True)
class Options:
    """A load, and what it may come to."""

    scorers: tuple[str, ...]
    """URLs, asked in turn."""
    rankings: float
    """A second, at random times (Poisson's)."""
    events: float
    """A second, evenly."""
    seconds: float
    candidates: int
    """B of each ranking."""
    users: int
    """Made-up users, of whom events are sent."""
    ranked: tuple[str, ...] = ()
    """Users who are ranked for; none: the made-up ones."""
    items: tuple[str, ...] = ()
    """Ids; none: those of the bundle, by their popularity."""
    key: str | None = None
    timeout_s: float = 2.0
    max_p99_ms: float | None = None
    max_errors: float | None = None
    """Share of the rankings without an answer of 200, and of the events not acknowledged."""


def run_loadtest(settings: Settings, options: Options, *, quiet: bool) -> dict[str, Any]:
    """Load a deployed system for a while; prints what came of it unless ``quiet``.

    Raises:
        SettingsError: there is nothing to do, or there are not as many items as candidates.
        BrokerError: events are to be sent, and Kafka does not answer, or has no such topic.
    """
    if options.rankings and not options.scorers:
        raise SettingsError("--rankings: name the scorers to ask with --scorer, or give 0")
    if not options.rankings and not options.events:
        raise SettingsError("--rankings and --events are 0: give one of them a rate")
    if options.events:
        _check_sent(settings)
    traffic = _traffic(settings, options)
    run = uuid.uuid4().hex[:8]
    asked, sent, fresh = _load(settings, options, traffic, run)
    report: dict[str, Any] = {
        "seconds": options.seconds,
        "candidates": options.candidates,
        "scorers": list(options.scorers),
        "rankings": None if asked is None else asked.report(),
        "events": None if sent is None else sent.report(),
        "freshness": None if fresh is None else fresh.report(),
        "users": {} if sent is None else {PREFIX: options.users},
        "limits": _limits(options, asked, sent),
    }
    if fresh is not None:
        report["users"][f"{PREFIX}{run}-"] = fresh.users
    report["ok"] = all(limit["kept"] for limit in report["limits"].values())
    if not quiet:
        show(Console(), report)
    return report


def _check_sent(settings: Settings) -> None:
    """Raise where events as they are sent are not what workers read."""
    events = settings.events
    events.single_names()
    if settings.sources or events.format != "json" or events.split or events.only:
        raise SettingsError(
            "--events: flat JSON is sent to broker.topic, and the settings say sources, or that"
            " events are something else: give --events 0"
        )


def _traffic(settings: Settings, options: Options) -> Traffic:
    if options.items:
        items: Any = options.items
        shares = np.ones(len(items))
    else:
        assert settings.bundle.path is not None
        bundle = Bundle.load(settings.bundle.path)
        items = bundle.item_ids[1:]
        shares = np.asarray(bundle.popularity[1:], np.float64) + 1e-6
    if options.rankings and options.candidates > len(items):
        raise SettingsError(
            f"--candidates {options.candidates}: there are {len(items)} items; give fewer, or more"
            " items with --items-file"
        )
    users = made_up(options.users)
    rng = np.random.default_rng(SEED)
    return Traffic(users, options.ranked or users, items, shares / shares.sum(), rng)


def _load(
    settings: Settings, options: Options, traffic: Traffic, run: str
) -> tuple[Asked | None, Sent | None, Fresh | None]:
    """Events in one thread, those that are followed in another, rankings in this one."""
    asked = sent = fresh = None
    candidates = traffic.candidates(options.candidates) if options.rankings else []
    with ThreadPoolExecutor(2, "loadtest") as threads, ExitStack() as stack:
        stop = threading.Event()
        sending = following = None
        stack.callback(stop.set)
        if options.events:
            producers = [producer_of(settings) for _ in range(2)]
            load = traffic, options.events, options.seconds, run, stop
            sending = threads.submit(send_all, producers[0], settings.events, *load)
            if options.rankings:
                client = RankClient(options.scorers[0], options.timeout_s, key=options.key)
                stack.enter_context(client)
                single = client, traffic.items[0], run, stop
                following = threads.submit(follow, producers[1], settings.events, *single)
        if options.rankings:
            asked = _ask(options, traffic, candidates)
        if sending is not None:
            sent = sending.result()
        stop.set()
        if following is not None:
            fresh = following.result()
    return asked, sent, fresh


def _ask(options: Options, traffic: Traffic, candidates: list[list[str]]) -> Asked:
    due = drawn(options.rankings, options.seconds, SEED)

    async def ask() -> Asked:
        clients = [
            AsyncRankClient(url, options.timeout_s, key=options.key) for url in options.scorers
        ]
        try:
            rng = np.random.default_rng(SEED + 1)
            return await ask_all(
                clients, due, options.seconds, traffic.ranked, candidates, rng, options.timeout_s
            )
        finally:
            for client in clients:
                await client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(ask())


def _limits(options: Options, asked: Asked | None, sent: Sent | None) -> dict[str, Any]:
    """What was allowed, what was found, and whether that is within it."""
    limits: dict[str, Any] = {}
    if options.max_p99_ms is not None and asked is not None:
        found = asked.report()["p99_ms"]
        kept = found is not None and found <= options.max_p99_ms
        limits["max_p99_ms"] = {"limit": options.max_p99_ms, "found": found, "kept": kept}
    if options.max_errors is not None:
        worst = max(part.errors for part in (asked, sent) if part is not None)
        kept = worst <= options.max_errors
        limits["max_errors"] = {"limit": options.max_errors, "found": round(worst, 5), "kept": kept}
    return limits


def show(console: Console, report: dict[str, Any]) -> None:
    """Print the figures."""
    table = Table(title=f"Load of {report['seconds']:g} s", title_justify="left", show_header=False)
    for name, text in _rows(report):
        table.add_row(name, text)
    console.print(table)
    rankings = report["rankings"]
    for status, said in (rankings["said"] if rankings else {}).items():
        console.print(f"{status}: {said}", highlight=False, soft_wrap=True, markup=False)
    for name, limit in report["limits"].items():
        if not limit["kept"]:
            option = f"--{name.replace('_', '-')}"
            found = "nothing" if limit["found"] is None else f"{limit['found']:g}"
            console.print(f"[red]FAIL[/] {option} {limit['limit']:g}: found {found}")
    if report["users"]:
        spans = [f"{of}0 to {count - 1}" for of, count in report["users"].items() if count]
        console.print(
            f"Events are of users {' and '.join(spans)}; `lifelong forget` takes them away.",
            highlight=False,
            soft_wrap=True,
        )


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if rankings := report["rankings"]:
        yield "rankings", f"{rankings['asked']:,}, {rankings['per_s']:,} a second"
        if rankings["p50_ms"] is not None:
            quantiles = f"p50 {rankings['p50_ms']:.1f} ms, p99 {rankings['p99_ms']:.1f} ms"
            yield f"latency, {report['candidates']:,} candidates", quantiles
        if rankings["sent_late_p99_ms"] is not None:
            yield "of that, on this side", f"p99 {rankings['sent_late_p99_ms']:.1f} ms"
        yield "answers", _shares(rankings["statuses"])
        yield "users known by", _shares(rankings["histories"])
        yield "degraded", f"{rankings['degraded']:.2%}"
    if events := report["events"]:
        sent = f"{events['sent']:,}, {events['per_s']:,} a second"
        yield "events", f"{sent}; {events['acknowledged']:,} acknowledged"
    if (fresh := report["freshness"]) and fresh["followed"]:
        times = ""
        if fresh["p50_s"] is not None:
            times = f"p50 {fresh['p50_s']:.2f} s, p99 {fresh['p99_s']:.2f} s, "
        yield "an event in rankings", f"{times}{fresh['followed']} followed"
        if fresh["unseen"]:
            yield "events not seen", str(fresh["unseen"])


def _shares(of: dict[str, float]) -> str:
    return ", ".join(f"{name}: {share:.2%}" for name, share in of.items()) or "-"
