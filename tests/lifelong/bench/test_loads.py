"""What the stream bench puts on its topic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.errors import LifelongError
from lifelong.bench.loads import draw_users, write_load


def test_a_light_load_has_users_by_their_rank() -> None:
    drawn = draw_users("light", 1000, 200_000, np.random.default_rng(0))

    times = np.bincount(drawn, minlength=1000)
    assert times[0] / times[99] == pytest.approx(100**0.8, rel=0.2)
    assert (drawn.min(), drawn.max()) == (0, 999)


def test_a_uniform_load_has_all_users_alike() -> None:
    times = np.bincount(draw_users("uniform", 10, 100_000, np.random.default_rng(0)))

    assert times == pytest.approx(np.full(10, 10_000), rel=0.1)


def test_a_load_is_written_in_the_columns_of_the_purchases(tmp_path: Path) -> None:
    users = write_load("light", 50, 500, tmp_path / "load.parquet")

    table = pq.read_table(tmp_path / "load.parquet")
    assert table.column_names == ["user_id", "item_id", "time"]
    assert len(set(table["user_id"].to_pylist())) == users
    assert len(table) == 500


def test_more_purchases_than_there_are_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(LifelongError, match="purchases, not 99999999"):
        write_load("purchases", 0, 99_999_999, tmp_path / "load.parquet")
