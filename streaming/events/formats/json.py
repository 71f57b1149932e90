"""JSON: a record holds one event, an array of them, or one a line."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from infra.schema_registry import SchemaRegistry
from infra.settings import EventSettings
from streaming.events.formats import splitting
from streaming.events.formats.format import Format, Headers, Preset, RawEvent
from streaming.events.payloads import decode_dict, texts_of
from streaming.events.rejects import Rejected

PRESET: Final = Preset()


class JsonFormat:
    """Reads JSON; also for formats whose records are JSON that is to be looked at further."""

    def __init__(self, settings: EventSettings) -> None:
        self._split = settings.split

    def read(
        self, _key: bytes | None, value: bytes | None, _headers: Headers
    ) -> Sequence[RawEvent | Rejected]:
        """See `Format`."""
        return [read_object(text) for text in texts_of(value)]

    def keep(self, value: bytes, places: Collection[int]) -> bytes | None:
        """See `Format`."""
        kept: list[bytes] = []
        at = 0
        texts = texts_of(value)
        for text in texts:
            event = read_object(text)
            elements = None
            if self._split and not isinstance(event, Rejected):
                elements = splitting.split(event, self._split)
            count = 1 if elements is None else len(elements)
            here = [place - at for place in places if at <= place < at + count]
            at += count
            if here:
                kept.append(text if elements is None else splitting.keep(text, self._split, here))
        return kept[0] if len(texts) == 1 else b"[" + b",".join(kept) + b"]"


def open_format(settings: EventSettings, _registry: SchemaRegistry) -> Format:
    """See `streaming.events.formats.open_format`."""
    return JsonFormat(settings)


def read_object(text: bytes) -> RawEvent | Rejected:
    """The event that a text tells, or why it tells none."""
    try:
        return decode_dict(text)
    except Rejected as rejected:
        return rejected
