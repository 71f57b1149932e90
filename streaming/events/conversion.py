"""From the raw values of an event to what is stored: the one way, for topics and files alike.

The rules themselves: `streaming.events.fields` (what is there), `streaming.events.values` (ids,
numbers, actions) and `streaming.events.times`. This module applies them in the order in which the
first thing wrong is told. Whoever reads events faster than one by one (the typed decoder of a
topic's records, the columns of a file) may only say yes to what `Conversion` would accept, with the
same result, and hands everything else to it.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from infra.behaviors import category_key, item_key, pack_behavior
from infra.errors import SettingsError
from infra.settings import EventSettings
from streaming.events.fields import Fields, Find
from streaming.events.rejects import Rejected
from streaming.events.times import Times
from streaming.events.values import Actions, read_dwell, read_id


class Event(NamedTuple):
    """An event that every rule accepted."""

    user: str
    item: str
    action: int
    """Code of a declared action (`infra.behaviors.ActionNames`)."""
    time: int
    """ms since epoch, UTC."""
    event_id: str | None
    category: str | None
    dwell: int
    """ms; 0: none."""

    def pack(self) -> bytes:
        """The stored behavior, in `infra.behaviors.BEHAVIOR`'s layout."""
        return pack_behavior(
            item_key(self.item), self.time, category_key(self.category), self.dwell, self.action
        )


class Conversion:
    """The rules under a set of settings.

    Args:
        settings: names, units and limits.
        mappings: events are mappings, see `Fields`.

    Raises:
        SettingsError: a constant is none that an event could carry.

    >>> conversion = Conversion(EventSettings())
    >>> row = {"user_id": 7, "item_id": "i", "action": "click", "event_time": "1700000000000"}
    >>> conversion.convert(row.get, latest=1_800_000_000_000)[:4]
    ('7', 'i', 2, 1700000000000)
    """

    def __init__(self, settings: EventSettings, *, mappings: bool = False) -> None:
        self.fields: Final = Fields(settings, mappings=mappings)
        self.times: Final = Times(settings)
        self.max_id_bytes: Final = settings.max_id_bytes
        self.actions: Final = Actions(
            settings.declared_actions,
            settings.actions,
            settings.max_id_bytes,
            settings.section,
        )
        self.constant_ids: Final[dict[str, str]] = {}
        """The constants of ids, and of the source, as texts."""
        try:
            for name, value in self.fields.constants.items():
                if name == "event_time":
                    self.times.read(value, name, math.inf)
                elif name != "dwell_ms":
                    self.constant_ids[name] = read_id(value, name, self.max_id_bytes)
            self.constant_dwell: Final = read_dwell(
                self.fields.constants.get("dwell_ms", 0), "dwell_ms"
            )
        except Rejected as rejected:
            raise SettingsError(
                f"{settings.section}.constants: {rejected.detail}; give a value that an event could"
                " carry"
            ) from None

    def convert(self, find: Find, latest: int) -> Event:
        """An event from its raw values.

        Args:
            find: gives the raw value of a field.
            latest: the last time that is taken, `Times.latest`.

        Raises:
            Rejected: at the first thing wrong.
        """
        fields = self.fields
        user = self._id(fields.required(find, "user_id"), "user_id")
        item = self._id(fields.required(find, "item_id"), "item_id")
        action = self._id(fields.required(find, "action"), "action")
        code = self.actions.read(action, fields.shown["action"])
        time = self.times.read(
            fields.required(find, "event_time"), fields.shown["event_time"], latest
        )
        event_id = fields.optional(find, "event_id")
        event_id = None if event_id is None else self._id(event_id, "event_id")
        category = fields.optional(find, "category_id")
        category = None if category is None else self._id(category, "category_id")
        dwell = fields.optional(find, "dwell_ms")
        dwell = 0 if dwell is None else read_dwell(dwell, fields.shown["dwell_ms"])
        return Event(user, item, code, time, event_id, category, dwell)

    def _id(self, value: object, name: str) -> str:
        return read_id(value, self.fields.shown[name], self.max_id_bytes)
