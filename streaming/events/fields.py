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

from infra.errors import one_line
from infra.settings import EventSettings
from streaming.events.rejects import Reason, Rejected, kind, show

REQUIRED: Final = ("user_id", "item_id", "action", "event_time")
OPTIONAL: Final = ("event_id", "category_id", "dwell_ms")
NUMERIC: Final = ("event_time", "dwell_ms")
"""Fields whose texts are read as numbers; the others are ids, whose texts are never interpreted."""

ABSENT: Final = msgspec.UNSET
"""What a finder gives for a field that the event does not have at all."""

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

    >>> fields = Fields(EventSettings(fields={"item_id": "payload.sku"}))
    >>> fields.find(fields.decode(b'{"payload": {"sku": "i1"}}'), "item_id")
    'i1'
    """

    def __init__(self, settings: EventSettings, extra: Sequence[str] = ()) -> None:
        self.names: Final = {
            name: settings.fields.get(name, name) for name in (*REQUIRED, *OPTIONAL, *extra)
        }
        """Our name of a field to its name or dotted path in an event."""
        self.shown: Final = {
            ours: ours if ours == theirs else f"{ours} ({theirs})"
            for ours, theirs in self.names.items()
        }
        """Our name of a field to how a detail names it."""
        self.constants: Final = {
            name: value for name, value in settings.constants.items() if value != ""
        }
        # In this order, so that an event without the extra fields has the same attributes.
        tops = list(dict.fromkeys(theirs.split(".")[0] for theirs in self.names.values()))
        self._row = msgspec.defstruct(
            "Row",
            [(f"c{i}", Any, msgspec.field(name=top, default=ABSENT)) for i, top in enumerate(tops)],
            gc=False,
        )
        self._paths = {
            ours: (f"c{tops.index(top)}", inner)
            for ours, theirs in self.names.items()
            for top, *inner in [theirs.split(".")]
        }
        self._decoder = msgspec.json.Decoder(self._row)

    def decode(self, event: bytes) -> Any:
        """A JSON event as something to `find` fields in.

        Raises:
            Rejected: it is not JSON, not an object, or holds a number of too many digits.
        """
        try:
            return self._decoder.decode(event)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
        # Decoded once more, as anything, to tell what is wrong.
        try:
            found = msgspec.json.decode(event)
            if isinstance(found, dict):  # only what is skipped above can differ
                return self._decoder.decode(event)
        except msgspec.ValidationError as error:
            raise Rejected(Reason.TOO_LONG, one_line(error)) from None
        except RecursionError:
            raise Rejected(Reason.NOT_JSON, "nested too deeply") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Rejected(Reason.NOT_JSON, one_line(error)) from None
        raise Rejected(Reason.WRONG_SHAPE, f"not an object but {kind(found)}")

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
        return self._row(*msgspec.structs.astuple(event))

    def column(self, events: Sequence[Any], name: str) -> list[object]:
        """The raw values of a field in many events, as `find` gives them.

        What `find` refuses is an object that nothing takes for a value.
        """
        attribute, inner = self._paths[name]
        if not inner:
            return list(map(operator.attrgetter(attribute), events))
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
        attribute, inner = self._paths[name]
        value = getattr(event, attribute)
        for part in inner:
            if value is None or value is ABSENT:
                return value
            if not isinstance(value, dict):
                raise Rejected(
                    Reason.WRONG_TYPE,
                    f"{self.shown[name]}: what should hold {part!r} is {kind(value)}",
                )
            value = value.get(part, ABSENT)
        return value

    def required(self, find: Find, name: str) -> object:
        """The value of a required field, or its constant.

        Raises:
            Rejected: there is none.
        """
        value = find(name)
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
        if value is None or value is ABSENT or value == "":
            return self.constants.get(name)
        return self._as_text(value, name)

    def _as_text(self, value: object, name: str) -> object:
        if isinstance(value, bytes):  # a file's cell that could not be decoded
            raise Rejected(Reason.BAD_TEXT, f"{self.shown[name]} {show(value)} is not UTF-8")
        return value
