"""Which segments users were read with, so that they are asked for together with the head.

Where segments lie is known from the head alone. Asking for all that there can be would be 158 keys
for a user with a short history in a store of 10,000 behaviors; those that were there the last time
are there again, but for the oldest when another was sealed.
"""

from __future__ import annotations

import threading
from typing import Final

SPANS: Final = 16_384
"""Users remembered, some 200 bytes each: those who come again within a session or a few seals."""


class Spans:
    """Numbers of segments by user, of those last read; safe to use from threads."""

    def __init__(self, most: int = SPANS) -> None:
        """Remember so many users."""
        self._most = most
        self._lock = threading.Lock()
        self._spans: dict[str, range] = {}

    def of(self, user: str) -> range:
        """The numbers the user was last read with; none where that is not known."""
        return self._spans.get(user, range(0))

    def keep(self, user: str, span: range) -> None:
        """Remember the numbers a user was read with."""
        with self._lock:
            self._spans.pop(user, None)
            if not span:
                return
            if len(self._spans) >= self._most:
                del self._spans[next(iter(self._spans))]
            self._spans[user] = span
