"""From a topic's JSON records to behaviors of users.

Every event is judged alone: what cannot be read becomes a `Reject` with its reason, and its
neighbors in the batch never notice. Two paths give the same answer. The fast one decodes straight
into a typed struct and only knows how to say yes; whatever it is not sure of goes to the careful
one, `streaming.events.conversion`, which reads the event field by field and can say precisely what
is wrong with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from infra.behaviors import category_key, event_key, item_key, pack_behavior
from infra.settings import EventSettings
from infra.store import Append
from streaming.events.conversion import Conversion, Event
from streaming.events.fields import too_large
from streaming.events.rejects import Reason, Reject, Rejected, show
from streaming.events.values import MAX_DWELL_MS

Record = tuple[int, bytes | None, bytes | None]
"""One Kafka record as the decoder takes it: offset, key, value."""

# Category ids repeat: a dictionary is faster than hashing. It starts anew when it has grown to
# this many entries, so that ids without end cannot fill the memory.
CATEGORIES_CACHED: Final = 65_536


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


class EventDecoder:
    """Decodes and validates JSON events, and groups them by user.

    What is accepted is said by `streaming.events.fields`, `values` and `times`. Of a record beside
    its event: the key must be the user id in UTF-8. Kafka keeps the order of a user's events only
    within a partition, and the key chooses the partition.

    Args:
        settings: names, units and limits.
        keyless: accept records without a key too.

    Raises:
        SettingsError: a constant is none that an event could carry.

    >>> decoder = EventDecoder(EventSettings())
    >>> event = b'{"user_id": "u", "item_id": "i", "action": "click", "event_time": 1700000000000}'
    >>> decoded = decoder.decode_batch([(7, b"u", event), (8, b"u", b"{")], 1_700_000_000_000)
    >>> decoded.appends[0].offsets, decoded.rejects[0].reason.value
    ([7], 'not_json')
    """

    def __init__(self, settings: EventSettings, *, keyless: bool = False) -> None:
        self._conversion = Conversion(settings)
        self._max_event_bytes = settings.max_event_bytes
        self._keyless = keyless
        constants = self._conversion.constant_ids
        self._constant_event_key = event_key(constants.get("event_id"))
        self._constant_category = constants.get("category_id")
        self._categories: dict[str | None, int] = {}
        self._decode_typed = self._typed_decoder()

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
        conversion = self._conversion
        latest = conversion.times.latest(now_ms)
        decode = self._decode_typed
        if decode is None or self._keyless:
            for offset, key, value in records:
                self._decode_carefully(groups, rejects, offset, key, value, latest)
            return Decoded(list(groups.values()), rejects)

        # The loop below runs once an event: everything is local, and every test is on the values
        # that the typed decoder has already proved to be of their type.
        get_append, get_code, categories = (
            groups.get,
            conversion.actions.codes.get,
            self._categories,
        )
        earliest, limit = conversion.times.earliest, self._max_event_bytes
        to_ms = None if conversion.times.unit == "ms" else conversion.times.to_ms
        without_id = self._constant_event_key
        short = conversion.max_id_bytes // 4  # so many characters never exceed the limit in UTF-8
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
                    and "\0" not in item
                    and 0 <= dwell <= MAX_DWELL_MS
                ):
                    event_id = event.event_id
                    if not event_id:
                        unique = without_id
                    elif len(event_id) <= short and "\0" not in event_id:
                        unique = event_key(event_id)
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
                        if not 0 < len(user) <= short or "\0" in user:
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

    def _typed_decoder(self) -> Callable[[Any], Any] | None:
        """Decoder into a struct that has exactly the normal event's types.

        None where the mapping steps into objects, reads one field for two purposes, or has a
        constant time: the careful path reads those.
        """
        conversion = self._conversion
        names, constants = conversion.fields.names, conversion.fields.constants
        if any("." in theirs for theirs in names.values()) or "event_time" in constants:
            return None
        if len(set(names.values())) < len(names):
            return None
        types: dict[str, Any] = dict.fromkeys(names, str)
        types["event_time"] = conversion.times.typed
        types["dwell_ms"] = int
        defaults: dict[str, Any] = {"event_id": "", "category_id": ""}
        defaults |= {"dwell_ms": conversion.constant_dwell, **conversion.constant_ids}
        # Null stands for "absent" in optional fields; those events take the careful path.
        fields: list[Any] = [
            (name, types[name], defaults[name]) if name in defaults else (name, types[name])
            for name in names
        ]
        struct = msgspec.defstruct("Event", fields, rename=names, kw_only=True, gc=False)
        return msgspec.json.Decoder(struct).decode

    def _new_category(self, category_id: str, short: int) -> int:
        if len(category_id) > short or "\0" in category_id:
            raise ValueError
        if len(self._categories) >= CATEGORIES_CACHED:
            self._categories.clear()
        return self._categories.setdefault(
            category_id, category_key(category_id or self._constant_category)
        )

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
            event = self._read(key, value, latest)
        except Rejected as rejected:
            rejects.append(Reject(offset, key, value, rejected.reason, rejected.detail))
            return
        append = groups.get(event.user)
        if append is None:
            append = groups[event.user] = Append(event.user, [], [], [])
        append.behaviors.append(event.pack())
        append.event_keys.append(event_key(event.event_id))
        append.offsets.append(offset)

    def _read(self, key: bytes | None, value: bytes | None, latest: int) -> Event:
        """The event of a record; raises `Rejected` at the first thing wrong."""
        if not value:
            raise Rejected(Reason.EMPTY, "no payload")
        if len(value) > self._max_event_bytes:
            raise too_large(len(value), self._max_event_bytes)
        row = self._conversion.fields.decode(value)
        find = functools.partial(self._conversion.fields.find, row)
        event = self._conversion.convert(find, latest)
        if key is None and not self._keyless:
            raise Rejected(
                Reason.KEY_MISMATCH, f"no key; it must be the user id {show(event.user)}"
            )
        if key is not None and key != event.user.encode():
            raise Rejected(
                Reason.KEY_MISMATCH,
                f"key {show(key)} is not {self._conversion.fields.shown['user_id']}"
                f" {show(event.user)}",
            )
        return event
