from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import DataError
from models.data.interactions import Interactions
from models.readers import taobao

ROWS = [
    (1, 2268318, 2520377, "pv", 1511544070),
    (1, 2333346, 2520771, "buy", 1511561733),
    (100, 2268318, 2520377, "cart", 1511544069),
    (100, 5, 2520377, "fav", 1511572885),
    (100, 5, 2520377, "pv", -2134949234),
    (100, 5, 2520377, "pv", 2122867355),
]


def write_csv(path: Path) -> Path:
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in ROWS))
    return path


def write_parquet(path: Path) -> Path:
    names = ["user_id", "item_id", "category_id", "behavior", "ts"]
    columns = dict(zip(names, zip(*ROWS, strict=True), strict=True))
    pq.write_table(pa.table({name: list(column) for name, column in columns.items()}), path)
    return path


def actions(interactions: Interactions) -> list[str]:
    assert interactions.actions is not None
    return [interactions.action_names[action] for action in interactions.actions]


@pytest.mark.parametrize(
    ("write", "name"), [(write_csv, "UserBehavior.csv"), (write_parquet, "events.parquet")]
)
def test_it_is_read_as_published(tmp_path: Path, write: object, name: str) -> None:
    assert callable(write)
    write(tmp_path / name)
    interactions = taobao.read(tmp_path)
    assert interactions.user_ids == ["100", "1"]
    assert interactions.item_ids == ["", "2268318", "2333346", "5"]
    assert interactions.times.tolist() == [1511544069, 1511544070, 1511561733, 1511572885]
    assert actions(interactions) == ["cart", "view", "purchase", "favorite"]
    category = interactions.item_attributes["category"]
    assert [category.values[row] for row in category.rows[:, 0]] == [
        *("", "2520377", "2520771", "2520377")
    ]


def test_broken_clocks_are_left_out_unless_wanted(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "UserBehavior.csv")
    interactions = taobao.read(path, period_only=False)
    assert interactions.times[[0, -1]].tolist() == [-2134949234, 2122867355]


def test_a_behavior_that_is_not_known_has_no_action(tmp_path: Path) -> None:
    path = tmp_path / "UserBehavior.csv"
    path.write_text("1,2,3,share,1511544070\n")
    assert actions(taobao.read(path)) == [""]


def test_a_missing_file_is_told_with_where_to_get_it_and_its_licence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"UserBehavior\.csv.*tianchi.*licence: CC BY-NC-SA"):
        taobao.read(tmp_path)


@pytest.mark.parametrize("row", ["1,2,3,pv,noon", "1,2,3,pv", ",2,3,pv,1511544070"])
def test_a_malformed_row_is_told_in_one_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "UserBehavior.csv"
    path.write_text(f"1,2,3,pv,1511544070\n{row}\n")
    with pytest.raises(DataError, match=r"UserBehavior\.csv") as told:
        taobao.read(path)
    assert "\n" not in str(told.value)


def test_a_file_of_other_years_holds_no_behavior(tmp_path: Path) -> None:
    path = tmp_path / "UserBehavior.csv"
    path.write_text("1,2,3,pv,1600000000\n")
    with pytest.raises(DataError, match="holds no behavior"):
        taobao.read(path)
