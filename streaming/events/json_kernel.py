"""The words of JSON for kernels: where a text, a number, or any value ends.

Text is u8, bytes in UTF-8; functions look at ``text[at:end]`` and give where something ends, or -1:
they are not sure, and msgspec may judge. Of what they accept they are sure that it is JSON.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infra.arrays import U8
from infra.compiling import kernel
from infra.utf8 import size_of_character

QUOTE: Final = ord('"')
COMMA: Final = ord(",")
COLON: Final = ord(":")
OPEN: Final = ord("{")
CLOSE: Final = ord("}")
OPEN_LIST: Final = ord("[")
CLOSE_LIST: Final = ord("]")
BACKSLASH: Final = ord("\\")
MINUS: Final = ord("-")
PLUS: Final = ord("+")
POINT: Final = ord(".")
ZERO: Final = ord("0")
NINE: Final = ord("9")
SPACE: Final = ord(" ")
LINE_END: Final = ord("\n")
CARRIAGE_RETURN: Final = ord("\r")

MOST_DIGITS: Final = 18
"""Of a whole number: so many always fit 64 bits."""

EXACT_DIGITS: Final = 15
"""Of a decimal: so many are what the double nearest to it says."""

_LONGEST: Final = 40
"""Of a number. msgspec refuses those of some thousand digits."""

_DEEPEST: Final = 60
"""Objects and lists within each other."""

_WORDS: Final = tuple(np.frombuffer(word, np.uint8) for word in (b"null", b"true", b"false"))

_ESCAPED: Final = tuple(b'"\\/bfnrt')
"""What may stand behind a backslash, beside the ``u`` of a code."""


@kernel
def after_space(text: U8, at: int, end: int) -> int:
    """Where the first character stands that is no white space."""
    while at < end and text[at] in (SPACE, LINE_END, CARRIAGE_RETURN, 0x09):
        at += 1
    return at


@kernel
def end_of_text(text: U8, at: int, end: int) -> int:
    """Where a text without escapes ends that begins there, at its quote; -1: not sure of it."""
    at = _end_of_plain(text, at, end)
    return at if at < end and text[at] == QUOTE else -1


@kernel
def _end_of_plain(text: U8, at: int, end: int) -> int:
    """Where the first quote, backslash or what cannot stand in a text lies."""
    while at < end:
        byte = text[at]
        if byte < 0x20 or byte in (QUOTE, BACKSLASH):
            break
        size = 1 if byte < 0x80 else size_of_character(text, at, end)
        if size == 0:
            break
        at += size
    return at


@kernel
def _after_skipped_text(text: U8, at: int, end: int) -> int:
    """Where a text has ended that begins there, behind its quote, escapes and all; -1: not sure."""
    while True:
        at = _end_of_plain(text, at, end)
        if at >= end:
            return -1
        if text[at] == QUOTE:
            return at + 1
        if text[at] != BACKSLASH or at + 1 >= end:
            return -1
        escaped = text[at + 1]
        at += 2
        if escaped == ord("u"):
            # Halves of pairs (d800 to dfff) are for msgspec to judge.
            if at + 4 > end or ((text[at] | 0x20) == ord("d") and text[at + 1] > ord("7")):
                return -1
            for place in range(at, at + 4):
                lower = text[place] | 0x20
                if not (ZERO <= text[place] <= NINE or ord("a") <= lower <= ord("f")):
                    return -1
            at += 4
        elif escaped not in _ESCAPED:
            return -1


@kernel
def after_number(text: U8, at: int, end: int) -> tuple[int, int]:
    """Where the whole part of a number ends, and where its fraction does (the same, without one);
    -1: it is none, long, or has an exponent.
    """
    unsure = -1, -1
    if at < end and text[at] == MINUS:
        at += 1
    first = at
    while at < end and ZERO <= text[at] <= NINE:
        at += 1
    whole = at
    if whole == first or (text[first] == ZERO and whole > first + 1):
        return unsure
    if at < end and text[at] == POINT:
        at += 1
        while at < end and ZERO <= text[at] <= NINE:
            at += 1
        if at == whole + 1:
            return unsure
    if at < end and (text[at] == ord("e") or text[at] == ord("E")):
        return unsure
    if at - first > _LONGEST:
        return unsure
    return whole, at


@kernel
def whole_number(text: U8, at: int, stop: int) -> int:
    """The whole number that digits say, at most `MOST_DIGITS`."""
    value = 0
    for place in range(at, stop):
        value = value * 10 + (int(text[place]) - ZERO)
    return value


@kernel
def digits_at(text: U8, at: int, count: int) -> int:
    """The number that so many digits say; -1: there are others among them."""
    value = 0
    for place in range(at, at + count):
        if not ZERO <= text[place] <= NINE:
            return -1
        value = value * 10 + (int(text[place]) - ZERO)
    return value


@kernel
def same(a: U8, start_a: int, size_a: int, b: U8, start_b: int, size_b: int) -> bool:
    """Whether two texts are the same."""
    if size_a != size_b:
        return False
    for place in range(size_a):  # noqa: SIM110 - kernels know no generators
        if a[start_a + place] != b[start_b + place]:
            return False
    return True


@kernel
def after_word(text: U8, at: int, end: int) -> int:
    """Where null, true or false has ended that begins there; -1: it is none of them."""
    for word in _WORDS:
        if same(text, at, min(len(word), end - at), word, 0, len(word)):
            return at + len(word)
    return -1


@kernel
def after_value(  # noqa: C901, PLR0912 - one automaton, with its state in variables
    text: U8, at: int, end: int
) -> int:
    """Where a value has ended that begins there, whatever it is; -1: not sure of it."""
    lists = np.uint64(0)  # a bit for what is open: whether it is a list, the innermost lowest
    depth = 0
    while True:
        if at >= end:
            return -1
        byte = text[at]
        if byte in (OPEN, OPEN_LIST):
            is_list = byte == OPEN_LIST
            at = after_space(text, at + 1, end)
            if at >= end:
                return -1
            if text[at] != (CLOSE_LIST if is_list else CLOSE):
                depth += 1
                if depth > _DEEPEST:
                    return -1
                lists = (lists << np.uint64(1)) | np.uint64(1 if is_list else 0)
                if not is_list:
                    at = _after_name(text, at, end)
                    if at < 0:
                        return -1
                continue
            at += 1
        elif byte == QUOTE:
            at = _after_skipped_text(text, at + 1, end)
            if at < 0:
                return -1
        elif byte == MINUS or ZERO <= byte <= NINE:
            _, at = after_number(text, at, end)
            if at < 0:
                return -1
        else:
            at = after_word(text, at, end)
            if at < 0:
                return -1
        while depth:  # what is open may end here, or goes on
            at = after_space(text, at, end)
            if at >= end:
                return -1
            is_list = (lists & np.uint64(1)) != 0
            if text[at] == COMMA:
                at = after_space(text, at + 1, end)
                if not is_list:
                    at = _after_name(text, at, end)
                    if at < 0:
                        return -1
                break
            if text[at] != (CLOSE_LIST if is_list else CLOSE):
                return -1
            at += 1
            depth -= 1
            lists >>= np.uint64(1)
        else:
            return at


@kernel
def _after_name(text: U8, at: int, end: int) -> int:
    """Where the value begins whose name begins there; -1: not sure of it."""
    if at >= end or text[at] != QUOTE:
        return -1
    at = end_of_text(text, at + 1, end)
    if at < 0:
        return -1
    at = after_space(text, at + 1, end)
    if at >= end or text[at] != COLON:
        return -1
    return after_space(text, at + 1, end)
