"""Which events are behaviors: those that the settings' ``only`` and ``ignore`` leave.

A value is compared as text, so 7 and "7" are the same, and true is "true".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from infra.settings import EventSettings
from streaming.events.formats.format import RawEvent
from streaming.events.paths import ABSENT, Finder, finder
from streaming.events.rejects import Ignored, Rejected

_Rule = tuple[str, Finder, frozenset[str]]


class Rules:
    """The rules of a source.

    >>> Rules(EventSettings(only={"type": "track"})).check({"type": "identify"})
    Traceback (most recent call last):
    streaming.events.rejects.Ignored: type
    """

    def __init__(self, settings: EventSettings) -> None:
        self._only: Final = _rules(settings.only)
        self._ignore: Final = _rules(settings.ignore)

    def __bool__(self) -> bool:
        return bool(self._only or self._ignore)

    @property
    def reasons(self) -> list[str]:
        """What may decide that an event is ignored: the paths."""
        return list(dict.fromkeys(path for path, _, _ in (*self._only, *self._ignore)))

    def check(self, event: RawEvent) -> None:
        """Look whether an event is a behavior.

        Raises:
            Ignored: it is none.
        """
        for path, find, values in self._only:
            if _text(find, event) not in values:
                raise Ignored(path)
        for path, find, values in self._ignore:
            if _text(find, event) in values:
                raise Ignored(path)


def _rules(settings: Mapping[str, tuple[object, ...]]) -> list[_Rule]:
    return [
        (path, finder(path, path), frozenset(map(_as_text, values)))
        for path, values in settings.items()
        if values
    ]


def _text(find: Finder, event: RawEvent) -> str | None:
    """What is at a path, as text; None: nothing that a rule could name."""
    try:
        value = find(event)
    except Rejected:  # an event of another shape, which has nothing there
        return None
    return None if value is None or value is ABSENT else _as_text(value)


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
