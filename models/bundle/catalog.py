"""The items of a bundle: ids and titles for people, popularity, and rows by key.

A catalog of ten million items lies in mapped files, which the processes of a machine share. No item
has a Python object: texts are decoded one by one, where somebody looks at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, overload

import numpy as np

from infra.arrays import F32, I32, I64, U8, U64, Array
from infra.behaviors import item_key
from infra.errors import BundleIncompatible
from models.kernels.lookup import fill, find

MOST_ITEMS: Final = 2**31 - 1
"""Rows are i32."""


class Texts(Sequence[str]):
    """A list of texts as their UTF-8 laid end to end.

    >>> Texts.of(["", "é", "of any length"])[1:]
    ['é', 'of any length']
    """

    def __init__(self, utf8: U8, offsets: I64) -> None:
        self.utf8 = utf8
        """u8: the texts, one after the other."""
        self.offsets = offsets
        """i64[n + 1]: where each begins, and where the last one ends."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """The texts of a list.

        Raises:
            UnicodeEncodeError: one holds half of a surrogate pair.
        """
        encoded = [text.encode() for text in texts]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> list[str]: ...

    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[row] for row in range(*at.indices(len(self)))]
        row = range(len(self))[at]
        text = self.utf8[self.offsets[row] : self.offsets[row + 1]]
        return text.tobytes().decode(errors="replace")


@dataclass(frozen=True)
class Catalog:
    """n items; row 0 stands for the unknown ones."""

    item_ids: Texts
    """n + 1 ids; row 0 is ""."""
    titles: Texts
    """n + 1 titles, "" where there is none."""
    popularity: F32
    """f32[n + 1]: training behaviors of the item per million; 0 for unknown items."""
    slots: Array
    """The rows by item key (`models.kernels.lookup.SLOT`)."""

    @classmethod
    def of(cls, item_ids: Sequence[str], titles: Sequence[str], popularity: F32) -> Catalog:
        """A catalog of n + 1 entries each, of which the first stands for the unknown.

        Raises:
            BundleIncompatible: an id is empty, there twice or no text, or there are too many.
        """
        if len(item_ids) - 1 > MOST_ITEMS:
            raise BundleIncompatible(
                f"{len(item_ids) - 1} items are more than the {MOST_ITEMS} that a bundle holds;"
                " leave some out"
            )
        columns = {"item id": item_ids, "title": titles}
        texts = {}
        for name, column in columns.items():
            try:
                texts[name] = Texts.of(column)
            except UnicodeEncodeError as error:
                raise BundleIncompatible(
                    f"the {name} {error.object!r} is no Unicode text ({error.reason}); correct it"
                    " in the data"
                ) from error
        keys = np.fromiter(map(item_key, item_ids[1:]), np.uint64, len(item_ids) - 1)
        return cls.keyed(texts["item id"], texts["title"], popularity, keys)

    @classmethod
    def keyed(cls, item_ids: Texts, titles: Texts, popularity: F32, keys: U64) -> Catalog:
        """A catalog of texts that are laid out already, and the keys u64[n] of their ids.

        Raises:
            BundleIncompatible: an id is empty or there twice.
        """
        empty = np.flatnonzero(np.diff(item_ids.offsets[1:]) == 0)
        if len(empty):
            raise BundleIncompatible(
                f"item {empty[0] + 1} of {len(keys)} has an empty id, which stands for unknown"
                " items; give it one, or leave it out"
            )
        slots, (first, second) = fill(keys)
        if second:
            raise BundleIncompatible(
                f"items {first} and {second}, {item_ids[first]!r} and {item_ids[second]!r}, have"
                " one key, so that nobody could tell their behaviors apart; leave one out"
            )
        return cls(item_ids, titles, np.ascontiguousarray(popularity, np.float32), slots)

    def rows(self, item_keys: U64) -> I32:
        """The rows of items, i32[n]; 0 where the catalog does not have one.

        Args:
            item_keys: u64[n], `infra.behaviors.item_key` of the items.
        """
        return find(self.slots, item_keys)
