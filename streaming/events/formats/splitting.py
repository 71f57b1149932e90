"""Events with an array of which each element is an event of its own: an order of several items.

The array's place is taken by one of its elements, so a path steps through it as if it were one.
An element that is null is none, and keeps its place: a dead letter of some elements has the others
as null, and each is the same event as before.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import msgspec

from streaming.events.formats.format import RawEvent
from streaming.events.paths import steps_of

_Raws: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_Elements: Final = msgspec.json.Decoder(list[msgspec.Raw])


def split(event: RawEvent, path: str) -> list[RawEvent | None] | None:
    """The event once for each element of the array at a path; None in the place of a null. None
    alone: there is no array, so it is one event.
    """
    names = steps_of(path)
    found: Any = event
    for name in names:
        if not isinstance(found, dict):
            return None
        found = found.get(name)
    if not isinstance(found, list):
        return None
    return [None if one is None else _with(event, names, one) for one in found]


def keep(event: bytes, path: str, places: Collection[int]) -> bytes:
    """An event in JSON whose array at a path has null for all elements but some."""
    return _keep(event, steps_of(path), places)


def _with(event: Any, names: list[Any], element: object) -> RawEvent:
    name, *rest = names
    return {**event, name: _with(event[name], rest, element) if rest else element}


def _keep(event: bytes, names: list[Any], places: Collection[int]) -> bytes:
    if not names:
        elements = _Elements.decode(event)
        null = msgspec.Raw(b"null")
        return msgspec.json.encode(
            [one if place in places else null for place, one in enumerate(elements)]
        )
    raws = _Raws.decode(event)
    raws[names[0]] = msgspec.Raw(_keep(bytes(raws[names[0]]), names[1:], places))
    return msgspec.json.encode(raws)
