"""Amazon reviews: what customers thought of products, by default of books.

Published three times, in 2014, 2018 and 2023, each with files of reviews (one JSON object a line)
and files of ratings alone (CSV; user, item, rating, time in 2014, item first in 2018, with a header
and milliseconds in 2023). ``meta_Books.json.gz`` tells titles and categories; that of 2014 is
Python's notation rather than JSON, which is read here too.

Attributes of items, where the meta file lies beside the reviews: ``category``, the finest, and
``categories``, all of them from the coarsest on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from infra.errors import DataError
from models.data.interactions import Column, Columns, Entities, Interactions, pc
from models.readers import tables
from models.readers.ratings import RATED_WHOLE, rated
from models.readers.tables import Origin

ORIGIN: Final = Origin(
    "Amazon Reviews (Books)",
    "https://nijianmo.github.io/amazon/ or https://cseweb.ucsd.edu/~jmcauley/datasets.html",
    "no licence stated, for research; cite Ni, Li and McAuley 2019 or McAuley et al. 2015",
)

_REVIEW: Final = {
    "reviewerID": pa.string(),
    "asin": pa.string(),
    "overall": pa.float32(),
    "unixReviewTime": pa.int64(),
}
_HEADER_2023: Final = ("user_id", "parent_asin", "rating", "timestamp")


def files(product: str = "Books") -> tuple[str, ...]:
    """Names under which the reviews of a product group are published, most useful first."""
    names = (
        f"reviews_{product}_5.json",
        f"{product}_5.json",
        f"reviews_{product}.json",
        f"{product}.json",
        f"ratings_{product}.csv",
        f"{product}.csv",
    )
    return tuple(name + end for name in names for end in (".gz", ""))


def read(
    path: Path, *, product: str = "Books", meta: Path | None = None, share: float = 1.0
) -> Interactions:
    """Read reviews, or ratings alone: ratings become values and actions.

    Args:
        path: the directory, or the file of reviews or ratings in it.
        product: the group of products, as in the files' names.
        meta: the file of items; by default the one that lies beside, if one does.
        share: the first part of the reviews to keep, by time.

    Raises:
        DataError: a file is missing or malformed.
    """
    file = tables.find(path, files(product), ORIGIN)
    table, per_second = _reviews(file) if ".json" in file.suffixes else _ratings(file)
    if meta is None:
        meta = tables.lying_in(file.parent, [f"meta_{product}.json.gz", f"meta_{product}.json"])
    return Columns(
        users=table["user"],
        items=table["item"],
        times=tables.seconds(table["time"], f"{file}: timestamp", per_second),
        actions=rated(table["rating"], f"{file}: rating"),
        action_names=RATED_WHOLE,
        values=table["rating"],
    ).interactions(str(file), items=None if meta is None else _meta(meta), share=share)


def _reviews(file: Path) -> tuple[Any, tables.TimeUnit]:
    table = tables.read_json(file, _REVIEW)
    for name in _REVIEW:
        if table[name].null_count == len(table):
            raise DataError(f"{file} lacks the field {name!r}; is it a file of reviews?")
    return table.rename_columns(["user", "item", "rating", "time"]), "s"


def _ratings(file: Path) -> tuple[Any, tables.TimeUnit]:
    header = tables.csv_header(file)
    numbers = {"rating": pa.float32(), "time": pa.int64()}
    if tuple(header) == _HEADER_2023:
        types = {"user_id": pa.string(), "parent_asin": pa.string()}
        types |= {"rating": pa.float32(), "timestamp": pa.int64()}
        table = tables.read_csv(file, _HEADER_2023, types=types)
        return table.rename_columns(["user", "item", "rating", "time"]), "ms"
    names = ["user", "item", "rating", "time"]
    # Of 2018 the item stands first. Ids tell: customers' begin with A, products' with B or a digit.
    lines = tables.first_bytes(file, 1 << 16).splitlines()[:1000]
    customers = np.mean([[cell[:1] == b"A" for cell in line.split(b",")[:2]] for line in lines], 0)
    if len(customers) == 2 and customers[1] > customers[0]:
        names[:2] = ["item", "user"]
    types = {"user": pa.string(), "item": pa.string(), **numbers}
    return tables.read_csv(file, names, names=names, types=types), "s"


def _meta(file: Path) -> Entities:
    if tables.first_bytes(file, 2) == b"{'":
        return _meta_2014(file)
    table = tables.read_json(
        file, {"asin": pa.string(), "title": pa.string(), "category": pa.list_(pa.string())}
    )
    return _entities(table["asin"], table["title"], table["category"].combine_chunks())


def _meta_2014(file: Path) -> Entities:
    """Lines like {'asin': '0000', 'title': "A book", 'categories': [['Books', 'Novels']]}."""
    lines = tables.read_csv(
        file, ["line"], names=["line"], types={"line": pa.string()}, delimiter="\x01", quoted=False
    )["line"].combine_chunks()
    text = r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
    asin = _inside(lines, rf"'asin': (?P<found>{text})")
    title = _inside(lines, rf"'title': (?P<found>{text})")
    path = pc.extract_regex(lines, rf"'categories': \[\[(?P<found>{text}(?:, {text})*)")
    path = pc.struct_field(path, "found")
    # Between two texts stand a quote, a comma and a quote.
    parts = pc.split_pattern_regex(pc.utf8_slice_codeunits(path, 1, -1), r"['\"], ['\"]")
    return _entities(asin, title, parts)


def _inside(lines: Column, pattern: str) -> Column:
    found = pc.struct_field(pc.extract_regex(lines, pattern), "found")
    return pc.replace_substring_regex(pc.utf8_slice_codeunits(found, 1, -1), r"\\(.)", r"\1")


def _entities(ids: Column, titles: Column, paths: Column) -> Entities:
    length = pc.fill_null(pc.list_value_length(paths), 0).to_numpy().astype(np.int64)
    real = length > 0
    ends = np.cumsum(length[real]) - 1
    finest = pc.list_flatten(paths).take(pa.array(ends))
    at = np.where(real, np.cumsum(real) - 1, 0)
    category = finest.take(pa.array(at, mask=~real)) if len(finest) else pa.nulls(len(real))
    return Entities(ids, titles, {"category": category.cast(pa.string()), "categories": paths})
