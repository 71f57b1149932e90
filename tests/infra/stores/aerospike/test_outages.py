"""What is told of servers that were away, or were started anew."""

from __future__ import annotations

import pytest

from infra.stores.aerospike.outages import FRESH_S, Outages

NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize(("uptime", "told"), [(5, [NOW_MS - 5_000]), (FRESH_S + 5, [])])
def test_a_server_that_has_just_started_may_have_lost_something(
    uptime: int, told: list[int]
) -> None:
    heard: list[int] = []

    Outages(lambda since_ms: heard.append(since_ms), lambda: NOW_MS).looked(
        {"a": 10_000, "b": uptime}
    )

    assert heard == told


def test_a_server_started_between_two_looks_is_told_once() -> None:
    heard: list[int] = []
    outages = Outages(lambda since_ms: heard.append(since_ms), lambda: NOW_MS)

    for uptime in (10_000, 3, 3):
        outages.looked({"a": uptime})

    assert heard == [NOW_MS]
