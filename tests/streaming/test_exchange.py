"""A worker that is given another bundle while it runs."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import threading
import weakref
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from infra.behaviors import Source, pack_behavior
from infra.segments import SEGMENT
from infra.store import Append, Group
from models.bundle import SCORER, look
from tests.bundles import tiny_bundle
from tests.scorer.running import free_port
from tests.streaming.running import WorkerProcess, new_settings, until
from tests.streaming.test_schedule import START, CountingSystem
from tests.streaming.test_worker_health import House, ready_house

NEXT, LAST = b"n" * 16, b"l" * 16


def add(house: House, user: str) -> None:
    """A user with a sealed segment, who is due for no bundle."""
    packed = [pack_behavior(1, START, 0, 0, 2)] * SEGMENT
    append = Append(user, packed, [0] * SEGMENT, list(range(SEGMENT)))
    house.store.append([Group(Source(1, 1), [append])], START)


def covered(house: House, user: str, digest: bytes) -> bool:
    return house.store.interests([user], digest)[0] is not None


async def test_users_who_send_nothing_get_states_of_the_new_bundle() -> None:
    async with ready_house() as house:
        add(house, "a")
        await house.worker.exchange(CountingSystem(NEXT))

        await until(lambda: covered(house, "a", NEXT), "there is a state of the new bundle")


async def test_new_events_make_users_due_for_the_new_bundle() -> None:
    async with ready_house() as house:
        await house.worker.exchange(CountingSystem(NEXT))

        assert house.app.due_for == [NEXT]


async def test_a_consumer_that_starts_again_goes_on_with_the_new_bundle() -> None:
    async with ready_house() as house:
        await house.worker.exchange(CountingSystem(NEXT))
        house.app.crash_reason = RuntimeError("out of its mind")
        await until(lambda: len(house.apps) == 2, "the next consumer runs")

        assert house.digests[-1] == NEXT


async def test_a_system_without_states_leaves_nobody_due() -> None:
    system = CountingSystem(NEXT)
    system.keeps_state = False
    async with ready_house() as house:
        await house.worker.exchange(system)

        assert house.app.due_for == [None]
        assert house.shows("lifelong_worker_renewal_partitions 0.0")


@pytest.mark.parametrize("keeps_state", [True, False])
async def test_the_system_before_is_let_go(keeps_state: bool) -> None:
    """Without a search for what refers to itself: a worker leaves out what was there early."""
    system = CountingSystem(NEXT)
    system.keeps_state = keeps_state
    held = weakref.ref(system)
    async with ready_house() as house:
        gc.disable()
        try:
            await house.worker.exchange(system)
            del system
            await house.worker.exchange(CountingSystem(LAST))
            # A thread may have what it ran in its hands for a moment still.
            await until(lambda: held() is None, "nobody holds it")
        finally:
            gc.enable()


async def test_a_system_that_failed_for_a_user_is_let_go_like_any_other() -> None:
    """An error has the frames that it came through, and they have the system."""
    system, tried = CountingSystem(NEXT), threading.Event()
    system.users_failing, system.before = {1}, tried.set
    held = weakref.ref(system)
    async with ready_house() as house:
        add(house, "a")
        gc.disable()
        try:
            await house.worker.exchange(system)
            del system
            await until(tried.is_set, "the user is tried")
            await house.worker.exchange(CountingSystem(LAST))
            await until(lambda: held() is None, "nobody holds it")
        finally:
            gc.enable()


async def test_what_is_odd_about_the_bundle_is_told_by_a_worker_that_is_ready() -> None:
    async with ready_house() as house:
        house.health.warned("bundle", "it is not taken into service")
        assert house.ready()
        assert house.warnings() == {"bundle": "it is not taken into service"}

        house.health.warned("bundle", None)
        assert house.warnings() == {}


async def test_a_worker_that_has_ended_is_left_as_it_is() -> None:
    async with ready_house() as house:
        pass
    await house.worker.exchange(CountingSystem(NEXT))

    assert house.app.due_for == []


async def test_a_worker_process_takes_another_bundle_when_it_is_told(
    warm: ForkServerContext, tmp_path: Path
) -> None:
    """Its broker is away, which is no reason not to."""
    place, coming = tiny_bundle(tmp_path / "bundle"), tiny_bundle(tmp_path / "coming", seed=1)
    broken = tmp_path / "broken"
    shutil.copytree(coming, broken)
    (broken / SCORER).write_bytes(bytes((coming / SCORER).stat().st_size))
    version = (look(coming).digest or b"").hex()
    settings = new_settings(
        f"127.0.0.1:{free_port()}",
        store={"url": f"lmdb://{tmp_path / 'store'}"},
        bundle={"path": str(place), "poll_s": 0},
        log={"format": "json"},
    )

    def exchange(bundle: Path) -> None:
        shutil.rmtree(place)
        bundle.rename(place)
        os.kill(worker.pid, signal.SIGHUP)

    with WorkerProcess(settings, tmp_path / "log", warm) as worker:
        await until(lambda: '"broker"' in worker.get("/health/ready")[1], "it looks for its broker")
        exchange(broken)
        await until(lambda: "warnings" in worker.get("/health/ready")[1], "it tells of the bundle")
        exchange(coming)
        figure = f'lifelong_worker_bundle_info{{version="{version}"}} 1.0'
        await until(lambda: figure in worker.get("/metrics")[1], "it has the other bundle")
        assert "warnings" not in worker.get("/health/ready")[1]
        assert worker.end() == 0
    assert "scorer.onnx does not match its sha256" in worker.said
