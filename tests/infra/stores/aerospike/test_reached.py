"""Positions that are written behind the appends that reached them."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from infra.errors import StoreFull
from infra.stores.aerospike.reached import Reached


class Written:
    """What was written, by source; a write may be refused, or held."""

    def __init__(self) -> None:
        self.offsets: dict[int, int] = {}
        self.refuses = False
        self.free = threading.Event()
        self.free.set()

    def __call__(self, reached: Mapping[int, int]) -> None:
        self.free.wait(20)
        if self.refuses:
            raise StoreFull("no room")
        self.offsets |= reached


def test_what_is_sent_is_not_waited_for() -> None:
    written = Written()
    written.free.clear()
    reached = Reached(written)
    reached.send({1: 10})
    assert written.offsets == {}
    written.free.set()
    reached.settle()
    assert written.offsets == {1: 10}
    reached.close()


def test_who_sends_again_hears_that_the_last_was_refused() -> None:
    written = Written()
    written.refuses = True
    reached = Reached(written)
    reached.send({1: 10})
    with pytest.raises(StoreFull):
        reached.send({1: 11})
    reached.close()


def test_what_was_refused_is_written_with_the_next() -> None:
    written = Written()
    written.refuses = True
    reached = Reached(written)
    reached.send({1: 10})
    with pytest.raises(StoreFull):
        reached.settle()
    written.refuses = False
    reached.send({2: 20})
    reached.settle()
    assert written.offsets == {1: 10, 2: 20}
    reached.close()


def test_what_is_written_is_not_written_again() -> None:
    written = Written()
    reached = Reached(written)
    reached.send({1: 10})
    reached.settle()
    written.offsets.clear()
    reached.settle()
    assert written.offsets == {}
    reached.close()
