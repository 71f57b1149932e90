"""Ids of a request as one text: where each lies, whether it is sound, its key; without Python for
each.

Only its key is wanted of a candidate; its name is read where somebody is told of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, overload

import numpy as np

from infra.arrays import I64, U8, U64
from infra.compiling import kernel
from infra.errors import RequestError
from infra.hashing import xxh3_64
from infra.settings import MAX_ITEM_BYTES
from infra.utf8 import size_of_character

SOUND, CUT, EMPTY, LONG, NOT_UTF8 = range(5)
"""What becomes of reading ids; all but the first are of one that is no id."""

FAULTS: Final = {
    CUT: "is cut off",
    EMPTY: "is empty, expected an id",
    LONG: f"is longer than {MAX_ITEM_BYTES} bytes in UTF-8",
    NOT_UTF8: "is not UTF-8",
}


class Ids(Sequence[str]):
    """Ids, n of them, in UTF-8 behind one another."""

    __slots__ = ("keys", "sizes", "starts", "text")

    def __init__(self, text: bytes | memoryview, starts: I64, sizes: I64, keys: U64) -> None:
        """Take over what the functions of this file have read.

        Args:
            text: in which they lie.
            starts, sizes: i64[n], where each begins and how long it is, in bytes.
            keys: u64[n], `infra.behaviors.item_key` of each.
        """
        self.text = text
        self.starts = starts
        self.sizes = sizes
        self.keys = keys

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> Ids: ...

    def __getitem__(self, place: int | slice) -> str | Ids:
        if isinstance(place, slice):
            return Ids(self.text, self.starts[place], self.sizes[place], self.keys[place])
        start = int(self.starts[place])
        return str(self.text[start : start + int(self.sizes[place])], "utf-8")


def framed_ids(name: str, raw: bytes | memoryview, count: int) -> Ids:
    """Ids as the elements of a BYTES tensor: each behind its length (u32, little-endian).

    >>> ids = framed_ids("candidates", bytes([1, 0, 0, 0, 97, 2, 0, 0, 0, 98, 99]), 2)
    >>> list(ids)
    ['a', 'bc']

    Args:
        name: of the tensor, for errors.
        count: n, as the tensor's shape has it.

    Raises:
        RequestError: there are more or fewer, or one is cut off, empty, too long or not UTF-8.
    """
    # Each takes five bytes at least, so that a count which is made up takes no memory.
    least = min(count, len(raw) // 5)
    starts, sizes = np.empty(least, np.int64), np.empty(least, np.int64)
    text = np.frombuffer(raw, np.uint8)
    found, fault = frame_kernel(text, starts, sizes)
    if fault != SOUND:
        raise RequestError(f"{name}[{found}]", FAULTS[fault])
    if found != count:
        raise RequestError(name, f"has shape [{count}] and {found} values")
    return _with_keys(raw, starts, sizes)


def listed_ids(name: str, values: Sequence[str] | Sequence[bytes]) -> Ids:
    """Ids given one by one.

    >>> list(listed_ids("candidates", [b"a", b"bc"]))
    ['a', 'bc']

    Raises:
        RequestError: one is empty, too long or not UTF-8.
    """
    return _with_keys(*_checked(name, values))


def check_ids(name: str, values: Sequence[str]) -> None:
    """Refuse ids of which one is empty or too long; errors are those of `listed_ids`."""
    _checked(name, values)


def sound_ids(values: Sequence[str]) -> Ids:
    """`listed_ids` of what is known to be ids."""
    return _with_keys(*_joined(values))


def item_keys(items: Sequence[str]) -> U64:
    """u64[n], `infra.behaviors.item_key` of each item, without a Python call for each.

    >>> from infra.behaviors import item_key
    >>> int(item_keys(["85123A"])[0]) == item_key("85123A")
    True
    """
    return items.keys if isinstance(items, Ids) else sound_ids(items).keys


def warm() -> None:
    """Have the kernels compiled."""
    listed_ids("", ["a"])
    framed_ids("", b"\1\0\0\0a", 1)


def _with_keys(text: bytes | memoryview, starts: I64, sizes: I64) -> Ids:
    return Ids(text, starts, sizes, key_kernel(np.frombuffer(text, np.uint8), starts, sizes))


def _checked(name: str, values: Sequence[str] | Sequence[bytes]) -> tuple[bytes, I64, I64]:
    """`_joined`, of values that are ids."""
    text, starts, sizes = _joined(values)
    place, fault = check_kernel(np.frombuffer(text, np.uint8), starts, sizes)
    if fault != SOUND:
        raise RequestError(f"{name}[{place}]", FAULTS[fault])
    return text, starts, sizes


def _joined(values: Sequence[str] | Sequence[bytes]) -> tuple[bytes, I64, I64]:
    """All in one text, where each begins and how long it is, in bytes: i64[n]."""
    if values and isinstance(values[0], str):
        joined = "".join(values)  # type: ignore[arg-type]  # all are of one kind
        text = joined.encode()
        if len(text) != len(joined):  # some letter is not ASCII, and takes several bytes
            values = [value.encode() for value in values]  # type: ignore[union-attr]
    else:
        text = b"".join(values)  # type: ignore[arg-type]
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    return text, np.cumsum(sizes) - sizes, sizes


@kernel
def frame_kernel(raw: U8, starts: I64, sizes: I64) -> tuple[int, int]:
    """The loop of `framed_ids`; returns how many are there, or the place of one and its fault."""
    at, end, found = 0, len(raw), 0
    while at < end:
        if end - at < 4:
            return found, CUT
        size = 0
        for place in range(4):
            size |= int(np.int64(raw[at + place])) << (8 * place)
        at += 4
        if size > end - at:
            return found, CUT
        fault = fault_of(raw, at, size)
        if fault != SOUND:
            return found, fault
        if found < len(starts):
            starts[found], sizes[found] = at, size
        at += size
        found += 1
    return found, SOUND


@kernel
def check_kernel(text: U8, starts: I64, sizes: I64) -> tuple[int, int]:
    """The place of the first id that is none, and its fault."""
    for i in range(len(starts)):
        fault = fault_of(text, starts[i], sizes[i])
        if fault != SOUND:
            return i, fault
    return 0, SOUND


@kernel
def key_kernel(text: U8, starts: I64, sizes: I64) -> U64:
    """u64[n], the keys of ids that lie in a text."""
    keys = np.empty(len(starts), np.uint64)
    for i in range(len(starts)):
        keys[i] = xxh3_64(text, starts[i], sizes[i])
    return keys


@kernel
def fault_of(text: U8, start: int, size: int) -> int:
    """What is wrong with the id at ``text[start : start + size]``; SOUND: nothing."""
    if size == 0:
        return EMPTY
    if size > MAX_ITEM_BYTES:
        return LONG
    every = np.uint8(0)
    for at in range(start, start + size):
        every |= text[at]
    if every < 0x80:
        return SOUND
    at, end = start, start + size
    while at < end:
        length = 1 if text[at] < 0x80 else size_of_character(text, at, end)
        if length == 0:
            return NOT_UTF8
        at += length
    return SOUND
