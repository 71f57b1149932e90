"""A job: histories out of all of its inputs, merged into the store, once and beside the stream.

It reads its inputs into a folder (`streaming.history.spill`), then merges bucket after bucket. How
far it came stands in the folder; in the store stand the job's name, its cut and whether it is
finished, so that the same command goes on after whatever ended it, with the same cut, and says so
when there is nothing left to do. Where the folder was lost it reads again: users who are merged are
recognised by the mark that they carry.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import xxhash

from infra.behaviors import partition_owner
from infra.errors import SettingsError, SourceError, StoreUnavailable
from infra.files import replacing
from infra.store import Claim, Merged, Store, wall_clock_ms
from infra.telemetry import get_logger
from streaming.bookmarks import decode_bookmark
from streaming.history.buckets import Told, histories
from streaming.history.inputs import Input
from streaming.history.spill import BUCKET_ROWS, ROW_BYTES, SUFFIX, Spill, buckets_for
from streaming.interruptions import Interruptions, Trail

LATE_MS: Final = 300_000
"""So much before its own start a job leaves to the stream of a topic whose end has moved since."""

COMMIT_ROWS: Final = 4_000_000
"""Events after which what was read need not be read again, at the end of an input."""

READING: Final = 0.4
"""Share of the work, about, that is reading; the rest is merging."""

PATIENCE_S: Final = 60.0
"""How long a store that cannot be reached is waited for before the job gives up. It can be resumed
then."""

RETRY_S: Final = 0.1
RETRY_MAX_S: Final = 5.0

T = TypeVar("T")
log: Final = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What a job is called, and how it goes about it."""

    name: str = "history"
    """By which it is known again."""
    cut: int | None = None
    """ms since epoch; None: right behind the newest event that is read, or the job's start where
    that is earlier, and of a topic `LATE_MS` before that at the latest."""
    again: bool = False
    """Whether a job of that name that is finished, or had other inputs, is begun anew."""
    part: int = 0
    """Which part of the users this process merges, from 0."""
    parts: int = 1
    """How many processes share the job; the cut must be given then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """Where a job stands. What was read is of the whole job, what was merged of this run."""

    job: str
    cut: int | None
    """ms since epoch; None: all is not read yet."""
    inputs: int = 0
    """Inputs read."""
    events: int = 0
    """Events read, of this process's part of the users."""
    skipped: int = 0
    """Rows that are no events."""
    later: int = 0
    """Events from the cut on, which are the stream's."""
    duplicates: int = 0
    """Events that stood in the inputs twice."""
    merged: Merged = field(default_factory=Merged)
    fraction: float = 0.0
    """How much is done, 0 to 1."""
    finished: bool = False
    """Whether nothing is left to do; False also at the end of a run that was stopped."""


class _Kept(msgspec.Struct, kw_only=True):
    """What the store remembers of a job, by its name and part."""

    generation: int = 0
    """How often it was begun anew."""
    inputs: str
    """Tells its inputs from others."""
    begun_ms: int
    cut: int | None = None
    finished_ms: int | None = None


class _Place(msgspec.Struct, kw_only=True):
    """How far it came, beside its files."""

    job: int
    buckets: int
    sizes: list[int] | None = None
    """Of the files, when `inputs` were read; None: none was."""
    inputs: int = 0
    """Inputs read."""
    events: int = 0
    skipped: int = 0
    newest: int | None = None
    """Time of the newest event read, ms since epoch."""
    read: bool = False
    """Whether all inputs were."""
    merged: int = 0
    """Buckets merged."""
    left_out: dict[int, tuple[int, int]] = msgspec.field(default_factory=dict)
    """By bucket: events from the cut on, and those met before."""


class Job:
    """One process's part of a job.

    Args:
        inputs: what it reads, all of it.
        store: where to.
        topic: whose workers are to recluster the users.
        partitions: how many that has.
        work: folder for its files, which is removed when it is finished.
        options: what it is called.
        live: whether an input is a topic that goes on growing.
        digest: of the bundle that the users are to be due for; None: for no other than they were.
        clock: the time in ms since epoch.
        interruptions: outages of the store, after which histories are merged again.
        bucket_rows: events that are sorted together, about.
        commit_rows: events after which what was read is not read again, at the end of an input.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        store: Store,
        topic: str,
        partitions: int,
        work: Path,
        options: JobOptions | None = None,
        *,
        live: bool = False,
        digest: bytes | None = None,
        clock: Callable[[], int] = wall_clock_ms,
        interruptions: Interruptions | None = None,
        bucket_rows: int = BUCKET_ROWS,
        commit_rows: int = COMMIT_ROWS,
    ) -> None:
        self._inputs = inputs
        self._store = store
        self._owners = [partition_owner(topic, number) for number in range(partitions)]
        self._work = work
        self._options = options or JobOptions()
        self._live = live
        self._digest = digest
        self._clock = clock
        self._outages = interruptions or Interruptions()
        self._rows = sum(one.rows for one in inputs)
        self._bucket_rows = bucket_rows
        self._commit_rows = commit_rows
        self._bookmark = _bookmark(self._options)
        _check(self._options, clock())

    @property
    def disk_bytes(self) -> int:
        """Bytes that its files take, about, beside what the store does."""
        return self._rows * ROW_BYTES // self._options.parts

    def run(
        self,
        on_progress: Callable[[JobProgress], None] | None = None,
        stop: threading.Event | None = None,
    ) -> JobProgress:
        """Do what is left of the job.

        Args:
            on_progress: called several times a second, at most as often as something is done.
            stop: when set, the run ends soon; another goes on.

        Raises:
            SettingsError: a job of that name is finished, or begun, with other inputs.
            SourceError, BrokerError: an input cannot be read, or a row is no event.
            StoreError: the store failed.
        """
        stop = stop or threading.Event()
        kept = self._begin(stop)
        if kept.finished_ms is not None:
            return JobProgress(job=self._options.name, cut=kept.cut, fraction=1.0, finished=True)
        job = xxhash.xxh3_64_intdigest(f"{self._options.name}/{kept.generation}".encode())
        place = self._found(job)
        spill = Spill(self._work, place.buckets, self._options.part, self._options.parts)
        told = _Telling(self._options.name, kept, place, on_progress)
        if not place.read:
            self._read(spill, place, told, stop)
            if not place.read:
                return told.progress
        if kept.cut is None:
            kept.cut = self._cut(kept.begun_ms, place.newest)
            self._keep(kept, stop)
        self._merge(spill, place, Claim(job, kept.cut), told, stop)
        if place.merged < place.buckets:
            return told.progress
        kept.finished_ms = self._clock()
        self._keep(kept, stop)
        self._clear()
        return replace(told.progress, fraction=1.0, finished=True)

    def _begin(self, stop: threading.Event) -> _Kept:
        """What the store knows of the job, which it does from now on."""
        options, inputs = self._options, _digest(self._inputs)
        now_ms = self._clock()
        record = self._patiently(lambda: self._store.get_bookmark(self._bookmark), stop)
        new = _Kept(inputs=inputs, begun_ms=now_ms, cut=options.cut)
        if record is not None:
            old = decode_bookmark(record, self._bookmark, _Kept)
            if options.again and (old.finished_ms is not None or old.inputs != inputs):
                new.generation = old.generation + 1
            elif old.inputs != inputs:
                raise SettingsError(
                    f"job {options.name!r} {'has' if old.finished_ms else 'was begun with'} other"
                    f" inputs than these: {_CLAIMS}"
                )
            elif options.cut not in {None, old.cut} and old.finished_ms is None:
                raise SettingsError(
                    f"job {options.name!r} was begun with another --cut: leave it out, to go on"
                )
            else:
                return old
        self._keep(new, stop)
        return new

    def _keep(self, kept: _Kept, stop: threading.Event) -> None:
        record = msgspec.json.encode(kept)
        self._patiently(lambda: self._store.put_bookmark(self._bookmark, record), stop)

    def _found(self, job: int) -> _Place:
        """How far the job came, by its folder."""
        try:
            place = msgspec.json.decode(self._progress_file.read_bytes(), type=_Place)
        except FileNotFoundError:
            if self._work.exists() and any(f.suffix != SUFFIX for f in self._work.iterdir()):
                raise SettingsError(
                    f"{self._work} holds other files than a job's: name an empty folder by --work"
                ) from None
        except OSError as error:
            raise SourceError(f"{self._work}: {error.strerror}; choose another --work") from error
        except msgspec.DecodeError as error:
            raise SettingsError(
                f"{self._progress_file} is not a job's: remove it, or name another --work"
            ) from error
        else:
            if place.job == job:
                return place
        rows = self._rows // self._options.parts
        place = _Place(job=job, buckets=buckets_for(rows, self._bucket_rows))
        self._clear()
        self._note(place)
        return place

    def _clear(self) -> None:
        """Remove the files that jobs make, and the folder unless it holds others."""
        with contextlib.suppress(OSError):
            for file in self._work.glob(f"*{SUFFIX}"):
                file.unlink()
            self._progress_file.unlink(missing_ok=True)
            self._work.rmdir()

    def _note(self, place: _Place) -> None:
        try:
            with replacing(self._progress_file) as file:
                file.write(msgspec.json.encode(place))
        except OSError as error:
            raise SourceError(
                f"{self._progress_file} cannot be written: {error.strerror}; make room, or choose"
                " another folder by --work"
            ) from error

    @property
    def _progress_file(self) -> Path:
        return self._work / "progress.json"

    def _read(self, spill: Spill, place: _Place, told: _Telling, stop: threading.Event) -> None:
        """Read what is left of the inputs."""
        noted, skipped = 0, place.skipped
        spill.begin(place.sizes)
        spill.kept = place.events
        try:
            for number in range(place.inputs, len(self._inputs)):
                one = self._inputs[number]
                for events, fraction in one.events():
                    spill.add(events, number)
                    if len(events):
                        newest = int(events.behaviors["time"].max())
                        place.newest = max(newest, place.newest or newest)
                    if stop.is_set():
                        return
                    told.read(spill.kept, (number + fraction) / len(self._inputs))
                skipped += one.skipped
                place.inputs, place.skipped = number + 1, skipped
                place.read = place.inputs == len(self._inputs)
                if place.read or spill.taken - noted >= self._commit_rows:
                    place.sizes = spill.commit()
                    place.events, noted = spill.kept, spill.taken
                    self._note(place)
        finally:
            spill.close()
        if not self._inputs:
            place.read = True

    def _cut(self, begun_ms: int, newest: int | None) -> int:
        latest = begun_ms - LATE_MS if self._live else begun_ms
        return latest if newest is None else min(newest + 1, latest)

    def _merge(
        self, spill: Spill, place: _Place, claim: Claim, told: _Telling, stop: threading.Event
    ) -> None:
        """Merge the buckets that are left."""
        identity = self._store.identity
        assert identity is not None  # of stores that are written
        trail = Trail()
        trail.passed(self._clock(), place.merged)
        while place.merged < place.buckets and not stop.is_set():
            if (since_ms := self._outages.take()) is not None:
                place.merged = min(place.merged, trail.at(since_ms) or 0)
                log.warning("store was away, histories are merged again", bucket=place.merged)
            if not self._merge_bucket(spill, place, claim, identity.length, told, stop):
                continue
            trail.passed(self._clock(), place.merged)
            place.merged += 1
            self._note(place)

    def _merge_bucket(
        self,
        spill: Spill,
        place: _Place,
        claim: Claim,
        length: int,
        told: _Telling,
        stop: threading.Event,
    ) -> bool:
        """Whether all of the next bucket was merged."""
        left_out = Told()
        table = spill.read(place.merged)
        several = len(self._inputs) > 1
        for part in histories(table, claim.cut, length, self._owners, left_out, several=several):
            merge = functools.partial(
                self._store.merge, part, claim, self._clock(), digest=self._digest
            )
            merged = self._patiently(merge, stop)
            if merged is None or stop.is_set():
                return False
            told.merged(merged, (place.merged + 0.5) / place.buckets)
        place.left_out[place.merged] = left_out.later, left_out.duplicates
        return True

    def _patiently(self, operation: Callable[[], T], stop: threading.Event) -> T | None:
        """Do a store operation, again and again while the store cannot be reached; None: there was
        an outage, and what was merged before it comes first.
        """
        deadline = time.monotonic() + PATIENCE_S
        pause = RETRY_S
        while True:
            if self._outages.pending:
                return None
            try:
                return operation()
            except StoreUnavailable as error:
                if time.monotonic() >= deadline or stop.wait(pause):
                    raise
                if pause == RETRY_S:
                    log.warning("backfill waits for the store", error=str(error))
                pause = min(RETRY_MAX_S, pause * 2)


class _Telling:
    """Progress, as it is told."""

    def __init__(
        self,
        name: str,
        kept: _Kept,
        place: _Place,
        on_progress: Callable[[JobProgress], None] | None,
    ) -> None:
        self._name = name
        self._kept, self._place = kept, place
        self._on_progress = on_progress
        self._merged = Merged()
        self._events = place.events
        self._fraction = 0.0

    @property
    def progress(self) -> JobProgress:
        place = self._place
        left_out = place.left_out.values()
        return JobProgress(
            job=self._name,
            cut=self._kept.cut,
            inputs=place.inputs,
            events=self._events,
            skipped=place.skipped,
            later=sum(later for later, _ in left_out),
            duplicates=sum(duplicates for _, duplicates in left_out),
            merged=replace(self._merged),
            fraction=self._fraction,
        )

    def read(self, events: int, fraction: float) -> None:
        self._events, self._fraction = events, READING * fraction
        self._tell()

    def merged(self, merged: Merged, fraction: float) -> None:
        self._events = self._place.events
        self._merged.add(merged)
        self._fraction = READING + (1 - READING) * fraction
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.progress)


_CLAIMS: Final = (
    "a job claims the whole history of its users, so name all inputs together and --again, or give"
    " another history another --job"
)


def _check(options: JobOptions, now_ms: int) -> None:
    if not options.name or not options.name.isprintable() or "/" in options.name:
        raise SettingsError(f"--job {options.name!r}: give it a name without slashes")
    if options.cut is not None and options.cut > now_ms:
        raise SettingsError(
            "--cut lies in the future, and until then no event of the stream would count: name a"
            " time up to now"
        )
    if options.parts > 1 and options.cut is None:
        raise SettingsError("--part: processes that share a job must have the same --cut, give it")
    if not 0 <= options.part < options.parts:
        raise SettingsError(f"--part {options.part + 1}/{options.parts}: give I/N, from 1 to N")


def _bookmark(options: JobOptions) -> str:
    part = f"/{options.part + 1}-of-{options.parts}" if options.parts > 1 else ""
    return f"history/{options.name}{part}"


def _digest(inputs: Sequence[Input]) -> str:
    """What tells inputs from others, in whatever order they are."""
    found = xxhash.xxh3_64()
    for identity in sorted(one.identity for one in inputs):
        found.update(identity.to_bytes(8, "little"))
    return found.hexdigest()
