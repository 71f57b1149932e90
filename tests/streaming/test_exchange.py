"""A worker that is given another bundle while it runs."""

from __future__ import annotations

from infra.behaviors import Source, pack_behavior
from infra.segments import SEGMENT
from infra.store import Append, Group
from tests.streaming.running import until
from tests.streaming.test_schedule import START, CountingSystem
from tests.streaming.test_worker_health import House, ready_house

NEXT = b"the bundle after"


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
