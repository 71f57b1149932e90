"""Where to go on reading a partition: every order of store, group and log."""

from __future__ import annotations

import pytest

from infra.errors import StoreCorrupt
from infra.kafka.logs import LogBounds
from infra.stores.memory import MemoryStore
from streaming.lives import Life, Start, read_lives, start, write_life

FIRST = Life()
SECOND = Life(number=1, begins=40, epoch=3)


def log(beginning: int, end: int) -> LogBounds:
    return LogBounds(beginning, end, end)


@pytest.mark.parametrize(
    ("reached", "committed", "expected"),
    [
        (None, None, 0),  # nobody read it
        (49, 50, 50),  # all agree
        (49, 30, 30),  # a worker was killed before it committed
        (49, None, 50),  # a new group
        (9, 50, 10),  # the store is a backup
        (None, 50, 0),  # the store is empty
    ],
)
def test_it_goes_on_where_the_store_stands(
    reached: int | None, committed: int | None, expected: int
) -> None:
    found = start(FIRST, reached, committed, log(0, 100))

    assert found == Start(expected, FIRST)


@pytest.mark.parametrize(
    ("reached", "committed", "gone"),
    [
        (None, None, range(0)),  # who never read it has lost nothing
        (9, 10, range(10, 60)),
        (9, 90, range(10, 60)),
        (79, 10, range(0)),  # all that is gone the store was fed
        (None, 90, range(60)),
    ],
)
def test_what_retention_took_before_the_store_was_fed_it_is_gone(
    reached: int | None, committed: int | None, gone: range
) -> None:
    found = start(FIRST, reached, committed, log(60, 100))

    assert found.offset == 60
    assert list(found.gone) == list(gone)


def test_a_log_that_ends_below_what_the_store_was_fed_begins_another_life() -> None:
    found = start(FIRST, 49, 50, log(0, 40))

    assert (found.offset, found.life.number, found.life.begins) == (40, 1, 40)
    assert found.cut == range(40, 50)


def test_a_log_that_grew_again_begins_its_life_where_the_other_leader_did() -> None:
    found = start(Life(epoch=3), 49, 50, log(0, 200), epoch_end=40)

    assert found == Start(40, Life(1, 40, 3), cut=range(40, 50))


def test_what_retention_took_of_a_new_life_is_gone() -> None:
    found = start(Life(epoch=3), 49, 50, log(60, 200), epoch_end=40)

    assert (found.offset, found.gone) == (60, range(40, 60))


def test_a_new_life_begins_once() -> None:
    again = start(SECOND, None, 50, log(0, 200), epoch_end=40)

    assert again == Start(40, SECOND)


def test_a_commit_from_before_a_life_does_not_count() -> None:
    assert start(SECOND, 59, 10, log(0, 200), epoch_end=80).offset == 40


def test_an_epoch_that_the_log_does_not_know_is_learnt_again() -> None:
    assert start(SECOND, 59, 60, log(0, 200)).life == Life(1, 40, -1)


def test_the_store_keeps_lives_by_topic_and_partition() -> None:
    store = MemoryStore()
    write_life(store, "topic-1", 7, SECOND)

    assert read_lives(store, "topic-1", [6, 7]) == {6: Life(), 7: SECOND}
    assert read_lives(store, "topic-2", [7]) == {7: Life()}


def test_a_life_that_cannot_be_read_is_named() -> None:
    store = MemoryStore()
    store.put_bookmark("life/topic-1/7", b"oops")

    with pytest.raises(StoreCorrupt, match="life/topic-1/7"):
        read_lives(store, "topic-1", [7])
