from __future__ import annotations

from pathlib import Path

import pytest

from lifelong.bench.store import HEAVY, measure_heavy, measure_light


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return measure_heavy(tmp_path_factory.mktemp("store") / "heavy", copies=1)


def test_a_heavy_user_is_more_than_their_interests_and_less_than_a_plain_list(
    heavy: dict[str, float],
) -> None:
    plain = HEAVY * (8 + 8 + 25)
    assert heavy["bytes_of_state_1000"] < heavy["bytes_per_user_1000_compacted"] < plain + 20_000
    assert heavy["bytes_per_user_1000_compacted"] <= heavy["bytes_per_user_1000"]


def test_every_event_is_written_once_at_least(heavy: dict[str, float]) -> None:
    assert heavy["written_per_event_1000"] > 25


def test_light_users_are_counted_one_by_one(tmp_path: Path) -> None:
    light = measure_light(tmp_path / "light", 500)
    assert light["users_10"] == 500
    assert 10 * 25 < light["bytes_per_user_10"] < 4096
