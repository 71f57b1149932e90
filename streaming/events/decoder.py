"""From a topic's JSON records to behaviors of users.

Every event is judged alone: what cannot be read becomes a `Reject` with its reason, and its
neighbors in the batch never notice. Two paths give the same answer. The fast one, the kernel of
`streaming.events.parsing`, reads a batch at once and only knows how to say yes; whatever it is not
sure of goes to the careful one, `streaming.events.conversion`, which reads the event field by field
and can say precisely what is wrong with it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from infra.arrays import I32, I64, U64, Bools
from infra.behaviors import BEHAVIOR, event_key
from infra.settings import EventSettings
from infra.store import Append, Behaviors
from streaming.events.conversion import Conversion, Event
from streaming.events.fields import too_large
from streaming.events.rejects import Reason, Reject, Rejected, show

if TYPE_CHECKING:
    from streaming.events.parsing import Names, Rows

Record = tuple[int, bytes | None, bytes | None]
"""One Kafka record as the decoder takes it: offset, key, value."""


@dataclass(slots=True)
class Decoded:
    """What a batch of records became: n events in the order of their offsets, and what was refused.

    The events are columns, since the batches of a group are brought together (`appends_of`) before
    there is an object for each user.
    """

    users: list[str]
    """The distinct users."""
    user_of: I32
    """i32[n]: whose each event is, by the place in ``users``."""
    behaviors: Behaviors
    """BEHAVIOR[n]."""
    event_keys: U64
    """u64[n]: see `infra.store.Append`."""
    offsets: I64
    """i64[n], ascending."""
    rejects: list[Reject]

    @property
    def events(self) -> int:
        """Events that were accepted."""
        return len(self.offsets)

    @property
    def appends(self) -> list[Append]:
        """One a user."""
        return appends_of([self])

    def without(self, rows: Bools) -> Decoded:
        """What is left without the marked of the rows."""
        kept = ~rows
        return Decoded(
            self.users,
            self.user_of[kept],
            self.behaviors[kept],
            self.event_keys[kept],
            self.offsets[kept],
            self.rejects,
        )


def appends_of(batches: Sequence[Decoded]) -> list[Append]:
    """The events of batches of one partition, which are in their order: one append a user."""
    places: dict[str, int] = {}
    whose = [
        np.array([places.setdefault(user, len(places)) for user in batch.users], np.int32)[
            batch.user_of
        ]
        for batch in batches
    ]
    user_of = np.concatenate(whose)
    order = np.argsort(user_of, kind="stable")
    ends = np.cumsum(np.bincount(user_of, minlength=len(places))).tolist()
    packed = np.concatenate([batch.behaviors for batch in batches])[order].tobytes()
    size = BEHAVIOR.itemsize
    behaviors = [packed[at : at + size] for at in range(0, len(packed), size)]
    keys = np.concatenate([batch.event_keys for batch in batches])[order].tolist()
    offsets = np.concatenate([batch.offsets for batch in batches])[order].tolist()
    return [
        Append(user, behaviors[start:end], keys[start:end], offsets[start:end])
        for user, (start, end) in zip(places, pairwise([0, *ends]), strict=True)
    ]


class EventDecoder:
    """Decodes and validates JSON events.

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
        # With numba, which is slow to import: a worker's health answers meanwhile.
        from streaming.events import parsing

        self._parsing = parsing
        self._conversion = Conversion(settings)
        self._max_event_bytes = settings.max_event_bytes
        self._keyless = keyless
        self._names = self._plain_names()
        times = self._conversion.times
        self._rules = parsing.rules_of(
            settings.max_event_bytes,
            settings.max_id_bytes,
            times.unit,
            times.earliest,
        )

    def warm(self) -> None:
        """Have the kernel compiled before the first event waits for it."""
        self.decode_batch([(0, b"", b"")], 0)

    def decode_batch(self, records: Sequence[Record], now_ms: int) -> Decoded:
        """`decode` of records that are given one by one."""
        offsets, keys, values = zip(*records, strict=True) if records else ((), (), ())
        return self.decode(offsets, keys, values, now_ms)

    def decode(
        self,
        offsets: Sequence[int],
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        now_ms: int,
    ) -> Decoded:
        """Decode the records of one partition.

        Args:
            offsets, keys, values: of n records, the offsets ascending.
            now_ms: the time against which "in the future" is judged.
        """
        latest = self._conversion.times.latest(now_ms)
        if self._names is None:
            rows = self._parsing.unread(len(values))
        else:
            rows = self._parsing.parse(
                values, keys, self._names, self._rules, latest, keyless=self._keyless
            )
        rejects = self._read_rest(rows, offsets, keys, values, latest)
        decoded = Decoded(*rows, np.array(offsets, np.int64), rejects)
        return decoded.without(rows.user_of < 0) if rejects else decoded

    def _read_rest(
        self,
        rows: Rows,
        offsets: Sequence[int],
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        latest: int,
    ) -> list[Reject]:
        """Read those records carefully of which the kernel is not sure, and put them in their rows.

        Returns:
            What is refused; their rows stay as they are.
        """
        rejects: list[Reject] = []
        left = np.flatnonzero(rows.user_of < 0).tolist()
        places = {user: place for place, user in enumerate(rows.users)} if left else {}
        for row in left:
            try:
                event = self._read(keys[row], values[row], latest)
            except Rejected as rejected:
                refused = offsets[row], keys[row], values[row]
                rejects.append(Reject(*refused, rejected.reason, rejected.detail))
                continue
            place = places.setdefault(event.user, len(places))
            if place == len(rows.users):
                rows.users.append(event.user)
            rows.user_of[row] = place
            rows.behaviors[row] = np.frombuffer(event.pack(), BEHAVIOR)[0]
            rows.event_keys[row] = event_key(event.event_id)
        return rejects

    def _plain_names(self) -> Names | None:
        """What events call fields, for the kernel.

        None where the mapping steps into objects, reads one field for two purposes, or has a
        constant time: those events are read one by one.
        """
        conversion = self._conversion
        names, constants = conversion.fields.names, conversion.fields.constants
        if any("." in theirs for theirs in names.values()) or "event_time" in constants:
            return None
        if len(set(names.values())) < len(names):
            return None
        return self._parsing.names_of(
            names, conversion.constant_ids, conversion.constant_dwell, conversion.actions.codes
        )

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
