"""``lifelong replay`` and ``lifelong backfill``: files of events to Kafka, and to the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from infra.errors import SettingsError
from infra.kafka.admin import topic_partitions
from infra.kafka.clients import producer_config
from infra.settings import Settings
from infra.stores import open_store
from models.bundle import states_of
from streaming.files.backfill import backfill
from streaming.files.reader import OnBad
from streaming.files.replay import replay
from streaming.interruptions import Interruptions

ON_BAD: Final[dict[str, OnBad]] = {"stop": "stop", "skip": "skip"}


def run_replay(
    settings: Settings, file: Path, *, rate: float, resume: Path | None, on_bad: str
) -> dict[str, Any]:
    """Send a file's events to the topic; Ctrl-C confirms what is under way and ends."""
    begin = time.perf_counter()
    with _progress(f"replay {file.name}") as (at, stop):
        done = replay(
            file,
            producer_config(settings.broker),
            settings.broker.topic,
            settings.events,
            rate=rate,
            on_bad=_on_bad(on_bad),
            position=resume,
            on_progress=lambda progress: at(progress.fraction),
            stop=stop,
        )
    seconds = time.perf_counter() - begin
    _tell(
        f"{_count(done.delivered, 'event')} delivered, {_count(done.skipped, 'row')} skipped",
        seconds,
    )
    return {**asdict(done), "seconds": round(seconds, 3)}


def run_backfill(
    settings: Settings, file: Path, *, partitions: int | None, on_bad: str
) -> dict[str, Any]:
    """Write a file's events into the store; Ctrl-C ends it after the chunk in hand."""
    count = partitions or topic_partitions(settings.broker, settings.broker.topic)
    if not count:
        raise SettingsError(
            f"topic {settings.broker.topic!r} does not exist at {settings.broker.bootstrap}, so"
            " nobody knows which worker is to recluster whom: create it, or give --partitions"
        )
    digest = None if settings.bundle.path is None else states_of(settings.bundle.path)
    interruptions = Interruptions()
    store = open_store(
        settings.store,
        actions=settings.events.declared_actions.names,
        interrupted=interruptions,
    )
    begin = time.perf_counter()
    try:
        with _progress(f"backfill {file.name}") as (at, stop):
            done = backfill(
                file,
                store,
                settings.broker.topic,
                count,
                settings.events,
                digest=digest,
                on_bad=_on_bad(on_bad),
                on_progress=lambda progress: at(progress.fraction),
                stop=stop,
                interruptions=interruptions,
            )
    finally:
        store.close()
    seconds = time.perf_counter() - begin
    deleted = f" {done.deleted:,} of deleted users," if done.deleted else ""
    _tell(
        f"{_count(done.applied, 'event')} applied, {done.replayed:,} there already,{deleted}"
        f" {_count(done.skipped, 'row')} skipped",
        seconds,
    )
    return {**asdict(done), "events": done.events, "seconds": round(seconds, 3)}


def _on_bad(choice: str) -> OnBad:
    if choice not in ON_BAD:
        raise SettingsError(f"--on-bad {choice!r}: choose stop or skip")
    return ON_BAD[choice]


@contextmanager
def _progress(title: str) -> Iterator[tuple[Callable[[float], None], threading.Event]]:
    """A bar on standard error: what takes the fraction done, and what is set by Ctrl-C."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    stop = threading.Event()
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,  # the line that follows says how it ended
    ) as progress:
        task = progress.add_task(title, total=1.0)
        try:
            yield lambda fraction: progress.update(task, completed=fraction), stop
        finally:
            stop.set()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _tell(what: str, seconds: float) -> None:
    Console(stderr=True).print(f"{what} in {seconds:.1f} s", highlight=False, soft_wrap=True)
