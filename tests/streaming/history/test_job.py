"""Jobs of files, over a store in memory and LMDB."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import pyarrow as pa
import pytest

from infra.behaviors import Source, category_key, item_key, pack_behavior, partition_owner
from infra.errors import SettingsError, SourceError, StoreFull, StoreUnavailable
from infra.segments import SEGMENT
from infra.store import Append, Claim, Group, History, Merged, Store
from infra.stores.lmdb import LmdbStore
from infra.stores.memory import MemoryStore
from streaming.history.inputs import FileInput
from streaming.history.job import Job, JobOptions, JobProgress
from streaming.history.placing import murmur2, partition_numbers
from streaming.interruptions import BACK_MS, Interruptions
from tests.streaming.history.events import T0, Row, expected, rows, stored, write

DIGEST = b"b" * 16
SOURCE = Source(77, partition_owner("behaviors", 0))


@pytest.fixture(params=["memory", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return MemoryStore()
    return LmdbStore(tmp_path / "store", max_size=1 << 26)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


Run = Callable[..., JobProgress]


@pytest.fixture
def run(store: Store, work: Path) -> Run:
    """Runs a job over files."""

    def run_it(files: Sequence[Path], name: str = "history", **options: Any) -> JobProgress:
        chosen = JobOptions(name=name, **options)
        return Job([FileInput(file) for file in files], store, "behaviors", 4, work, chosen).run()

    return run_it


def live(store: Store, user: str, *events: int, offset: int = 0) -> None:
    """Append events of a user at T0 + each, as a worker does."""
    behaviors = [pack_behavior(item_key(f"i{n}"), T0 + n, 0, 0, 2) for n in events]
    offsets = list(range(offset, offset + len(events)))
    store.append([Group(SOURCE, [Append(user, behaviors, [0] * len(events), offsets)])], T0)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_each_users_sequence_is_their_rows_by_time(
    run: Run, store: Store, tmp_path: Path, work: Path, suffix: str
) -> None:
    events = rows()
    random.Random(1).shuffle(events)
    done = run([write(tmp_path / f"e{suffix}", events)])
    assert stored(store) == expected(events)
    assert (done.events, done.cut, done.finished) == (300, T0 + 300, True)
    assert done.merged == Merged(users=13, behaviors=300)
    assert not work.exists()


def test_all_fields_are_stored(run: Run, store: Store, tmp_path: Path) -> None:
    event = rows(1)[0] | {"category_id": "toys", "dwell_ms": 70, "action": "purchase"}
    run([write(tmp_path / "e.jsonl", [event])])
    (sequence,) = store.sequences(["u0"])
    assert sequence is not None
    assert sequence.behaviors.tolist() == [(item_key("i0"), T0, category_key("toys"), 70, 4)]


def test_what_the_stream_has_from_the_cut_on_follows(
    run: Run, store: Store, tmp_path: Path
) -> None:
    live(store, "u0", 0, 13, 39, 310, 305)
    done = run([write(tmp_path / "e.parquet", rows(300, users=1))])
    assert done.merged == Merged(users=1, behaviors=300, replaced=3, kept=2)
    live(store, "u0", 299, 400, offset=5)
    items = [item_key(f"i{n}") for n in (*range(300), 310, 305, 400)]
    assert [item for item, _ in stored(store)["u0"]] == items


def test_a_cut_leaves_the_rest_to_the_stream(run: Run, store: Store, tmp_path: Path) -> None:
    done = run([write(tmp_path / "e.csv", rows(100, users=1))], cut=T0 + 60)
    assert (done.cut, done.later, done.merged.behaviors) == (T0 + 60, 40, 60)
    assert len(stored(store)["u0"]) == 60


def test_a_finished_job_is_not_done_again(run: Run, store: Store, tmp_path: Path) -> None:
    file = write(tmp_path / "e.parquet", rows())
    run([file])
    live(store, "u0", 500)
    again = run([file])
    assert (again.finished, again.inputs, again.merged.users) == (True, 0, 0)
    assert len(stored(store)["u0"]) == len(expected(rows())["u0"]) + 1


def test_a_job_has_one_set_of_inputs_unless_it_is_begun_anew(
    run: Run, store: Store, tmp_path: Path
) -> None:
    run([write(tmp_path / "e.parquet", rows())])
    other = write(tmp_path / "e.csv", rows())
    with pytest.raises(SettingsError, match=r"'history' has other inputs .* --again"):
        run([other])
    done = run([other], again=True)
    assert (done.merged.users, done.merged.replaced) == (13, 300)
    assert stored(store) == expected(rows())


def test_another_jobs_history_takes_the_place_of_the_first(
    run: Run, store: Store, tmp_path: Path
) -> None:
    run([write(tmp_path / "e.parquet", rows())], name="one")
    run([write(tmp_path / "e.csv", rows(310))], name="two")
    assert stored(store) == expected(rows(310))


@pytest.mark.parametrize("ids", [True, False])
def test_a_row_that_stands_in_two_files_is_one_event(
    run: Run, store: Store, tmp_path: Path, ids: bool
) -> None:
    files = [
        write(tmp_path / "a.parquet", rows(200, ids=ids)),
        write(tmp_path / "b.csv", rows(200, first=100, ids=ids)),
        write(tmp_path / "c.jsonl", rows(300, ids=ids)),
    ]
    done = run(files)
    assert done.duplicates == 400
    assert stored(store) == expected(rows())


def test_rows_alike_in_one_file_are_as_many_events(run: Run, store: Store, tmp_path: Path) -> None:
    twice = rows(1, ids=False) * 2
    write(tmp_path / "a.csv", twice)
    write(tmp_path / "b.csv", rows(1, ids=False) * 3)
    assert run([tmp_path / "a.csv", tmp_path / "b.csv"]).duplicates == 2
    assert len(stored(store)["u0"]) == 3


def test_processes_that_share_a_job_do_all_of_it(store: Store, tmp_path: Path) -> None:
    file = write(tmp_path / "e.parquet", rows(users=60))
    users = 0
    for part in range(3):
        options = JobOptions(cut=T0 + 300, part=part, parts=3)
        work = tmp_path / f"work{part}"
        done = Job([FileInput(file)], store, "behaviors", 4, work, options).run()
        assert 0 < done.merged.users < 60
        users += done.merged.users
    assert users == 60
    assert stored(store) == expected(rows(users=60))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cut": 1 << 50}, "--cut lies in the future"),
        ({"parts": 2}, "must have the same --cut"),
        ({"part": 2, "parts": 2, "cut": 1}, "--part 3/2"),
        ({"name": "a/b"}, "without slashes"),
    ],
)
def test_options_that_make_no_sense_are_told(run: Run, options: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        run([], **options)


def small_job(directory: Path, store: Store, **options: Any) -> Job:
    """A job of three files that is read and merged in small pieces."""
    files = [write(directory / f"{n}.jsonl", rows(200, users=40, first=200 * n)) for n in range(3)]
    inputs = [FileInput(file) for file in files]
    return Job(
        inputs, store, "behaviors", 4, directory / "work", bucket_rows=100, commit_rows=1, **options
    )


def test_a_stopped_job_goes_on_where_it_was(store: Store, tmp_path: Path) -> None:
    finished, runs = False, 0
    while not finished and runs < 100:
        runs += 1
        stop, told = threading.Event(), itertools.count(1)

        def on_progress(_: JobProgress, told: Any = told, stop: Any = stop) -> None:
            if next(told) == 2:
                stop.set()

        finished = small_job(tmp_path, store).run(on_progress, stop).finished
    assert finished
    assert runs > 3
    assert stored(store) == expected(rows(600, users=40))


def run_until_killed(directory: Path, after: int) -> None:
    """Run the job in a store of the directory, and be killed after so many steps."""
    told = itertools.count(1)

    def on_progress(_: JobProgress) -> None:
        if next(told) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    small_job(directory, LmdbStore(directory / "store")).run(on_progress)


def test_a_job_that_is_killed_at_any_step_loses_and_doubles_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    codes = []
    for after in (2, 2, 4, 100):
        process = context.Process(target=run_until_killed, args=(tmp_path, after))
        process.start()
        process.join()
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert stored(LmdbStore(tmp_path / "store")) == expected(rows(600, users=40))


class Unread(FileInput):
    """A file of which nobody may ask more than what it is."""

    def events(self) -> NoReturn:
        raise AssertionError


def test_what_was_read_is_not_read_again(store: Store, tmp_path: Path) -> None:
    stop = threading.Event()
    first = small_job(tmp_path, store).run(
        lambda progress: stop.set() if progress.inputs == 1 else None, stop
    )
    assert first.inputs == 2
    inputs = [
        Unread(tmp_path / "0.jsonl"),
        Unread(tmp_path / "1.jsonl"),
        FileInput(tmp_path / "2.jsonl"),
    ]
    assert Job(inputs, store, "behaviors", 4, tmp_path / "work").run().finished
    assert stored(store) == expected(rows(600, users=40))


def test_users_who_are_merged_are_recognised_where_the_folder_is_lost(
    store: Store, tmp_path: Path
) -> None:
    stop = threading.Event()
    small_job(tmp_path, store).run(
        lambda progress: stop.set() if progress.merged.users > 10 else None, stop
    )
    for file in (tmp_path / "work").iterdir():
        file.unlink()
    done = small_job(tmp_path, store).run()
    assert done.merged.merged_before > 10
    assert done.merged.users + done.merged.merged_before == 40
    assert stored(store) == expected(rows(600, users=40))


def test_a_folder_of_other_files_is_left_alone(run: Run, tmp_path: Path, work: Path) -> None:
    write(work / "mine.csv", rows(1))
    file = write(tmp_path / "e.csv", rows())
    with pytest.raises(SettingsError, match="holds other files than a job's"):
        run([file])
    (work / "progress.json").write_text("[]")
    with pytest.raises(SettingsError, match=r"progress.json is not a job's"):
        run([file])
    (work / "progress.json").unlink()
    assert (work / "mine.csv").exists()


class Failing(MemoryStore):
    """A store in memory that fails at some of its merges, when it has merged a part of them."""

    def __init__(self, errors: dict[int, Exception]) -> None:
        super().__init__()
        self._errors = errors
        self.merges = 0
        self.digests: set[bytes | None] = set()

    def merge(
        self,
        histories: Sequence[History],
        claim: Claim,
        now_ms: int,
        *,
        digest: bytes | None = None,
    ) -> Merged:
        self.merges += 1
        self.digests.add(digest)
        if self.merges in self._errors:
            super().merge(histories[:1], claim, now_ms, digest=digest)
            raise self._errors[self.merges]
        return super().merge(histories, claim, now_ms, digest=digest)


def test_a_store_that_failed_loses_and_doubles_nothing(tmp_path: Path) -> None:
    store = Failing({3: StoreFull("no room")})
    with pytest.raises(StoreFull):
        small_job(tmp_path, store).run()
    assert small_job(tmp_path, store).run().finished
    assert stored(store) == expected(rows(600, users=40))


def test_a_store_that_is_away_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    store = Failing({2: StoreUnavailable("away"), 3: StoreUnavailable("away")})
    done = small_job(tmp_path, store, digest=DIGEST).run()
    assert done.merged.users + done.merged.merged_before == 40
    assert store.digests == {DIGEST}


def test_what_a_store_lost_in_an_outage_is_merged_again(tmp_path: Path) -> None:
    interruptions = Interruptions()
    ticks = itertools.count(T0 + 1000, BACK_MS // 2)

    class Killed(MemoryStore):
        """It loses what it acknowledged after its first merge when the third one comes."""

        merges = 0

        def merge(self, *args: Any, **options: Any) -> Merged:
            self.merges += 1
            if self.merges == 3:
                self._heads, self._segments = dict(flushed["heads"]), dict(flushed["segments"])
                interruptions(next(ticks))
                raise StoreUnavailable("away")
            done = super().merge(*args, **options)
            if self.merges == 1:
                flushed.update(heads=dict(self._heads), segments=dict(self._segments))
            return done

    flushed: dict[str, Any] = {}
    store = Killed()
    job = small_job(
        tmp_path, cast("Store", store), clock=ticks.__next__, interruptions=interruptions
    )
    assert job.run().finished
    assert stored(cast("Store", store)) == expected(rows(600, users=40))


def test_users_are_due_under_the_partition_of_their_events(
    store: Store, tmp_path: Path, work: Path
) -> None:
    file = write(tmp_path / "e.parquet", rows(13 * SEGMENT))
    Job([FileInput(file)], store, "behaviors", 4, work, digest=DIGEST).run()
    users = [f"u{n}" for n in range(13)]
    of = partition_numbers(murmur2(pa.array(users)), 4).tolist()
    for number in range(4):
        due = {d.user for d in store.due(partition_owner("behaviors", number), DIGEST, 100)}
        assert due == {user for user, mine in zip(users, of, strict=True) if mine == number}


def test_what_happened_before_a_user_was_deleted_stays_out(
    run: Run, store: Store, tmp_path: Path
) -> None:
    store.forget(["u5"], T0 + 400)
    done = run([write(tmp_path / "e.parquet", rows())])
    assert done.merged.deleted == len(expected(rows())["u5"])
    assert "u5" not in stored(store)


def test_bad_rows_stop_a_job_or_are_counted(store: Store, tmp_path: Path, work: Path) -> None:
    bad: list[Row] = [{"user_id": "x"}, *rows()]
    file = write(tmp_path / "e.jsonl", bad)
    with pytest.raises(SourceError, match="row 1"):
        Job([FileInput(file)], store, "behaviors", 4, work).run()
    done = Job([FileInput(file, on_bad="skip")], store, "behaviors", 4, work).run()
    assert (done.skipped, done.merged.behaviors) == (1, 300)


def test_inputs_without_events_are_a_job_that_is_finished(
    run: Run, store: Store, tmp_path: Path
) -> None:
    assert run([write(tmp_path / "e.jsonl", [])]).finished
    assert store.empty()
