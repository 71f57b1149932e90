"""The ranked items of an answer, written as JSON without an object for each.

An item and its CTR are some 40 bytes; to make an object of each for msgspec, and a Python number of
its CTR, takes ten times as long as to write the bytes.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infra.arrays import F32, I64, U8
from infra.compiling import kernel
from scorer.ids import Ids, listed_ids

DIGITS: Final = 9
"""Decimals of a CTR: a float32 holds no more of a rate, and each one costs time and bytes."""

ONE: Final = 10**DIGITS

_ITEM: Final = np.frombuffer(b'{"item":"', np.uint8).copy()
_CTR: Final = np.frombuffer(b'","ctr":', np.uint8).copy()

AROUND: Final = len(_ITEM) + len(_CTR) + DIGITS + 4
"""Bytes of an item beside its id, at most: names, ``0.`` and decimals, a brace and a comma."""

NOT_WRITTEN: Final = -1

QUOTE, BACKSLASH, FIRST_PRINTED, ZERO, POINT, COMMA, BRACE, BRACKET, END = map(
    np.uint8, b'"\\ 0.,}[]'
)


def order_of(ctrs: F32, top_k: int | None) -> I64:
    """The places of CTRs, highest first, ties in their given order, at most ``top_k`` of them."""
    # Numbers that are not negative have the order of their bits, and the places stand behind them:
    # whole numbers are sorted three times as fast as places by rates.
    keys = (~np.abs(ctrs).view(np.uint32)).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(ctrs), dtype=np.uint64)
    keys.sort()
    return (keys[:top_k] & np.uint64(0xFFFFFFFF)).astype(np.int64)


def ranked_json(ids: Ids, ctrs: F32, top_k: int | None) -> bytes | None:
    """`scorer.messages.ranked_items` as JSON; None: an id holds what JSON escapes.

    >>> ids = listed_ids("candidates", ["a", "b"])
    >>> ranked_json(ids, np.array([0.25, 1], np.float32), None)
    b'[{"item":"b","ctr":1.0},{"item":"a","ctr":0.25}]'

    Args:
        ids: n candidates.
        ctrs: f32[n], 0 to 1.
    """
    order = order_of(ctrs, top_k)
    text = np.frombuffer(ids.text, np.uint8)
    written = np.empty(len(text) + AROUND * len(order) + 2, np.uint8)
    places = text, ids.starts, ids.sizes
    size = _write_kernel(*places, order, np.array(ctrs, np.float32), _ITEM, _CTR, written)
    return None if size == NOT_WRITTEN else written[:size].tobytes()


def warm() -> None:
    """Have the kernel compiled."""
    ranked_json(listed_ids("", ["a"]), np.zeros(1, np.float32), None)


@kernel
def _write_kernel(  # kernels take nothing by name
    text: U8, starts: I64, sizes: I64, order: I64, ctrs: F32, item: U8, ctr: U8, written: U8
) -> int:
    """The loop of `ranked_json`; returns how many bytes it wrote."""
    # Unsigned, or each index would be tested for < 0.
    at, one = np.uint64(0), np.uint64(1)
    for i in range(len(order)):
        place = order[i]
        written[at] = COMMA if i else BRACKET
        at = _copy(item, np.uint64(0), np.uint64(len(item)), written, at + one)
        begin, size = np.uint64(starts[place]), np.uint64(sizes[place])
        escaped = False
        for j in range(begin, begin + size):
            letter = text[j]
            escaped |= (letter < FIRST_PRINTED) | (letter == QUOTE) | (letter == BACKSLASH)
        if escaped:
            return NOT_WRITTEN
        at = _copy(text, begin, size, written, at)
        at = _copy(ctr, np.uint64(0), np.uint64(len(ctr)), written, at)
        at = _write_rate(np.uint64(np.rint(np.float64(ctrs[place]) * ONE)), written, at)
        written[at] = BRACE
        at += one
    written[at] = END
    return int(at) + 1


@kernel
def _copy(source: U8, start: np.uint64, size: np.uint64, written: U8, at: np.uint64) -> np.uint64:
    for i in range(size):
        written[at + i] = source[start + i]
    return at + size


@kernel
def _write_rate(billionths: np.uint64, written: U8, at: np.uint64) -> np.uint64:
    """A number from 0 to 1, given in `ONE`-ths, without the zeros at its end."""
    one, ten = np.uint64(1), np.uint64(10)
    point = at + one
    written[at] = ZERO + billionths // np.uint64(ONE)
    written[point] = POINT
    rest, last = billionths % np.uint64(ONE), point + one
    for i in range(np.uint64(DIGITS)):
        place, digit = point + np.uint64(DIGITS) - i, rest % ten
        rest //= ten
        written[place] = ZERO + digit
        if digit:
            last = max(last, place)
    return last + one
