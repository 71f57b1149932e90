from __future__ import annotations

from lifelong.bench.client import QUICK, SIZES, WAYS, Taken, composed


def test_ways_are_held_against_ours_round_by_round() -> None:
    """So that a machine which becomes slower from round to round changes no ratio."""
    taken = {
        (way, B): Taken(
            [0.001, 0.002, 0.003],
            [(2.5 if way.library == "httpx" else 1.0) * speed for speed in (100, 200, 800)],
        )
        for way in WAYS
        for B in SIZES
    }

    told = composed(QUICK, taken)

    assert set(told["ratios"].values()) == {2.5}
    assert len(told["ratios"]) == 8
    assert told["figures"]["ours_grpc_asyncio_cpu_us_3000"] == 200
    assert told["figures"]["httpx_json_blocking_p50_ms_100"] == 2
    assert [len(table["rows"]) for table in told["tables"]] == [10, 10]
