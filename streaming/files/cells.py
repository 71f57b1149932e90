"""One cell of a typed column as the value that the rules take."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from streaming.events.paths import ABSENT
from streaming.events.times import Timestamp
from streaming.files.batches import Column


class Duration:
    """A time of day or a span of time: no rule takes one, so what it says is never asked."""


_NO_RULE: Final = Duration()


def cell(columns: dict[str, Column], index: int, name: str) -> object:
    """The raw value of a field in a row of columns, as `streaming.events.fields.Find` gives it.

    Bytes are decoded where they are UTF-8, timestamps and dates carry their unit.
    """
    column = columns.get(name)
    if column is None:
        return ABSENT
    value = column[index]
    if not value.is_valid:
        return None
    if pa.types.is_dictionary(value.type):
        value = value.value
    kind = value.type
    if pa.types.is_timestamp(kind):
        return Timestamp.of(value.value, kind.unit)
    if pa.types.is_date(kind):
        return Timestamp.of(value.cast(pa.date64()).value, "ms")
    if pa.types.is_temporal(kind):
        return _NO_RULE
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return text(value.as_buffer().to_pybytes())
    found: object = value.as_py()
    return text(found) if isinstance(found, bytes) else found


def text(value: bytes) -> str | bytes:
    """The bytes as text, or as they are if they are no UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
