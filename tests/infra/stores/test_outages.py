"""What is told of servers that were away, or were started anew."""

from __future__ import annotations

import pytest

from infra.stores.outages import FRESH_S, Outages

NOW_MS = 1_700_000_000_000


class Heard:
    """What was told of interruptions."""

    def __init__(self) -> None:
        self.since: list[int] = []

    def __call__(self, since_ms: int) -> None:
        self.since.append(since_ms)


@pytest.mark.parametrize(("uptime", "told"), [(5, [NOW_MS - 5_000]), (FRESH_S + 5, [])])
def test_a_server_that_has_just_started_may_have_lost_something(
    uptime: int, told: list[int]
) -> None:
    heard = Heard()

    Outages(heard, lambda: NOW_MS).looked({"a": 10_000, "b": uptime})

    assert heard.since == told


def test_a_server_started_between_two_looks_is_told_once() -> None:
    heard = Heard()
    outages = Outages(heard, lambda: NOW_MS)

    for uptime in (10_000, 3, 3):
        outages.looked({"a": uptime})

    assert heard.since == [NOW_MS]
