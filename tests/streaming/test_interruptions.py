from __future__ import annotations

from streaming.interruptions import BACK_MS, Interruptions


def test_the_earliest_outage_counts_until_it_is_taken() -> None:
    interruptions = Interruptions()
    assert (interruptions.pending, interruptions.take()) == (False, None)
    for since_ms in (5_000_000, 4_000_000, 6_000_000):
        interruptions(since_ms)
    assert interruptions.pending
    assert interruptions.take() == 4_000_000 - BACK_MS
    assert (interruptions.pending, interruptions.take()) == (False, None)
