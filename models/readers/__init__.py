"""Data sets in the formats that they are published in, read into `models.data.interactions`.

    >>> sorted(READERS)[:3]
    ['amazon-books', 'columns', 'logs']

`read` goes by name; each module has a ``read`` with its own options. Nothing is fetched: a file
that is missing is told with where to get it and what its licence allows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.errors import DataError, hint
from models.data.interactions import Interactions
from models.readers import amazon, columns, logs, movielens, online_retail, taobao
from models.readers.tables import Origin


@dataclass(frozen=True)
class Reader:
    """How one kind of data set is read."""

    read: Callable[..., Interactions]
    """``read(path, **options)``, a directory or a file."""
    files: tuple[str, ...]
    """Names of the files that it looks for in a directory; any one will do."""
    origin: Origin | None
    """Where to get the files; None: they are the user's own."""

    @property
    def options(self) -> list[str]:
        """Names of the options that ``read`` takes."""
        parameters = inspect.signature(self.read).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


READERS: Final[dict[str, Reader]] = {
    "movielens-1m": Reader(movielens.read_1m, movielens.FILES_1M, movielens.ORIGIN_1M),
    "movielens-32m": Reader(movielens.read_32m, movielens.FILES_32M, movielens.ORIGIN_32M),
    "amazon-books": Reader(amazon.read, amazon.files(), amazon.ORIGIN),
    "taobao": Reader(taobao.read, taobao.FILES, taobao.ORIGIN),
    "online-retail-2": Reader(online_retail.read, online_retail.FILES, online_retail.ORIGIN),
    "columns": Reader(columns.read, (), None),
    "logs": Reader(logs.read, (logs.EVENTS, logs.IMPRESSIONS), None),
}
"""Every data set that can be read, by name."""


def read(name: str, path: Path, **options: Any) -> Interactions:
    """Read a data set.

    Args:
        name: a key of `READERS`.
        path: its directory or its file.
        options: what the reader takes besides.

    Raises:
        DataError: there is no such reader or option, or the data set is missing or malformed.
    """
    reader = READERS.get(name)
    if reader is None:
        raise DataError(f"there is no reader {name!r}; {hint(name, READERS)}")
    for option in options:
        if option not in reader.options:
            raise DataError(
                f"the reader {name} has no option {option!r}; {hint(option, reader.options)}"
            )
    return reader.read(path, **options)
