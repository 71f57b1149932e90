"""From the platform's JSON events to behaviors of users.

Every event is judged alone: what cannot be read becomes a `Reject` with its reason, and its
neighbors in the batch never notice. Two paths give the same answer. The fast one decodes straight
into a typed struct and only knows how to say yes; whatever it is not sure of goes to the careful
one, which reads the event field by field and can say precisely what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from infra.behaviors import ACTIONS, category_key, event_key, item_key, pack_behavior
from infra.errors import one_line
from infra.settings import EventSettings
from infra.store import Append

Record = tuple[int, bytes | None, bytes | None]
"""One Kafka record as the decoder takes it: offset, key, value."""

MAX_DWELL_MS: Final = 0xFFFF_FFFF
"""Longest dwell time that a stored behavior can hold, 49 days."""

# Category ids repeat: a dictionary is faster than hashing. It starts anew when it has grown to
# this many entries, so that ids without end cannot fill the memory.
CATEGORIES_CACHED: Final = 65_536
SHOWN_CHARS: Final = 60
REQUIRED: Final = ("user_id", "item_id", "action", "event_time")
OPTIONAL: Final = ("event_id", "category_id", "dwell_ms")


class Reason(StrEnum):
    """Why an event was rejected. Stable: a metric label and a header of the dead letter."""

    EMPTY = "empty"
    """No payload, or a required id that is an empty text."""
    NOT_JSON = "not_json"
    WRONG_SHAPE = "wrong_shape"
    """JSON, but not an object."""
    MISSING_FIELD = "missing_field"
    NULL_FIELD = "null_field"
    WRONG_TYPE = "wrong_type"
    NEGATIVE = "negative"
    TOO_LONG = "too_long"
    """An id longer than `max_id_bytes`, or a number beyond what can be stored."""
    BAD_TIME = "bad_time"
    """A time that cannot be parsed."""
    TOO_OLD = "too_old"
    IN_FUTURE = "in_future"
    UNKNOWN_ACTION = "unknown_action"
    KEY_MISMATCH = "key_mismatch"
    """The record's key is not the user id: its partition keeps no order for this user."""
    TOO_LARGE = "too_large"
    """The payload exceeds `max_event_bytes`."""
    RECORD_TOO_LARGE = "record_too_large"
    """The store cannot hold this user's record (not of the decoder: the store says so)."""
    RECORD_CORRUPT = "record_corrupt"
    """The store cannot read this user's record (not of the decoder: the store says so)."""


class Reject(NamedTuple):
    """An event that goes to the dead letters."""

    offset: int
    key: bytes | None
    value: bytes | None
    reason: Reason
    detail: str
    """One line that names the field and shows the beginning of its value."""


@dataclass(slots=True)
class Decoded:
    """What a batch of records became."""

    appends: list[Append]
    """One a user, offsets ascending."""
    rejects: list[Reject]

    @property
    def events(self) -> int:
        """Events that were accepted."""
        return sum(len(append.offsets) for append in self.appends)


class _Rejected(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        self.detail = detail


class _Behavior(NamedTuple):
    user: str
    packed: bytes
    event_key: int


class EventDecoder:
    """Decodes and validates JSON events, and groups them by user.

    Ids are texts or whole numbers, nothing else; a number becomes its decimal text, so 42 and "42"
    are the same user, and a negative number is refused. An optional field that is null or empty
    counts as absent. The record's key must be the user id in UTF-8: Kafka keeps the order of a
    user's events only within a partition, and the key chooses the partition.

    Args:
        settings: names, units and limits.
        keyless: accept records without a key too (a file being backfilled has none).

    >>> decoder = EventDecoder(EventSettings())
    >>> event = b'{"user_id": "u", "item_id": "i", "action": "click", "event_time": 1700000000000}'
    >>> decoded = decoder.decode_batch([(7, b"u", event), (8, b"u", b"{")], 1_700_000_000_000)
    >>> decoded.appends[0].offsets, decoded.rejects[0].reason.value
    ([7], 'not_json')
    """

    def __init__(self, settings: EventSettings, *, keyless: bool = False) -> None:
        names = {name: settings.fields.get(name, name) for name in REQUIRED + OPTIONAL}
        self._paths = {name: tuple(theirs.split(".")) for name, theirs in names.items()}
        self._shown = {
            ours: ours if ours == theirs else f"{ours} ({theirs})" for ours, theirs in names.items()
        }
        self._constants = {name: settings.constants.get(name) for name in names}
        self._codes = ACTIONS | {theirs: ACTIONS[ours] for theirs, ours in settings.actions.items()}
        self._unit = settings.time_unit
        self._to_ms = _TO_MS[settings.time_unit]
        self._earliest = settings.earliest_ms
        self._earliest_shown = settings.earliest.date().isoformat()
        self._max_ahead_ms = settings.max_ahead_s * 1000
        self._max_id_bytes = settings.max_id_bytes
        self._max_event_bytes = settings.max_event_bytes
        self._keyless = keyless
        self._categories: dict[str | None, int] = {}
        self._decode_any = msgspec.json.Decoder().decode
        self._decode_typed = self._typed_decoder(names)

    def decode_batch(  # noqa: C901, PLR0912 - one loop: a call an event costs more than the event
        self, records: Iterable[Record], now_ms: int
    ) -> Decoded:
        """Decode the records of one partition, given in the order of their offsets.

        Args:
            records: offset, key and value of each.
            now_ms: the time against which "in the future" is judged.
        """
        groups: dict[str, Append] = {}
        rejects: list[Reject] = []
        latest = now_ms + self._max_ahead_ms
        decode = self._decode_typed
        if decode is None or self._keyless:
            for offset, key, value in records:
                self._decode_carefully(groups, rejects, offset, key, value, latest)
            return Decoded(list(groups.values()), rejects)

        # The loop below runs once an event: everything is local, and every test is on the values
        # that the typed decoder has already proved to be of their type.
        get_append, get_code, categories = groups.get, self._codes.get, self._categories
        earliest, limit, to_ms = self._earliest, self._max_event_bytes, self._to_ms
        short = self._max_id_bytes // 4  # so many characters never exceed the limit in UTF-8
        for offset, key, value in records:
            try:
                if len(value) > limit:  # type: ignore[arg-type]  # None has no len: careful path
                    raise ValueError
                event = decode(value)
                time = event.event_time if to_ms is None else to_ms(event.event_time)
                user, item, dwell = event.user_id, event.item_id, event.dwell_ms
                code = get_code(event.action)
                if (
                    code is not None
                    and earliest <= time <= latest
                    and 0 < len(item) <= short
                    and 0 <= dwell <= MAX_DWELL_MS
                ):
                    event_id = event.event_id
                    if not event_id:
                        unique = 0
                    elif len(event_id) <= short:
                        unique = event_key(event_id) or 1
                    else:
                        raise ValueError
                    category = categories.get(event.category_id)
                    if category is None:
                        category = self._new_category(event.category_id, short)
                    if user.encode() != key:
                        raise ValueError
                    behavior = pack_behavior(item_key(item), time, category, dwell, code)
                    append = get_append(user)
                    if append is None:
                        if not 0 < len(user) <= short:
                            raise ValueError
                        append = groups[user] = Append(user, [behavior], [unique], [offset])
                        continue
                    append.behaviors.append(behavior)
                    append.event_keys.append(unique)
                    append.offsets.append(offset)
                    continue
            except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
                pass
            self._decode_carefully(groups, rejects, offset, key, value, latest)
        return Decoded(list(groups.values()), rejects)

    def _typed_decoder(self, names: dict[str, str]) -> Callable[[Any], Any] | None:
        """Decoder into a struct that has exactly the normal event's types.

        None where the mapping steps into objects, or reads one field for two purposes: the careful
        path reads those.
        """
        if any("." in theirs for theirs in names.values()):
            return None
        if len(set(names.values())) < len(names):
            return None
        types: dict[str, Any] = dict.fromkeys(names, str)
        types["event_time"] = {"ms": int, "us": int, "s": int | float, "iso": str}[self._unit]
        types["dwell_ms"] = int
        defaults: dict[str, Any] = {"event_id": "", "category_id": "", "dwell_ms": 0}
        for name, constant in self._constants.items():
            if constant is not None:
                value = str(constant) if types[name] is str else constant
                if not isinstance(value, types[name]):
                    return None
                defaults[name] = value
        # Null stands for "absent" in optional fields; those events take the careful path.
        fields: list[Any] = [
            (name, types[name], defaults[name]) if name in defaults else (name, types[name])
            for name in names
        ]
        struct = msgspec.defstruct("Event", fields, rename=names, kw_only=True, gc=False)
        return msgspec.json.Decoder(struct).decode

    def _new_category(self, category_id: str, short: int) -> int:
        if len(category_id) > short:
            raise ValueError
        if len(self._categories) >= CATEGORIES_CACHED:
            self._categories.clear()
        return self._categories.setdefault(category_id, category_key(category_id))

    def _decode_carefully(
        self,
        groups: dict[str, Append],
        rejects: list[Reject],
        offset: int,
        key: bytes | None,
        value: bytes | None,
        latest: int,
    ) -> None:
        try:
            behavior = self._read(key, value, latest)
        except _Rejected as rejected:
            rejects.append(Reject(offset, key, value, rejected.reason, rejected.detail))
            return
        append = groups.get(behavior.user)
        if append is None:
            append = groups[behavior.user] = Append(behavior.user, [], [], [])
        append.behaviors.append(behavior.packed)
        append.event_keys.append(behavior.event_key)
        append.offsets.append(offset)

    def _read(self, key: bytes | None, value: bytes | None, latest: int) -> _Behavior:
        """The event, read field by field; raises `_Rejected` at the first thing wrong."""
        event = self._read_object(value)
        user = self._text(event, "user_id")
        if key is None and not self._keyless:
            raise _Rejected(Reason.KEY_MISMATCH, f"no key; it must be the user id {_show(user)}")
        if key is not None and key != user.encode():
            raise _Rejected(
                Reason.KEY_MISMATCH,
                f"key {_show(key)} is not {self._shown['user_id']} {_show(user)}",
            )
        item = self._text(event, "item_id")
        action = self._text(event, "action")
        code = self._codes.get(action)
        if code is None:
            raise _Rejected(
                Reason.UNKNOWN_ACTION, f"{self._shown['action']} {_show(action)} is not known"
            )
        time = self._time(event, latest)
        event_id = self._optional_text(event, "event_id")
        category = self._optional_text(event, "category_id")
        dwell = self._dwell(event)
        packed = pack_behavior(item_key(item), time, category_key(category), dwell, code)
        return _Behavior(user, packed, (event_key(event_id) or 1) if event_id else 0)

    def _read_object(self, value: bytes | None) -> dict[str, Any]:
        if not value:
            raise _Rejected(Reason.EMPTY, "no payload")
        if len(value) > self._max_event_bytes:
            raise _Rejected(
                Reason.TOO_LARGE,
                f"{len(value)} bytes exceed max_event_bytes = {self._max_event_bytes}",
            )
        try:
            event = self._decode_any(value)
        except msgspec.ValidationError as error:
            raise _Rejected(Reason.TOO_LONG, one_line(error)) from None
        except RecursionError:
            raise _Rejected(Reason.NOT_JSON, "nested too deeply") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _Rejected(Reason.NOT_JSON, one_line(error)) from None
        if not isinstance(event, dict):
            raise _Rejected(Reason.WRONG_SHAPE, f"not an object but {_kind(event)}")
        return event

    def _get(self, event: dict[str, Any], name: str) -> Any:
        """The field's value, its constant where the event carries none, or None if optional."""
        value: Any = event
        reason = Reason.NULL_FIELD
        for part in self._paths[name]:
            if value is None:
                break
            if not isinstance(value, dict):
                raise _Rejected(
                    Reason.WRONG_TYPE,
                    f"{self._shown[name]}: what should hold {part!r} is {_kind(value)}",
                )
            if part not in value:
                value, reason = None, Reason.MISSING_FIELD
                break
            value = value[part]
        if value is None:
            value = self._constants[name]
        if value is None and name in REQUIRED:
            wrong = "is missing" if reason is Reason.MISSING_FIELD else "is null"
            raise _Rejected(reason, f"{self._shown[name]} {wrong}")
        return value

    def _optional_text(self, event: dict[str, Any], name: str) -> str | None:
        value = self._get(event, name)
        return None if value is None or value == "" else self._as_text(name, value)

    def _text(self, event: dict[str, Any], name: str) -> str:
        return self._as_text(name, self._get(event, name))

    def _as_text(self, name: str, value: Any) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 0:
                raise _Rejected(Reason.NEGATIVE, f"{self._shown[name]} {_show(value)} is negative")
            value = str(value)
        elif not isinstance(value, str):
            raise _Rejected(
                Reason.WRONG_TYPE,
                f"{self._shown[name]} is {_kind(value)}, not text or a whole number",
            )
        if not value:
            raise _Rejected(Reason.EMPTY, f"{self._shown[name]} is empty")
        length = len(value.encode())
        if length > self._max_id_bytes:
            raise _Rejected(
                Reason.TOO_LONG,
                f"{self._shown[name]} {_show(value)} has {length} bytes,"
                f" more than max_id_bytes = {self._max_id_bytes}",
            )
        text: str = value
        return text

    def _time(self, event: dict[str, Any], latest: int) -> int:
        value = self._get(event, "event_time")
        shown = self._shown["event_time"]
        if self._unit == "iso":
            if not isinstance(value, str):
                raise _Rejected(Reason.WRONG_TYPE, f"{shown} is {_kind(value)}, not ISO 8601 text")
        else:
            self._check_number("event_time", value)
        try:
            time = int(value) if self._to_ms is None else self._to_ms(value)
        except (ValueError, OverflowError):
            raise _Rejected(Reason.BAD_TIME, f"{shown} {_show(value)} is not a time") from None
        if time < self._earliest:
            raise _Rejected(
                Reason.TOO_OLD, f"{shown} {_show(value)} is before {self._earliest_shown}"
            )
        if time > latest:
            raise _Rejected(Reason.IN_FUTURE, f"{shown} {_show(value)} is too far in the future")
        return time

    def _dwell(self, event: dict[str, Any]) -> int:
        value = self._get(event, "dwell_ms")
        if value is None:
            return 0
        self._check_number("dwell_ms", value)
        if value > MAX_DWELL_MS:
            raise _Rejected(
                Reason.TOO_LONG,
                f"{self._shown['dwell_ms']} {_show(value)} is more than {MAX_DWELL_MS} ms",
            )
        return int(value)

    def _check_number(self, name: str, value: Any) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _Rejected(
                Reason.WRONG_TYPE, f"{self._shown[name]} is {_kind(value)}, not a number"
            )
        if value < 0:
            raise _Rejected(Reason.NEGATIVE, f"{self._shown[name]} {_show(value)} is negative")


def _seconds_to_ms(value: float) -> int:
    return int(value * 1000)


def _microseconds_to_ms(value: float) -> int:
    return int(value // 1000)


def _iso_to_ms(value: str) -> int:
    """ISO 8601 to ms since epoch; a text without an offset is taken as UTC."""
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


_TO_MS: Final[dict[str, Callable[[Any], int] | None]] = {
    "ms": None,
    "s": _seconds_to_ms,
    "us": _microseconds_to_ms,
    "iso": _iso_to_ms,
}


def _kind(value: object) -> str:
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
        case _:
            return "an object"


def _show(value: object) -> str:
    """The value on one line, cut to what a header can bear."""
    if isinstance(value, str | bytes):
        return repr(value[:SHOWN_CHARS]) + ("..." if len(value) > SHOWN_CHARS else "")
    # An integer of more digits than Python converts raises; msgspec bounds them well below that.
    text = repr(value)
    return text[:SHOWN_CHARS] + ("..." if len(text) > SHOWN_CHARS else "")
