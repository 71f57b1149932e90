from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import DataError
from models.readers import online_retail

HEADER = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n"
ROWS = """\
489434,85048,"15CM GLASS BALL, 20 LIGHTS",12,2009-12-01 07:45:00,6.95,13085.0,United Kingdom
489434,79323P,PINK CHERRY LIGHTS,12,2009-12-01 07:45:00,6.75,13085.0,United Kingdom
C489449,22087,PAPER BUNTING WHITE LACE,-12,2009-12-01 10:33:00,2.95,16321.0,Australia
489521,21646,,-50,2009-12-01 11:44:00,0.0,,United Kingdom
489600,85048,damaged,1,2009-12-01 12:00:00,1.0,12346,France
489601,85048,damaged,1,2009-12-01 12:00:00,0.0,12346,France
489602,85048,,1,2009-12-01 12:10:00,1.0,12346,France
489603,85048,"15CM GLASS BALL, 20 LIGHTS",1,2009-12-01 12:20:00,1.0,12346,France
"""


def write(path: Path, rows: str = ROWS) -> Path:
    path.write_text(HEADER + rows)
    return path


def test_purchases_are_read_from_the_csv(tmp_path: Path) -> None:
    write(tmp_path / "online_retail_II.csv")
    interactions = online_retail.read(tmp_path)
    assert interactions.user_ids == ["13085", "12346"]
    assert interactions.item_ids == ["", "85048", "79323P"]
    assert interactions.items.tolist() == [1, 2, 1, 1, 1]
    assert interactions.times[0] == 1259653500  # 2009-12-01 07:45 UTC


def test_a_title_is_the_most_frequent_description(tmp_path: Path) -> None:
    interactions = online_retail.read(write(tmp_path / "online_retail_II.csv"))
    assert interactions.titles == ["", "15CM GLASS BALL, 20 LIGHTS", "PINK CHERRY LIGHTS"]


def test_a_user_has_a_country(tmp_path: Path) -> None:
    interactions = online_retail.read(write(tmp_path / "online_retail_II.csv"))
    country = interactions.user_attributes["country"]
    assert [country.values[row] for row in country.rows[:, 0]] == ["United Kingdom", "France"]


def test_days_of_both_sheets_count_once(tmp_path: Path) -> None:
    days = ("2009-12-01", "2010-12-01", "2010-12-09", "2010-12-01", "2010-12-09", "2011-12-09")
    rows = "".join(f"5{i},A,Thing,1,{day} 09:00:00,1.0,1,France\n" for i, day in enumerate(days))
    interactions = online_retail.read(write(tmp_path / "online_retail_II.csv", rows))
    assert len(interactions) == 4


def test_a_spreadsheets_own_dates_are_read(tmp_path: Path) -> None:
    row = "5,A,Thing,1,12/1/2009 7:45,1.0,1,France\n"
    path = write(tmp_path / "online_retail_II.csv", row)
    assert online_retail.read(path).times.tolist() == [1259653500]
    british = online_retail.read(path, date_format="%d/%m/%Y %H:%M")
    assert british.times.tolist() == [1231746300]  # 2009-01-12


def test_parquet_with_titles_beside_it(tmp_path: Path) -> None:
    events = {"user_id": ["b", "a"], "item_id": ["x", "y"]}
    time = pa.array([2000, 1000], pa.timestamp("ms", "UTC"))
    pq.write_table(pa.table({**events, "time": time}), tmp_path / "online-retail-2.parquet")
    pq.write_table(
        pa.table({"item_id": ["x"], "description": ["An x"]}),
        tmp_path / "online-retail-2-items.parquet",
    )
    interactions = online_retail.read(tmp_path)
    assert interactions.item_ids == ["", "y", "x"]
    assert interactions.titles == ["", "", "An x"]


def test_a_missing_file_is_told_with_where_to_get_it_and_its_licence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"online_retail_II\.csv.*doi\.org.*licence: CC BY 4\.0"):
        online_retail.read(tmp_path)


def test_a_workbook_is_told_what_to_do_with(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="save its sheets as one CSV"):
        online_retail.read(tmp_path / "online_retail_II.xlsx")


@pytest.mark.parametrize(
    "rows",
    [
        "5,A,Thing,1,yesterday,1.0,1,France\n",
        "5,A,Thing,one,2009-12-01 07:45:00,1.0,1,France\n",
        "5,A,Thing,1,,1.0,1,France\n",
        "5,A,Thing,-1,2009-12-01 07:45:00,1.0,1,France\n",
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path, rows: str) -> None:
    path = write(tmp_path / "online_retail_II.csv", rows)
    with pytest.raises(DataError, match=r"online_retail_II\.csv") as told:
        online_retail.read(path)
    assert "\n" not in str(told.value)


def test_another_encoding_is_an_option(tmp_path: Path) -> None:
    path = tmp_path / "online_retail_II.csv"
    row = "5,A,Caf\xe9,1,2009-12-01 07:45:00,1.0,1,France\n"
    path.write_text(HEADER + row, encoding="latin-1")
    assert online_retail.read(path, encoding="latin-1").titles == ["", "Caf\xe9"]
    with pytest.raises(DataError, match="cannot be read as CSV"):
        online_retail.read(path)
