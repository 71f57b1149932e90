"""What passes from a file's format to the conversion, and from the conversion to who reads events.

Columns are pyarrow arrays, which numpy has no match for: texts of any length, and nulls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute

from infra.arrays import I64, U8, U32, Bools
from streaming.events.rejects import Reason

pc: Final[Any] = pyarrow.compute  # its stubs refuse half of what it accepts
Column = Any
"""A pyarrow array; its stubs make a type of every value type."""


class RowReject(NamedTuple):
    """A row that is not an event."""

    row: int
    """Its number in the file, from 0."""
    reason: Reason
    detail: str
    """One line that names the field and shows the beginning of its value."""


@dataclass(frozen=True, slots=True)
class RawBatch:
    """n consecutive rows of a file as its format gives them, less those that cannot be parsed."""

    rows: I64
    """i64[n], ascending: the rows' numbers in the file, from 0."""
    next_row: int
    """The position to go on from after this batch."""
    fraction: float
    """How much of the file has been read, 0 to 1."""
    columns: dict[str, Column]
    """Our field -> its column of length n, for the fields that the file has."""
    find: Callable[[int, str], object]
    """The raw value of a field (by our name) in the row at an index of the batch, as
    `streaming.events.fields.Find` gives it."""
    doubtful: Bools | None = None
    """bool[n]: rows of which ``columns`` does not hold what ``find`` gives; None: none is."""
    rejects: list[RowReject] = field(default_factory=list)
    """The rows that could not be parsed, ascending; they are not in ``rows``."""


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events of n consecutive rows (less the skipped ones), as columns.

    ``users``, ``items``, ``categories``, ``event_ids`` and ``sources`` are pyarrow string arrays
    of length n; the last three are None where no row has one, and null where a row has none.
    """

    rows: I64
    """i64[n], ascending: each event's row number in the file, from 0."""
    next_row: int
    """The position to go on from after this batch."""
    users: Column
    items: Column
    times: I64
    """i64[n]: event times, ms since epoch, UTC."""
    actions: U8
    """u8[n]: codes of the declared actions (`infra.behaviors.ActionNames`)."""
    categories: Column | None
    dwells: U32 | None
    """u32[n]: dwell times in ms, 0 where a row has none."""
    event_ids: Column | None
    sources: Column | None
    fraction: float
    """How much of the file has been read, 0 to 1."""

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, good: Bools) -> EventBatch:
        """The events where ``good`` (bool[n]) is true."""
        mask = pa.array(good)

        def cut(column: Column | None) -> Column | None:
            return None if column is None else column.filter(mask)

        return EventBatch(
            rows=self.rows[good],
            next_row=self.next_row,
            users=cut(self.users),
            items=cut(self.items),
            times=self.times[good],
            actions=self.actions[good],
            categories=cut(self.categories),
            dwells=None if self.dwells is None else self.dwells[good],
            event_ids=cut(self.event_ids),
            sources=cut(self.sources),
            fraction=self.fraction,
        )
