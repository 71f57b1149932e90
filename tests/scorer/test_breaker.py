"""When a store is asked, and what is logged of it."""

from __future__ import annotations

import pytest

from infra.errors import StoreCorrupt, StoreUnavailable
from scorer.breaker import AWAY_S, FAILURES, TOLD_S, Breaker
from tests.scorer.conftest import Clock

AWAY = StoreUnavailable("the store did not answer within 0.1 s")
DAMAGED = StoreCorrupt("ann's record cannot be read")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def test_failures_in_a_row_keep_everybody_from_the_store(breaker: Breaker) -> None:
    for _ in range(FAILURES):
        breaker.check()
        breaker.failed(AWAY)
    with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.1 s"):
        breaker.check()


def test_failures_with_answers_between_them_keep_nobody_from_it(breaker: Breaker) -> None:
    for _ in range(2 * FAILURES):
        breaker.failed(AWAY)
        breaker.answered()
    breaker.check()


def test_after_a_while_one_failure_is_enough(breaker: Breaker, clock: Clock) -> None:
    for _ in range(FAILURES):
        breaker.failed(AWAY)
    clock.now += AWAY_S
    breaker.check()
    breaker.failed(AWAY)
    with pytest.raises(StoreUnavailable):
        breaker.check()


def test_records_that_cannot_be_used_keep_nobody_from_the_store(breaker: Breaker) -> None:
    for _ in range(2 * FAILURES):
        breaker.failed(DAMAGED)
    breaker.check()


def test_an_outage_is_one_line_and_its_end_another(
    breaker: Breaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for _ in range(100):
        breaker.failed(AWAY)
        clock.now += TOLD_S
    breaker.answered()
    breaker.answered()
    assert len(caplog.records) == 2


@pytest.mark.parametrize("error", [AWAY, DAMAGED], ids=["away", "damaged"])
def test_reads_that_fail_alone_are_a_line_a_minute(
    breaker: Breaker,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    error: StoreCorrupt | StoreUnavailable,
) -> None:
    for _ in range(10):
        breaker.failed(error)
        breaker.answered()
    assert len(caplog.records) == 1
    clock.now += TOLD_S
    breaker.failed(error)
    assert len(caplog.records) == 2


def test_an_outage_soon_after_a_read_that_failed_alone_is_told(
    breaker: Breaker, caplog: pytest.LogCaptureFixture
) -> None:
    breaker.failed(AWAY)
    breaker.answered()
    caplog.clear()
    for _ in range(FAILURES):
        breaker.failed(AWAY)
    assert len(caplog.records) == 1
