"""Bookmarks of the store that hold records of ours, in JSON."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from infra.errors import StoreCorrupt, one_line

T = TypeVar("T")


def decode_bookmark(record: bytes, name: str, kind: type[T]) -> T:
    """The record in a bookmark by that name.

    Raises:
        StoreCorrupt: it is none of that kind.
    """
    try:
        return msgspec.json.decode(record, type=kind)
    except msgspec.DecodeError as error:
        raise StoreCorrupt(
            f"the store's bookmark {name} cannot be read: {one_line(error)}; restore the store"
        ) from error
