from __future__ import annotations

from tests.chaos.scene import BUDGET_S
from tests.chaos.watching import Standstill

LATE = BUDGET_S + 1


def test_a_partition_that_stands_still_in_silence_is_found_once() -> None:
    standstill = Standstill()
    assert standstill.look(0, {0: (7, True), 1: (7, True)}) == []
    assert standstill.look(LATE, {0: (7, True), 1: (8, True)}) == [0]
    assert standstill.look(LATE + 1, {0: (7, True), 1: (9, True)}) == []


def test_a_partition_that_holds_no_more_does_not_stand_still() -> None:
    standstill = Standstill()
    assert standstill.look(0, {0: (7, True)}) == []
    assert standstill.look(1, {0: (7, False)}) == []
    assert standstill.look(LATE, {0: (7, True)}) == []


def test_a_standstill_that_a_worker_tells_is_none() -> None:
    standstill = Standstill()
    assert standstill.look(0, {0: (7, True)}) == []
    standstill.told()
    assert standstill.look(LATE, {0: (7, True)}) == []
    assert standstill.look(2 * LATE, {0: (7, True)}) == [0]
