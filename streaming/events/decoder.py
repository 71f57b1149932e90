"""From a topic's records to behaviors of users.

Every event is judged alone: what cannot be read becomes a `Reject` with its reason, and its
neighbors in the batch, and in its record, never notice. Two paths give the same answer. The fast
one, the kernel of `streaming.events.parsing`, reads a batch of flat JSON at once and only knows how
to say yes; whatever it is not sure of goes to the careful one: the source's format makes raw events
of the record, the rules say which are behaviors, and `streaming.events.conversion` reads each field
by field and can say precisely what is wrong with it.

A record may hold several events. They have its offset, all of them, and those of a user are
appended at once (`infra.store.Append`). The ones that are refused go to the dead letters as a
record that holds them alone, one for each reason.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.arrays import I32, I64, U64
from infra.behaviors import BEHAVIOR, event_key
from infra.schema_registry import SchemaRegistry
from infra.settings import EventSettings, RegistrySettings, is_stepped
from infra.store import Append, Appends, Behaviors
from streaming.events.conversion import Conversion, Event
from streaming.events.fields import too_large
from streaming.events.formats import open_format, with_preset
from streaming.events.formats.format import MOST_EVENTS, Headers, KernelFormat
from streaming.events.formats.splitting import split
from streaming.events.paths import steps_of
from streaming.events.payloads import texts_of
from streaming.events.rejects import Ignored, Reason, Reject, Rejected, show
from streaming.events.rules import Rules

if TYPE_CHECKING:
    from streaming.events.parsing import Names, Rows

Record = tuple[int, bytes | None, bytes | None]
"""One Kafka record as the decoder takes it: offset, key, value."""

Outcome = Event | Rejected | Ignored
"""What became of one event."""


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
    """i64[n], ascending; those of one record are the same."""
    rejects: list[Reject]
    ignored: Counter[str] = field(default_factory=Counter)
    """Events that are no behaviors, by what decides it (`Ignored.reason`)."""

    @property
    def events(self) -> int:
        """Events that were accepted."""
        return len(self.offsets)

    @property
    def appends(self) -> list[Append]:
        """One a user."""
        return list(appends_of([self]))


def appends_of(batches: Sequence[Decoded]) -> Appends:
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
    return Appends(
        list(places),
        np.concatenate([batch.behaviors for batch in batches])[order].view(np.uint8),
        np.concatenate([batch.event_keys for batch in batches])[order],
        np.concatenate([batch.offsets for batch in batches])[order],
        np.cumsum(np.bincount(user_of, minlength=len(places))),
    )


class EventDecoder:
    """Decodes and validates the events of a source.

    What is accepted is said by its format, and by `streaming.events.fields`, `values` and `times`.
    Of a record beside its events: the key must be the user id in UTF-8, unless the settings say
    else. Kafka keeps the order of a user's events only within a partition, and the key chooses the
    partition.

    Args:
        settings: format, names, units and limits.
        registry: is asked for schemas, by formats that have such; None: there is none.
        keyless: accept records without a key too.

    Raises:
        SettingsError: a constant is none that an event could carry, or what the format needs is not
            installed.

    >>> decoder = EventDecoder(EventSettings())
    >>> event = b'{"user_id": "u", "item_id": "i", "action": "click", "event_time": 1700000000000}'
    >>> decoded = decoder.decode_batch([(7, b"u", event), (8, b"u", b"{")], 1_700_000_000_000)
    >>> decoded.appends[0].offsets, decoded.rejects[0].reason.value
    ([7], 'not_json')
    """

    def __init__(
        self,
        settings: EventSettings,
        registry: SchemaRegistry | None = None,
        *,
        keyless: bool = False,
    ) -> None:
        # With numba, which is slow to import: a worker's health answers meanwhile.
        from streaming.events import parsing

        self._parsing = parsing
        settings = with_preset(settings)
        self.rules = Rules(settings)
        self._ruled = bool(self.rules)
        self._split = settings.split
        # Read by the kernel, or at least with no more of an event than is needed.
        self._in_json = settings.format == "json"
        self._flat = self._in_json and not self._split and not self.rules
        self.reads_headers = not self._flat
        """Whether `decode` is to be given headers."""
        self._format = open_format(settings, registry or SchemaRegistry(RegistrySettings()))
        self._conversion = Conversion(settings, mappings=not self._flat)
        self._max_event_bytes = settings.max_event_bytes
        self._keyless = keyless
        self._any_key = settings.key == "any"
        self._numbered = bool(self._split) and not self._within_elements("event_id")
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
        headers: Sequence[Headers] | None = None,
    ) -> Decoded:
        """Decode the records of one partition.

        Args:
            offsets, keys, values: of n records, the offsets ascending.
            now_ms: the time against which "in the future" is judged.
            headers: of the records; None: they have none.

        Raises:
            LifelongError: a format cannot read them now; see `Format`.
        """
        latest = self._conversion.times.latest(now_ms)
        rows = self._parsed(keys, values, headers, latest)
        decoded = Decoded(
            rows.users,
            rows.user_of,
            rows.behaviors,
            rows.event_keys,
            np.array(offsets, np.int64)[rows.record_of],
            [],
        )
        left = np.flatnonzero(rows.user_of < 0)
        if not len(left):
            return decoded
        read: dict[int, list[Event]] = {}
        for row, record in zip(left.tolist(), rows.record_of[left].tolist(), strict=True):
            key, value = keys[record], values[record]
            of = () if headers is None else headers[record]
            outcomes = self.outcomes(key, value, of, now_ms)
            if len(outcomes) == 1 and isinstance(outcomes[0], Event):
                read[row] = [outcomes[0]]
                continue
            rejects = self._rejects(offsets[record], key, value, outcomes)
            # Where they cannot be told apart the record is refused as a whole.
            whole = len(outcomes) > 1 and any(one.value is value for one in rejects)
            read[row] = [] if whole else [one for one in outcomes if isinstance(one, Event)]
            decoded.rejects += rejects
            decoded.ignored.update(one.reason for one in outcomes if isinstance(one, Ignored))
        return _with_read(decoded, read)

    def _parsed(
        self,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Sequence[Headers] | None,
        latest: int,
    ) -> Rows:
        """What the kernel makes of the records."""
        if self._names is None:
            return self._parsing.Rows.empty(len(values))
        checked = [None] * len(keys) if self._any_key else keys
        how = self._parsing.How(
            self._names, self._rules, latest, keyless=self._keyless or self._any_key
        )
        if isinstance(self._format, KernelFormat):
            return self._format.parse(values, checked, headers, how)
        return self._parsing.parse(values, checked, how)

    def outcomes(
        self, key: bytes | None, value: bytes | None, headers: Headers, now_ms: int
    ) -> list[Outcome]:
        """What becomes of each event of a record, in their order, by the careful path."""
        latest = self._conversion.times.latest(now_ms)
        try:
            raws = self._read(key, value, headers)
            if len(raws) > MOST_EVENTS:
                raise Rejected(
                    Reason.TOO_LARGE, f"{len(raws)} events exceed {MOST_EVENTS} in a record"
                )
            return [self._judged(raw, number, key, latest) for raw, number in raws]
        except (Rejected, Ignored) as one:
            return [one]
        except RecursionError:
            return [Rejected(Reason.BAD_FORMAT, "nested too deeply")]

    def users_of(
        self, key: bytes | None, value: bytes | None, headers: Headers
    ) -> list[str | None]:
        """Whose the events of a record are, in their order; None of one that does not tell. Nothing
        else of them is judged.

        Raises:
            LifelongError: a format cannot read them now; see `Format`.
        """
        try:
            raws = self._read(key, value, headers)
        except (Rejected, Ignored, RecursionError):
            return [None]
        return [self._user_of(raw) for raw, _ in raws]

    def _user_of(self, raw: Any) -> str | None:
        if raw is None or isinstance(raw, Rejected):
            return None
        try:
            told = self._conversion.fields.find(raw, "user_id")
        except Rejected:
            return None
        return str(told) if isinstance(told, str | int) else None

    def of_users(
        self, key: bytes | None, value: bytes | None, headers: Headers, users: Collection[str]
    ) -> bytes | None:
        """The value of a record that holds the events of some users alone, if it can be cut."""
        outcomes = self.outcomes(key, value, headers, sys.maxsize)
        places = [
            place
            for place, one in enumerate(outcomes)
            if isinstance(one, Event) and one.user in users
        ]
        if not value or not 0 < len(places) < len(outcomes):
            return value
        kept = self._format.keep(value, places)
        return value if kept is None else kept

    def _read(
        self, key: bytes | None, value: bytes | None, headers: Headers
    ) -> list[tuple[Any, int | None]]:
        """The raw events of a record, or why one cannot be read; each with its number among those
        that were one.
        """
        if value is not None and len(value) > self._max_event_bytes:
            raise too_large(len(value), self._max_event_bytes)
        if self._flat:
            return [(self._decoded(text), None) for text in texts_of(value)]
        events: list[tuple[Any, int | None]] = []
        for raw in self._format.read(key, value, headers):
            elements = None
            if self._split and not isinstance(raw, Rejected):
                elements = split(raw, self._split)
            if elements is None:
                events.append((raw, None))
            else:
                events += [(element, number) for number, element in enumerate(elements)]
        return events

    def _decoded(self, text: bytes) -> Any:
        try:
            return self._conversion.fields.decode(text)
        except Rejected as rejected:
            return rejected

    def _judged(self, raw: Any, number: int | None, key: bytes | None, latest: int) -> Outcome:
        """What becomes of a raw event."""
        if isinstance(raw, Rejected):
            return raw
        if raw is None:
            return Ignored(f"{self._split}: null")
        try:
            if self._ruled:
                self.rules.check(raw)
            find = functools.partial(self._conversion.fields.find, raw)
            event = self._conversion.convert(find, latest)
            self._check_key(key, event)
        except (Rejected, Ignored) as one:
            return one
        if number is not None and self._numbered and event.event_id is not None:
            # It is that of all events that were one: each must be known again.
            event = event._replace(event_id=f"{event.event_id}/{number}")
        return event

    def _check_key(self, key: bytes | None, event: Event) -> None:
        if self._any_key or (key is None and self._keyless):
            return
        if key is None:
            raise Rejected(
                Reason.KEY_MISMATCH, f"no key; it must be the user id {show(event.user)}"
            )
        if key != event.user.encode():
            raise Rejected(
                Reason.KEY_MISMATCH,
                f"key {show(key)} is not {self._conversion.fields.shown['user_id']}"
                f' {show(event.user)}; where keys are of something else, set key = "any"',
            )

    def _rejects(
        self, offset: int, key: bytes | None, value: bytes | None, outcomes: Sequence[Outcome]
    ) -> list[Reject]:
        """What is refused of a record: for each reason a record with those events alone, or it as a
        whole.
        """
        places: dict[Reason, list[int]] = {}
        for place, one in enumerate(outcomes):
            if isinstance(one, Rejected):
                places.setdefault(one.reason, []).append(place)
        rejects = []
        for reason, of in places.items():
            first = outcomes[of[0]]
            assert isinstance(first, Rejected)
            detail, kept = first.detail, value
            if len(outcomes) > 1:
                detail = f"event {of[0] + 1} of {len(outcomes)}: {detail}"
                if len(of) < len(outcomes):
                    kept = self._format.keep(value or b"", of)
                if kept is None:
                    detail += "; the others are refused with it, since the record cannot be cut"
                    held = sum(not isinstance(one, Ignored) for one in outcomes)
                    return [Reject(offset, key, value, reason, detail, held)]
            rejects.append(Reject(offset, key, kept, reason, detail, len(of)))
        return rejects

    def _within_elements(self, name: str) -> bool:
        """Whether a field is found in the elements of what is split alone."""
        within = steps_of(self._split)
        paths = self._conversion.fields.names[name]
        return all(steps_of(path)[: len(within)] == within for path in paths)

    def _plain_names(self) -> Names | None:
        """What events call fields, for the kernel.

        None where it cannot read them: where rules say which are behaviors, where the mapping has a
        choice, steps into what its format does not say that it can, reads one field for two
        purposes, or has a constant time. Those are read one by one.
        """
        conversion = self._conversion
        names, constants = conversion.fields.names, conversion.fields.constants
        plain = {ours: theirs[0] for ours, theirs in names.items() if len(theirs) == 1}
        if self.rules or len(plain) < len(names) or "event_time" in constants:
            return None
        if len(set(plain.values())) < len(names) or not all(map(is_stepped, plain.values())):
            return None
        parts = {ours: steps_of(theirs) for ours, theirs in plain.items()}
        if any(isinstance(step, int) for path in parts.values() for step in path):
            return None
        steps = {ours: [str(step) for step in path] for ours, path in parts.items()}
        beside: list[str] = []
        if self._split:
            # Elements and what stands beside their array, one step each.
            if "event_id" in constants or "." in self._split:
                return None
            beside = [ours for ours, path in steps.items() if path[0] != self._split]
            if any(path == [self._split] for path in steps.values()):
                return None
            steps = {ours: path if ours in beside else path[1:] for ours, path in steps.items()}
        if isinstance(self._format, KernelFormat):
            ready = self._format.prepare(steps, conversion.times.unit)
        else:
            ready = self._in_json and all(len(path) == 1 for path in steps.values())
        if not ready:
            return None
        return self._parsing.names_of(
            {ours: path[-1] for ours, path in steps.items()},
            conversion.constant_ids,
            conversion.constant_dwell,
            conversion.actions.codes,
            self._split,
            beside,
        )


def _with_read(decoded: Decoded, read: Mapping[int, Sequence[Event]]) -> Decoded:
    """What was decoded, with what was read carefully in the place of those rows."""
    counts = np.ones(len(decoded.offsets), np.int64)
    counts[list(read)] = [len(events) for events in read.values()]
    rows = np.repeat(np.arange(len(counts)), counts)
    user_of, behaviors = decoded.user_of[rows], decoded.behaviors[rows]
    event_keys = decoded.event_keys[rows]
    at = np.flatnonzero(user_of < 0)  # ascending, as the rows are that were read
    events = [event for of in read.values() for event in of]
    places = {user: place for place, user in enumerate(decoded.users)}
    user_of[at] = [places.setdefault(event.user, len(places)) for event in events]
    behaviors[at] = np.frombuffer(b"".join([event.pack() for event in events]), BEHAVIOR)
    event_keys[at] = np.array([event_key(event.event_id) for event in events], np.uint64)
    return Decoded(
        list(places),
        user_of,
        behaviors,
        event_keys,
        decoded.offsets[rows],
        decoded.rejects,
        decoded.ignored,
    )
