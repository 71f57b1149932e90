"""Ids, numbers and actions: which raw values are taken, and what they become.

One rule each, for every way that an event can come:

- *Numbers* (times, dwell times) are numbers, or texts that say one ("12", "1.5e3", spaces around it
  allowed). NaN and infinities are none. A text with a fraction or an exponent is the nearest
  double, as it would be in JSON.
- *Ids* (user, item, event, category, and the platform's name of an action) are texts or whole
  numbers. A text is never interpreted. A whole number, negative or not, becomes its decimal text,
  so 42 and "42" are the same user. A floating-point number is taken where it is whole and exact
  (7.0 is 7, up to 2**53: what a table makes of whole numbers once one is missing), and refused
  otherwise. An id holds no NUL character, with which stores end a user's key.
- *Dwell times* are numbers of ms, rounded down, that fit 32 bits.
- *Actions* are ids that the settings declare, or map to one that is declared.

What is absent, and what an empty text means, is decided before: see `streaming.events.fields`.
Times have a module of their own, `streaming.events.times`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from infra.behaviors import ActionNames
from infra.errors import nearest
from streaming.events.rejects import Reason, Rejected, kind, show

MAX_DWELL_MS: Final = 0xFFFF_FFFF
"""Longest dwell time that a stored behavior can hold, 49 days."""

MAX_EXACT: Final = 2**53
"""Up to this a double holds every whole number."""

MAX_DIGITS: Final = 4300
"""Digits of a number that Python and msgspec convert; a text with more is refused like a number."""

HINTS: Final = 1024
"""Unknown actions whose nearest known one is looked for, and remembered: that costs up to 6 ms, and
a producer that is configured wrongly sends the same ones, or new ones, without end."""

_NUMBER: Final = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_WHOLE: Final = re.compile(r"[-+]?\d+", re.ASCII)


def says_number(text: str) -> bool:
    """Whether a text without spaces around it says a number."""
    return _NUMBER.fullmatch(text) is not None


def as_number(value: object, shown: str) -> int | float | None:
    """The number that a value is, or says as a text; None: a text or a float that is no number.

    Args:
        value: as the event holds it.
        shown: the field's name for people.

    Raises:
        Rejected: it is neither a number nor a text (WRONG_TYPE), or a number that is too large
            even for a double (TOO_LONG).
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        whole = int(value)
        return whole if whole == value else float(value)
    if not isinstance(value, str):
        raise Rejected(Reason.WRONG_TYPE, f"{shown} is {kind(value)}, not a number")
    text = value.strip()
    if not says_number(text):
        return None
    number: int | float = math.inf
    if len(text) <= MAX_DIGITS:
        number = int(text) if _WHOLE.fullmatch(text) else float(text)
    if number in {math.inf, -math.inf}:
        raise Rejected(Reason.TOO_LONG, f"{shown} {show(value)} is out of range")
    return number


def read_dwell(value: object, shown: str) -> int:
    """A dwell time in whole ms.

    Raises:
        Rejected: it is no number, or does not fit.
    """
    number = as_number(value, shown)
    if number is None:
        raise Rejected(Reason.WRONG_TYPE, f"{shown} {show(value)} is not a number")
    dwell = math.floor(number)
    if dwell < 0:
        raise Rejected(Reason.NEGATIVE, f"{shown} {show(value)} is negative")
    if dwell > MAX_DWELL_MS:
        raise Rejected(Reason.TOO_LONG, f"{shown} {show(value)} is more than {MAX_DWELL_MS} ms")
    return dwell


def read_id(value: object, shown: str, max_bytes: int) -> str:
    """An id as the text under which it is kept.

    Raises:
        Rejected: it is neither a text nor a whole number, holds a NUL, or is too long in UTF-8.
    """
    text = value if isinstance(value, str) else _id_of_number(value, shown)
    if not text:
        raise Rejected(Reason.EMPTY, f"{shown} is empty")
    try:
        length = len(text.encode())
    except UnicodeEncodeError:  # a lone surrogate, as some readers of JSON let pass
        raise Rejected(Reason.BAD_TEXT, f"{shown} {show(text)} is not UTF-8") from None
    if length > max_bytes:
        raise Rejected(
            Reason.TOO_LONG,
            f"{shown} {show(text)} has {length} bytes, more than max_id_bytes = {max_bytes}",
        )
    if "\0" in text:
        raise Rejected(Reason.BAD_TEXT, f"{shown} {show(text)} holds a NUL character")
    return text


def _id_of_number(value: object, shown: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Decimal) and value == int(value):
        return str(int(value))
    if isinstance(value, float):
        if value.is_integer() and abs(value) <= MAX_EXACT:
            return str(int(value))
        raise Rejected(
            Reason.WRONG_TYPE,
            f"{shown} is a number with a fraction or beyond 2**53 ({show(value)}),"
            " not text or a whole number",
        )
    raise Rejected(Reason.WRONG_TYPE, f"{shown} is {kind(value)}, not text or a whole number")


class Actions:
    """The actions that are known, as declared and as events spell them, and their codes.

    >>> declared = ActionNames(("view", "purchase"))
    >>> Actions(declared, {"buy": "purchase"}, 256).codes
    {'view': 1, 'purchase': 2, 'buy': 2}
    """

    def __init__(
        self,
        declared: ActionNames,
        mapped: Mapping[str, str],
        max_id_bytes: int,
        section: str = "events",
    ) -> None:
        self._section = section
        codes = {
            **declared.codes,
            **{theirs: declared.codes[ours] for theirs, ours in mapped.items()},
        }
        self.codes: Final = {
            name: code for name, code in codes.items() if _is_id(name, max_id_bytes)
        }
        self._hints: dict[str, str] = {}

    def read(self, name: str, shown: str) -> int:
        """The code of an action.

        Raises:
            Rejected: it is not known; the detail says which is nearest, and where to declare it.
        """
        code = self.codes.get(name)
        if code is None:
            raise Rejected(
                Reason.UNKNOWN_ACTION,
                f"{shown} {show(name)} is not known{self._hint(name)}; add it to"
                f" events.action_names, or map it in {self._section}.actions",
            )
        return code

    def _hint(self, name: str) -> str:
        if name not in self._hints:
            if len(self._hints) >= HINTS:
                return ""
            near = nearest(name, self.codes)
            self._hints[name] = f" (did you mean {near}?)" if near else ""
        return self._hints[name]


def _is_id(name: str, max_bytes: int) -> bool:
    try:
        read_id(name, "action", max_bytes)
    except Rejected:
        return False
    return True
