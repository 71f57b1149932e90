"""Online Retail II of the UCI repository: purchases of a British gift shop, 2009 to 2011.

Published as ``online_retail_II.xlsx``; read here as its CSV export (a sheet, or both one after the
other), or as the parquet file that Lifelong ships. Titles are descriptions; ``country`` is an
attribute of users where it is told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from infra.arrays import I64
from infra.errors import DataError
from models.data.interactions import Column, Columns, Entities, Interactions, pc
from models.readers import tables
from models.readers.tables import Origin

ORIGIN: Final = Origin("Online Retail II", "https://doi.org/10.24432/C5CG6D", "CC BY 4.0")
FILES: Final = ("online_retail_II.csv", "online_retail_II.csv.gz", "online-retail-2.parquet")

_DAY_S: Final = 86_400
_TYPES: Final = {
    "Invoice": pa.string(),
    "StockCode": pa.string(),
    "Description": pa.string(),
    "Quantity": pa.float64(),
    "InvoiceDate": pa.timestamp("s"),
    "Price": pa.float64(),
    "Customer ID": pa.string(),
    "Country": pa.string(),
}


def read(
    path: Path,
    *,
    items: Path | None = None,
    share: float = 1.0,
    encoding: str = "utf-8",
    date_format: str = "%m/%d/%Y %H:%M",
) -> Interactions:
    """Read purchases; of the CSV those with a customer, a positive quantity and a positive price.

    Args:
        path: the directory, or the file in it.
        items: titles of the parquet file's items (default: NAME-items.parquet beside NAME.parquet).
        share: the first part of the purchases to keep, by time.
        encoding: of the CSV.
        date_format: how the CSV writes times, unless that is ISO 8601.

    Raises:
        DataError: a file is missing or malformed.
    """
    if path.suffix == ".xlsx":
        raise DataError(f"{path} is a workbook; save its sheets as one CSV file first")
    file = tables.find(path, FILES, ORIGIN)
    if file.suffix == ".parquet":
        return _parquet(file, items or file.with_name(f"{file.stem}-items.parquet"), share)
    table = tables.read_csv(
        file, list(_TYPES), types=_TYPES, encoding=encoding, dates=[date_format]
    )
    times = tables.seconds(table["InvoiceDate"], f"{file}: InvoiceDate")
    real = pc.and_(pc.greater(table["Quantity"], 0), pc.greater(table["Price"], 0))
    real = pc.and_(real, pc.is_valid(table["Customer ID"]))
    real = pc.and_(real, pc.invert(pc.starts_with(table["Invoice"], "C")))
    kept = pc.fill_null(real, fill_value=False).to_numpy() & _once(times)
    table = table.filter(pa.array(kept))
    # A spreadsheet writes a column of whole numbers with gaps as 13085.0.
    users = pc.replace_substring_regex(table["Customer ID"], r"\.0$", "")
    return Columns(
        users=users,
        items=table["StockCode"],
        times=times[kept],
        user_attributes={"country": table["Country"]},
    ).interactions(
        str(file), items=_most_frequent(table["StockCode"], table["Description"]), share=share
    )


def _parquet(file: Path, items: Path, share: float) -> Interactions:
    table = tables.read_parquet(file, ["user_id", "item_id", "time"])
    named = None
    if items.is_file():
        titles = tables.read_parquet(items, ["item_id", "description"])
        named = Entities(titles["item_id"], titles["description"])
    return Columns(
        users=table["user_id"],
        items=table["item_id"],
        times=tables.seconds(table["time"], f"{file}: time"),
    ).interactions(str(file), items=named, share=share)


def _once(times: I64) -> Any:
    """bool[N]: the rows left when days that both sheets hold are taken from the second only.

    Sheets stand one after the other, each in order of time; so the second begins where time goes
    back by more than a day.
    """
    kept = np.ones(len(times), np.bool_)
    back = np.diff(times, prepend=times[:1])
    if len(times) and back.min() < -_DAY_S:
        second = int(np.argmin(back))
        kept[:second] = times[:second] < times[second:].min()
    return kept


def _most_frequent(ids: Column, descriptions: Column) -> Entities:
    """Each item's most frequent description."""
    pairs = pa.table({"id": ids, "title": descriptions}).group_by(["id", "title"])
    counts = pairs.aggregate([([], "count_all")])
    counts = counts.sort_by([("count_all", "descending"), ("title", "ascending")])
    counts = counts.filter(pc.is_valid(counts["title"]))
    return Entities(counts["id"], counts["title"])
