"""``lifelong replay`` and ``lifelong backfill``: files of events to Kafka, and histories into the
store.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from infra.errors import SettingsError
from infra.kafka.admin import topic_partitions
from infra.kafka.clients import producer_config
from infra.settings import Settings
from infra.store import wall_clock_ms
from infra.stores import open_store
from models.bundle import states_of
from streaming.files.formats.text import Text
from streaming.files.reader import OnBad
from streaming.files.replay import replay
from streaming.history.inputs import FileInput, Input, find_files
from streaming.history.job import Job, JobOptions, JobProgress
from streaming.history.topic import TopicInput
from streaming.interruptions import Interruptions

ON_BAD: Final[dict[str, OnBad]] = {"stop": "stop", "skip": "skip"}

WORK: Final = Path(".lifelong/history")
"""Where the files of jobs are, each in a folder of its own, where no other is named."""


def run_replay(
    settings: Settings,
    file: Path,
    *,
    rate: float,
    resume: Path | None,
    on_bad: str,
    text: Text | None = None,
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
            text=text,
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


def job_options(name: str, *, cut: str | None, again: bool, part: str) -> JobOptions:
    """Options as they are typed: the cut in ISO 8601 or ms since epoch, the part as I/N.

    Raises:
        SettingsError: one of them cannot be read.

    >>> job_options("crm", cut="2026-01-01T00:00:00Z", again=False, part="2/3").cut
    1767225600000
    """
    number, _, parts = part.partition("/")
    if not (number.isdecimal() and parts.isdecimal()):
        raise SettingsError(f"--part {part!r}: give I/N, as in 1/4")
    return JobOptions(
        name=name,
        cut=None if cut is None else _cut_ms(cut),
        again=again,
        part=int(number) - 1,
        parts=int(parts),
    )


def _cut_ms(cut: str) -> int:
    if cut.isdecimal():
        return int(cut)
    try:
        moment = datetime.fromisoformat(cut)
    except ValueError:
        raise SettingsError(
            f"--cut {cut!r}: give ISO 8601, as in 2026-01-31T00:00:00Z, or ms since epoch"
        ) from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def run_backfill(
    settings: Settings,
    places: Sequence[str],
    options: JobOptions | None = None,
    *,
    from_topic: bool = False,
    work: Path | None = None,
    partitions: int | None = None,
    on_bad: str = "stop",
    text: Text | None = None,
) -> dict[str, Any]:
    """Merge the histories that files and the topics hold into the store; Ctrl-C ends it soon, and
    the same command goes on. Of several sources the first one's workers recluster the users.
    """
    options = options or JobOptions()
    if not places and not from_topic:
        raise SettingsError("name files, folders or patterns, or --from-topic, or both")
    readers = settings.readers()
    topic = readers[0].broker.topic
    count = partitions or topic_partitions(settings.broker, topic)
    if not count:
        raise SettingsError(
            f"topic {topic!r} does not exist at {settings.broker.bootstrap}, so"
            " nobody knows which worker is to recluster whom: create it, or give --partitions"
        )
    digest = None if settings.bundle.path is None else states_of(settings.bundle.path)
    now_ms = wall_clock_ms()
    bad = _on_bad(on_bad)
    inputs: list[Input] = [
        FileInput(file, settings.reading().events, on_bad=bad, text=text, now_ms=now_ms)
        for file in find_files(places)
    ]
    if from_topic:
        inputs += [TopicInput(one, now_ms) for one in readers]
    interruptions = Interruptions()
    store = open_store(
        settings.store,
        actions=settings.events.declared_actions.names,
        interrupted=interruptions,
    )
    shared = f"-{options.part + 1}-of-{options.parts}" if options.parts > 1 else ""
    work = work or WORK / f"{options.name}{shared}"
    begin = time.perf_counter()
    try:
        job = Job(
            inputs,
            store,
            topic,
            count,
            work,
            options,
            live=from_topic,
            digest=digest,
            interruptions=interruptions,
        )
        _say(f"{_count(len(inputs), 'input')}; {_room(job.disk_bytes, work)}")
        with _progress(f"backfill {options.name}") as (at, stop):
            done = job.run(lambda progress: at(progress.fraction), stop)
    finally:
        store.close()
    seconds = time.perf_counter() - begin
    _tell(_summary(done), seconds)
    report = asdict(done)
    return {**report, **report.pop("merged"), "seconds": round(seconds, 3)}


def _summary(done: JobProgress) -> str:
    merged = done.merged
    if done.finished and not done.inputs:
        return f"job {done.job!r} is finished: nothing was read or changed (--again: begin anew)"
    cut = "all is read" if done.cut is None else f"before {_time(done.cut)}"
    users, events = _count(merged.users, "user"), _count(merged.behaviors, "event")
    parts = [
        f"job {done.job!r}, {cut}: {users} merged with {events}",
        f"{merged.replaced:,} stored ones replaced, {merged.kept:,} kept behind them",
    ]
    left_out = {
        "users merged before": merged.merged_before,
        "events left to the stream": done.later,
        "events met twice": done.duplicates,
        "events of deleted users": merged.deleted,
        "rows skipped": done.skipped,
    }
    parts += [f"{number:,} {what}" for what, number in left_out.items() if number]
    if not done.finished:
        parts.append("not finished, the same command goes on")
    return "; ".join(parts)


def _room(needed: int, work: Path) -> str:
    there = next(folder for folder in (work, *work.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    return f"about {needed / 1e6:,.0f} MB of {free / 1e6:,.0f} MB free for its files in {work}"


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


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
    _say(f"{what}; {seconds:.1f} s")


def _say(what: str) -> None:
    Console(stderr=True).print(what, highlight=False, soft_wrap=True)
