from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from scorer.jobs import Job, Jobs, standing_aside


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    jobs = Jobs()
    jobs.start(4)
    yield jobs
    jobs.close()


async def test_one_job_computes_at_a_time(jobs: Jobs) -> None:
    loop, computing = asyncio.get_running_loop(), threading.Lock()

    def compute() -> bool:
        alone = computing.acquire(blocking=False)
        threading.Event().wait(0.01)
        computing.release()
        return alone

    asked = [Job(compute, None, loop) for _ in range(4)]
    for job in asked:
        jobs.put(job)
    assert await asyncio.gather(*(job.future for job in asked)) == [True] * 4


async def test_jobs_that_wait_for_something_let_others_compute(jobs: Jobs) -> None:
    together = threading.Barrier(4, timeout=10)

    def compute() -> int:
        with standing_aside():
            return together.wait()

    asked = [Job(compute, None, asyncio.get_running_loop()) for _ in range(4)]
    for job in asked:
        jobs.put(job)
    assert sorted(await asyncio.gather(*(job.future for job in asked))) == [0, 1, 2, 3]


async def test_what_a_job_raises_is_raised_to_who_waits(jobs: Jobs) -> None:
    def compute() -> None:
        raise ZeroDivisionError

    job = Job(compute, None, asyncio.get_running_loop())
    jobs.put(job)
    with pytest.raises(ZeroDivisionError):
        await job.future


def test_standing_aside_is_nothing_in_a_thread_without_jobs() -> None:
    with standing_aside():
        pass
