from __future__ import annotations

import numpy as np

from tests.chaos.checking import Found, compare
from tests.chaos.ledger import CAUSES, Ledger, Numbers

NOTHING = dict.fromkeys(CAUSES, 0)


def ledger_of(users: list[int], partitions: list[int]) -> Ledger:
    """All of the events are taken, one after the other."""
    ledger = Ledger(np.array(users, np.int32))
    ledger.take(len(users))
    ledger.partitions[:] = partitions
    ledger.offsets[:] = range(len(users))
    return ledger


def stored(*sequences: list[int]) -> list[Numbers]:
    return [np.array(sequence, np.int64) for sequence in sequences]


def test_what_was_taken_and_stands_in_order_is_sound() -> None:
    ledger = ledger_of([0, 1, 0, 0], [0, 1, 0, 1])

    assert compare(ledger, stored([0, 2, 3], [1])) == Found(0, 0, 0, 0, NOTHING)


def test_partitions_of_a_user_may_overtake_each_other() -> None:
    ledger = ledger_of([0, 0, 0], [0, 0, 1])

    assert compare(ledger, stored([2, 0, 1])).disordered == 0


def test_a_step_back_within_a_partition_is_disordered() -> None:
    ledger = ledger_of([0, 0, 0], [0, 0, 1])

    assert compare(ledger, stored([1, 2, 0])).disordered == 1


def test_lost_and_doubled_events_are_counted() -> None:
    ledger = ledger_of([0, 0, 1], [0, 0, 0])

    found = compare(ledger, stored([1, 1, 1], [2]))

    assert (found.lost, found.doubled) == (1, 2)


def test_an_event_that_was_aborted_or_is_of_another_user_is_foreign() -> None:
    ledger = ledger_of([0, 0, 1], [0, 0, 0])
    ledger.abort(range(1, 2))

    assert compare(ledger, stored([0, 1, 2], [2])).foreign == 2


def test_what_kafka_destroyed_is_no_loss_of_ours() -> None:
    ledger = ledger_of([0, 0, 0, 0], [0, 0, 1, 1])
    ledger.destroy("retention", 0, 0, 1)
    ledger.destroy("truncation", 1, 3, 4)
    ledger.renew_topic()

    found = compare(ledger, stored([2]))

    assert found.lost == 0
    assert found.destroyed == {"retention": 1, "truncation": 1, "deletion": 1}
