"""What the tests of formats share: one record through the decoder of a source."""

from __future__ import annotations

import json
from typing import Any

from infra.settings import EventSettings
from streaming.events.conversion import Event
from streaming.events.decoder import EventDecoder
from streaming.events.formats.format import Headers

NOW = 1_800_000_000_000


def outcomes(
    settings: EventSettings, value: Any, key: bytes | None = b"u", headers: Headers = ()
) -> list[Event | str]:
    """Events; for what is refused its reason, for what is ignored what decided."""
    sent = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    return [
        one if isinstance(one, Event) else one.reason
        for one in EventDecoder(settings).outcomes(key, sent, headers, NOW)
    ]


def brief(settings: EventSettings, value: Any, **record: Any) -> list[Any]:
    """`outcomes`, of events user, item and event id alone."""
    return [
        one if isinstance(one, str) else (one.user, one.item, one.event_id)
        for one in outcomes(settings, value, **record)
    ]
