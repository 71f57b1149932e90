from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

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


async def test_a_thread_that_waits_has_nothing_of_a_job_that_nobody_wanted(jobs: Jobs) -> None:
    """A client hung up before its turn came: its ranking would keep a bundle that has been
    exchanged until that thread gets another one, of 32 perhaps.
    """
    job = Job(dict, None, asyncio.get_running_loop())
    job.wanted = False
    held = weakref.ref(job.future)
    jobs.put(job)
    del job
    await until_gone(held)


async def test_what_a_job_raised_has_nothing_of_it_once_it_is_told(jobs: Jobs) -> None:
    """Without a search for what refers to itself: a scorer would stand still for that."""

    def compute() -> None:
        raise ZeroDivisionError

    held = weakref.ref(compute)
    job = Job(compute, None, asyncio.get_running_loop())
    gc.disable()
    try:
        jobs.put(job)
        with contextlib.suppress(ZeroDivisionError):
            await job.future
        del job, compute
        await until_gone(held)
    finally:
        gc.enable()


async def until_gone(held: weakref.ref[Any]) -> None:
    async with asyncio.timeout(20):
        while held() is not None:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)


def test_standing_aside_is_nothing_in_a_thread_without_jobs() -> None:
    with standing_aside():
        pass
