"""Why an event is refused: the reasons, and how a value is shown to the person who reads of it.

Events of a topic and rows of a file are refused by the same rules, so they share these reasons.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

SHOWN_CHARS: Final = 60
"""Characters of a value that a detail shows: a header of a dead letter must bear it."""


class Reason(StrEnum):
    """Why an event was rejected. Stable: a metric label and a header of the dead letter."""

    EMPTY = "empty"
    """No payload, or a required field that is an empty text."""
    NOT_JSON = "not_json"
    BAD_FORMAT = "bad_format"
    """Not what the format of the source says: an envelope without what belongs to it, for one."""
    UNKNOWN_SCHEMA = "unknown_schema"
    """The record names a schema that the registry does not have."""
    WRONG_SHAPE = "wrong_shape"
    """JSON, but not an object; or a row of a CSV file with too few or too many cells."""
    MISSING_FIELD = "missing_field"
    NULL_FIELD = "null_field"
    WRONG_TYPE = "wrong_type"
    BAD_TEXT = "bad_text"
    """An id that holds a NUL character, with which stores end a key, or a text not in UTF-8."""
    NEGATIVE = "negative"
    """A time or a dwell time below zero."""
    TOO_LONG = "too_long"
    """An id longer than ``max_id_bytes``, or a number beyond what can be stored."""
    BAD_TIME = "bad_time"
    """A time that cannot be read in the unit that the settings name."""
    TOO_OLD = "too_old"
    IN_FUTURE = "in_future"
    UNKNOWN_ACTION = "unknown_action"
    KEY_MISMATCH = "key_mismatch"
    """The record's key is not the user id: its partition keeps no order for this user."""
    TOO_LARGE = "too_large"
    """The payload, or the line of a file, exceeds ``max_event_bytes``, or holds too many events."""
    RECORD_TOO_LARGE = "record_too_large"
    """The store cannot hold this user's record (not of the decoder: the store says so)."""
    RECORD_CORRUPT = "record_corrupt"
    """The store cannot read this user's record (not of the decoder: the store says so)."""


class Reject(NamedTuple):
    """A record of a topic that goes to the dead letters."""

    offset: int
    key: bytes | None
    value: bytes | None
    reason: Reason
    detail: str
    """One line that names the field and shows the beginning of its value."""
    events: int = 1
    """How many it holds that are refused for this."""


class Rejected(Exception):
    """Raised by a rule for the value that it refuses; whoever reads events catches it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Ignored(Exception):
    """Raised for what is no behavior, as the settings or its format say: it is counted, and goes
    nowhere.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """What decides: a path of the settings, or a word of the format. A metric's label, so never
        of what a producer sent."""


def kind(value: object) -> str:
    """What a value is, in the words of JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:  # of a typed column
            return f"a {type(value).__name__.lower()}"


def show(value: object) -> str:
    """The value on one line, cut to what a header can bear."""
    if isinstance(value, str | bytes):
        return repr(value[:SHOWN_CHARS]) + ("..." if len(value) > SHOWN_CHARS else "")
    # An integer of more digits than Python converts raises; msgspec bounds them well below that.
    text = repr(value)
    return text[:SHOWN_CHARS] + ("..." if len(text) > SHOWN_CHARS else "")
