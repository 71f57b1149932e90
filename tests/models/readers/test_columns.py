from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from infra.errors import DataError
from models.readers import columns
from models.readers.tables import TimeUnit

TABLE = {
    "who": [2, 1, 2],
    "what": ["x", "y", "x"],
    "when": [2000, 1000, 3000],
    "did": ["view", "buy", "view"],
    "stayed": [1.5, 0.0, 2.0],
    "stars": [4, 5, None],
    "tags": ["a|b", "", "c"],
}
NAMES: dict[str, Any] = {"user_id": "who", "item_id": "what", "time": "when"}


def write(path: Path, **other: object) -> Path:
    table = pa.table({k: v for k, v in {**TABLE, **other}.items() if v is not None})
    if path.name.endswith(".parquet"):
        pq.write_table(table, path)
    else:
        with pa.output_stream(str(path)) as stream:
            options = pyarrow.csv.WriteOptions(delimiter="\t" if ".tsv" in path.name else ",")
            pyarrow.csv.write_csv(table, stream, options)
    return path


@pytest.mark.parametrize("name", ["e.parquet", "e.csv", "e.tsv", "e.csv.gz"])
def test_every_format_reads_alike(tmp_path: Path, name: str) -> None:
    interactions = columns.read(
        write(tmp_path / name),
        **NAMES,
        time_unit="ms",
        action="did",
        dwell_s="stayed",
        value="stars",
        item_attributes=["tags"],
        separator="|",
    )
    assert interactions.user_ids == ["1", "2"]
    assert interactions.item_ids == ["", "y", "x"]
    assert interactions.times.tolist() == [1, 2, 3]
    assert interactions.action_names == ["", "buy", "view"]
    assert interactions.dwell_s is not None
    assert interactions.dwell_s.tolist() == [0, 1.5, 2]
    assert interactions.values is not None
    assert interactions.values[:2].tolist() == [5, 4]
    tags = interactions.item_attributes["tags"]
    assert tags.values == ["", "a", "b"]
    assert tags.rows.tolist() == [[0, 0], [0, 0], [1, 2]]


def test_a_directory_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet")
    write(tmp_path / "2.parquet", what=["z", "z", "z"])
    interactions = columns.read(tmp_path, **NAMES, time_unit="s")
    assert len(interactions) == 6
    assert set(interactions.item_ids) == {"", "x", "y", "z"}


def test_items_and_users_may_have_tables_of_their_own(tmp_path: Path) -> None:
    items, users = tmp_path / "items.csv", tmp_path / "users.csv"
    items.write_text("what,called,color\nx,An x,red\n")
    users.write_text("who,country\n1,UK\n")
    interactions = columns.read(
        write(tmp_path / "e.parquet"),
        **NAMES,
        time_unit="ms",
        items=items,
        users=users,
        title="called",
        item_attributes=["color"],
        user_attributes=["country"],
    )
    assert interactions.titles == ["", "", "An x"]
    assert interactions.item_attributes["color"].values == ["", "red"]
    assert interactions.user_attributes["country"].rows.tolist() == [[1], [0]]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (pa.array([2000, 1000, 3000], pa.timestamp("ms", "Europe/Berlin")), [1, 2, 3]),
        (pa.array([2, 1, 3], pa.timestamp("s")), [1, 2, 3]),
        (pa.array([20, 10, 30], pa.date32()), [864000, 1728000, 2592000]),
        (pa.array(["1970-01-01T00:00:02Z", "1970-01-01T01:00:01+01:00", "1970-01-01T00:00:03Z"]),
         [1, 2, 3]),
        (pa.array(["1970-01-01 00:00:02", "1970-01-01 00:00:01", "1970-01-01 00:00:03"]),
         [1, 2, 3]),
    ],
)  # fmt: skip
def test_times_need_no_unit_where_they_say_it(
    tmp_path: Path, when: object, expected: list[int]
) -> None:
    interactions = columns.read(write(tmp_path / "e.parquet", when=when), **NAMES)
    assert interactions.times.tolist() == expected


@pytest.mark.parametrize(
    ("unit", "when"),
    [("us", [2_900_000, 1_000_000, 3_999_999]), ("s", [2.9, 1.0, 3.9]), ("s", [2, 1, 3])],
)
def test_numbers_count_what_is_said(tmp_path: Path, unit: TimeUnit, when: list[float]) -> None:
    path = write(tmp_path / "e.parquet", when=when)
    assert columns.read(path, **NAMES, time_unit=unit).times.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("other", "options", "words"),
    [
        ({"when": None}, {}, "lacks the column 'when'"),
        ({"what": [None, "y", "x"]}, {}, "item_id is null in row 1"),
        ({"who": [1, None, 2]}, {}, "user_id is null in row 2"),
        ({"when": [1, 2, None]}, {}, "when is null in row 3"),
        ({"when": ["a", "b", "c"]}, {}, "when must be a timestamp, a number or ISO 8601"),
        ({"when": [1.0, float("nan"), 2.0]}, {}, "when is no number in row 2"),
        ({}, {"time_unit": None}, "when is int64, not a timestamp; say its time_unit"),
        ({}, {"value": "did"}, "did must be numbers, not string"),
        ({}, {"action": "di"}, "lacks the column 'di'; did you mean did"),
        ({}, {"title": "name"}, "a column of a table of items"),
        ({}, {"items": Path("none.csv")}, "none.csv is not there"),
        ({}, {"share": 0.0}, "holds no behavior"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, other: dict[str, object], options: dict[str, object], words: str
) -> None:
    path = write(tmp_path / "e.parquet", **other)
    with pytest.raises(DataError, match=words) as told:
        columns.read(path, **{**NAMES, "time_unit": "s", **options})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["e.parquet", "e.csv"])
def test_no_file_and_an_empty_file_are_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} is not there"):
        columns.read(tmp_path / name)
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=name) as told:
        columns.read(tmp_path / name)
    assert "\n" not in str(told.value)
    write(tmp_path / name, **{key: pa.array([], pa.string()) for key in TABLE})
    with pytest.raises(DataError, match="holds no behavior"):
        columns.read(tmp_path / name, **NAMES, time_unit="s")
