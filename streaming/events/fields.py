"""Where an event's fields are: their names and paths in the platform's events, and their constants.

What it means that a field is not there is one rule for every way that an event can come: a field
that is absent, null or an empty text has its constant, where the settings name one. Otherwise an
optional field counts as absent, and a required one refuses the event. Fields that are not mapped
are skipped and never judged.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from infra.settings import EventSettings
from streaming.events.paths import ABSENT, Finder, finder, first_of, top_of
from streaming.events.payloads import decode_object
from streaming.events.rejects import Reason, Rejected, show

REQUIRED: Final = ("user_id", "item_id", "action", "event_time")
OPTIONAL: Final = ("event_id", "category_id", "dwell_ms")
NUMERIC: Final = ("event_time", "dwell_ms")
"""Fields whose texts are read as numbers; the others are ids, whose texts are never interpreted."""

_REFUSED: Final = object()

Find = Callable[[str], object]
"""Gives the raw value of one of our fields: `ABSENT`, None for null, or what the event holds."""


def too_large(size: int, limit: int) -> Rejected:
    """The refusal of an event of ``size`` bytes."""
    return Rejected(Reason.TOO_LARGE, f"{size} bytes exceed max_event_bytes = {limit}")


class Fields:
    """The fields of events under a mapping.

    Args:
        settings: names, paths and constants.
        extra: fields to find beside those that are stored.
        mappings: events are mappings, with all that they hold; otherwise `decode` makes them, with
            what is needed of them.

    >>> fields = Fields(EventSettings(fields={"item_id": "payload.sku"}))
    >>> fields.find(fields.decode(b'{"payload": {"sku": "i1"}}'), "item_id")
    'i1'
    """

    def __init__(
        self, settings: EventSettings, extra: Sequence[str] = (), *, mappings: bool = False
    ) -> None:
        given = {name: settings.fields.get(name, name) for name in (*REQUIRED, *OPTIONAL, *extra)}
        self.names: Final[dict[str, tuple[str, ...]]] = {
            ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in given.items()
        }
        """Our name of a field to its names or paths in an event, of which the first that is there
        counts."""
        self.shown: Final = {
            ours: ours if theirs == (ours,) else f"{ours} ({' or '.join(theirs)})"
            for ours, theirs in self.names.items()
        }
        """Our name of a field to how a detail names it."""
        self.constants: Final = {
            name: value for name, value in settings.constants.items() if value != ""
        }
        paths = [path for theirs in self.names.values() for path in theirs]
        tops = list(dict.fromkeys(top_of(path) for path in paths))
        tops_found: dict[str | None, Finder] = {}
        if mappings or None in tops:
            self._row: Any = None
            self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(dict[str, Any])
        else:
            # In this order, so that an event without the extra fields has the same attributes.
            self._row = msgspec.defstruct(
                "Row",
                [
                    (f"c{i}", Any, msgspec.field(name=top, default=ABSENT))
                    for i, top in enumerate(tops)
                ],
                gc=False,
            )
            self._decoder = msgspec.json.Decoder(self._row)
            tops_found = {top: operator.attrgetter(f"c{i}") for i, top in enumerate(tops)}
        self._finders: Final[dict[str, Finder]] = {
            ours: first_of(
                [finder(path, self.shown[ours], tops_found.get(top_of(path))) for path in theirs]
            )
            for ours, theirs in self.names.items()
        }

    def decode(self, event: bytes) -> Any:
        """A JSON event as something to `find` fields in.

        Raises:
            Rejected: it is not JSON, not an object, or holds a number of too many digits.
        """
        return decode_object(event, self._decoder)

    def decode_lines(self, lines: Sequence[bytes]) -> list[Any] | None:
        """JSON events, one a line, as `decode` gives them; None: not all of them are sound."""
        # An object that ends where its line does not would make its neighbors others than they are.
        text = b"\n".join(lines)
        if text.count(b"}\n{") != len(lines) - 1 or text[:1] != b"{" or text[-1:] != b"}":
            return None
        try:
            events = self._decoder.decode_lines(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return events if len(events) == len(lines) else None

    def adopt(self, event: Any) -> Any:
        """An event that `Fields` of fewer extra fields decoded, as one of these, without those."""
        return event if self._row is None else self._row(*msgspec.structs.astuple(event))

    def column(self, events: Sequence[Any], name: str) -> list[object]:
        """The raw values of a field in many events, as `find` gives them.

        What `find` refuses is an object that nothing takes for a value.
        """
        find = self._finders[name]
        if isinstance(find, operator.attrgetter):
            return list(map(find, events))
        values: list[object] = []
        for event in events:
            try:
                values.append(self.find(event, name))
            except Rejected:
                values.append(_REFUSED)
        return values

    def find(self, event: Any, name: str) -> object:
        """The raw value of a field in an event that `decode` gave.

        Raises:
            Rejected: the path steps into what is no object.
        """
        return self._finders[name](event)

    def required(self, find: Find, name: str) -> object:
        """The value of a required field, or its constant.

        Raises:
            Rejected: there is none.
        """
        value = find(name)
        if type(value) is str and value:  # as nearly all are
            return value
        if value is None or value is ABSENT or value == "":
            constant = self.constants.get(name)
            if constant is not None:
                return constant
            if value is None:
                raise Rejected(Reason.NULL_FIELD, f"{self.shown[name]} is null")
            if value is ABSENT:
                raise Rejected(Reason.MISSING_FIELD, f"{self.shown[name]} is missing")
            raise Rejected(Reason.EMPTY, f"{self.shown[name]} is empty")
        return self._as_text(value, name)

    def optional(self, find: Find, name: str) -> object | None:
        """The value of an optional field, or its constant, or None."""
        value = find(name)
        if type(value) is str and value:  # as nearly all are
            return value
        if value is None or value is ABSENT or value == "":
            return self.constants.get(name)
        return self._as_text(value, name)

    def _as_text(self, value: object, name: str) -> object:
        if isinstance(value, bytes):  # a file's cell that could not be decoded
            raise Rejected(Reason.BAD_TEXT, f"{self.shown[name]} {show(value)} is not UTF-8")
        return value
