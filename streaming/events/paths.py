"""Paths into an event: names joined by dots, places in arrays, and JMESPath for what is more.

Names and places (``payload.items[0].sku``) are stepped here, since nearly all paths are such, and
the library takes ten times as long for them. They mean the same in both, but that a step into what
is no object is an error here: an event of another shape than the settings say should not pass for
one without the field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from infra.errors import one_line
from infra.settings import is_stepped
from streaming.events.rejects import Reason, Rejected, kind

ABSENT: Final = msgspec.UNSET
"""What a finder gives for a field that the event does not have at all."""

_STEP: Final = re.compile(r"([^.\[\]]+)|\[(-?\d+)\]")

Finder = Callable[[Any], object]
"""Gives what is at a path of an event: `ABSENT`, None for null, or the value."""


def top_of(path: str) -> str | None:
    """The name with which a path begins; None: it is more than steps, and may begin anywhere."""
    return steps_of(path)[0] if is_stepped(path) else None  # type: ignore[return-value]


def steps_of(path: str) -> list[str | int]:
    """The names and places of a path that `is_stepped`.

    >>> steps_of("payload.items[0].sku")
    ['payload', 'items', 0, 'sku']
    """
    return [name or int(place) for name, place in _STEP.findall(path)]


def finder(path: str, shown: str, top: Finder | None = None) -> Finder:
    """What finds the value at a path.

    Args:
        path: as the settings have it.
        shown: the field's name for people.
        top: gives the value of the path's first name; None: events are mappings.

    What is found raises `Rejected` where a step leads into what is no object, or no array, and
    where JMESPath fails.
    """
    if not is_stepped(path):
        return _expression(path, shown)
    first, *steps = steps_of(path)
    if top is None:
        name = str(first)

        def top(event: Any) -> object:
            return event.get(name, ABSENT)

    return _stepper(top, steps, shown) if steps else top


def first_of(finders: Sequence[Finder]) -> Finder:
    """What gives the first that is there of what some find; null and an empty text are not."""
    if len(finders) == 1:
        return finders[0]

    def find(event: Any) -> object:
        value: object = ABSENT
        for each in finders:
            value = each(event)
            if value is not None and value is not ABSENT and value != "":
                break
        return value

    return find


def _stepper(top: Finder, steps: Sequence[str | int], shown: str) -> Finder:
    def find(event: Any) -> object:
        value = top(event)
        for step in steps:
            if value is None or value is ABSENT:
                return value
            if isinstance(step, str):
                if not isinstance(value, dict):
                    raise _astray(shown, repr(step), value)
                value = value.get(step, ABSENT)
            else:
                if not isinstance(value, list):
                    raise _astray(shown, f"[{step}]", value)
                value = value[step] if -len(value) <= step < len(value) else ABSENT
        return value

    return find


def _astray(shown: str, step: str, value: object) -> Rejected:
    return Rejected(Reason.WRONG_TYPE, f"{shown}: what should hold {step} is {kind(value)}")


def _expression(path: str, shown: str) -> Finder:
    import jmespath
    from jmespath.exceptions import JMESPathError

    search = jmespath.compile(path).search

    def find(event: object) -> object:
        try:
            value = search(event)
        except (JMESPathError, ArithmeticError, LookupError, RecursionError) as error:
            raise Rejected(Reason.WRONG_TYPE, f"{shown}: {one_line(error)}") from None
        except (TypeError, ValueError, AttributeError) as error:  # its functions, of odd arguments
            raise Rejected(Reason.WRONG_TYPE, f"{shown}: {one_line(error)}") from None
        # JMESPath does not tell what is absent from what is null.
        return ABSENT if value is None else value

    return find
