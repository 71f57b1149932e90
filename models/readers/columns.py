"""Reader of any parquet or CSV file whose columns one can name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.errors import DataError
from models.data.interactions import Column, Columns, Entities, Interactions, pc
from models.readers import tables
from models.readers.tables import TimeUnit


def read(
    path: Path,
    *,
    user_id: str = "user_id",
    item_id: str = "item_id",
    time: str = "time",
    time_unit: TimeUnit | None = None,
    action: str | None = None,
    dwell_s: str | None = None,
    value: str | None = None,
    item_attributes: Sequence[str] = (),
    user_attributes: Sequence[str] = (),
    items: Path | None = None,
    users: Path | None = None,
    title: str | None = None,
    separator: str | None = None,
    share: float = 1.0,
) -> Interactions:
    """Read interactions from columns by their names.

    Args:
        path: the behaviors: .parquet (or a directory of such), .csv, .tsv, the text formats also
            compressed (.gz).
        user_id: column of users.
        item_id: column of items.
        time: column of times: timestamps, ISO 8601 texts, or numbers.
        time_unit: what the times count, if they are numbers.
        action: column of what the user did.
        dwell_s: column of seconds that the user stayed.
        value: column of numbers, such as a rating.
        item_attributes: columns of ``items`` if that is given, else of the behaviors (then an item
            has what stands in its first behavior).
        user_attributes: columns of ``users`` if that is given, else of the behaviors.
        items: a table of items; it has the column ``item_id`` too.
        users: a table of users; it has the column ``user_id`` too.
        title: column of ``items`` with the items' names.
        separator: what parts several values in an attribute's text, such as "|".
        share: the first part of the behaviors to keep, by time.

    Raises:
        DataError: a file is missing, malformed or empty, or lacks a column.
    """
    if title is not None and items is None:
        raise DataError(f"{path}: a title ({title!r}) is a column of a table of items; name it")
    of_rows = [name for name in (action, dwell_s, value) if name is not None]
    of_rows += [*item_attributes] if items is None else []
    of_rows += [*user_attributes] if users is None else []
    table = _read(path, [user_id, item_id, time, *of_rows])
    item_table, user_table = None, None
    if items is not None:
        named = [] if title is None else [title]
        columns = _read(items, [item_id, *named, *item_attributes])
        titles = None if title is None else columns[title]
        item_table = Entities(
            columns[item_id], titles, _several(columns, item_attributes, separator)
        )
    if users is not None:
        columns = _read(users, [user_id, *user_attributes])
        user_table = Entities(
            columns[user_id], attributes=_several(columns, user_attributes, separator)
        )
    return Columns(
        users=table[user_id],
        items=table[item_id],
        times=tables.seconds(table[time], f"{path}: {time}", time_unit),
        actions=None if action is None else table[action].cast(pa.string()),
        dwell_s=_numbers(path, table, dwell_s),
        values=_numbers(path, table, value),
        item_attributes=_several(table, item_attributes if items is None else (), separator),
        user_attributes=_several(table, user_attributes if users is None else (), separator),
    ).interactions(str(path), items=item_table, users=user_table, share=share)


def _read(path: Path, columns: Sequence[str]) -> Any:
    wanted = list(dict.fromkeys(columns))
    name = path.name.lower()
    for compression in (".gz", ".bz2", ".zst"):
        name = name.removesuffix(compression)
    if not path.exists():
        raise DataError(f"{path} is not there; check the path")
    if name.endswith((".csv", ".tsv")):
        return tables.read_csv(path, wanted, delimiter="\t" if name.endswith(".tsv") else ",")
    return tables.read_parquet(path, wanted)


def _numbers(path: Path, table: Any, name: str | None) -> Column | None:
    if name is None:
        return None
    column = table[name]
    try:
        return column.cast(pa.float32(), safe=False)
    except pa.ArrowException as error:
        raise DataError(f"{path}: {name} must be numbers, not {column.type}") from error


def _several(table: Any, names: Sequence[str], separator: str | None) -> dict[str, Column]:
    columns = {name: table[name] for name in names}
    if separator is None:
        return columns
    return {
        name: pc.split_pattern(column.cast(pa.string()), separator)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        else column
        for name, column in columns.items()
    }
