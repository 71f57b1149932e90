"""The whole body of a request, as far as one is taken."""

from __future__ import annotations

from typing import Final

from starlette.types import Message, Receive

from scorer.limits import Refused

DISCARD_BYTES: Final = 16 * 1_048_576
"""How much of a body that is too large is read and dropped, so that its sender, who reads no
answer before having sent everything, gets the 413 instead of a reset connection."""


class Body:
    """Takes in bodies whole, before anything else is spent on their requests."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    async def read(self, announced: int, receive: Receive, *, waits: bool = False) -> bytes | None:
        """A request's body; None: its client has gone.

        Args:
            announced: bytes that there should be; 0: not told.
            receive: the request's.
            waits: whether its sender waits for a word before sending.

        Raises:
            Refused: it is too large (413), whether announced or not.
        """
        if waits and announced > self._max_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size <= self._max_bytes:
                chunks.append(chunk)
            elif size > self._max_bytes + DISCARD_BYTES:
                raise self._too_large()
            if not message.get("more_body", False):
                break
        if size > self._max_bytes:
            raise self._too_large()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def slow(self) -> Refused:
        """What is said to a request whose body did not arrive by its deadline."""
        return Refused(408, "slow_body", "body", "did not arrive by the request's deadline")

    def _too_large(self) -> Refused:
        return Refused(413, "body_too_large", "body", f"is larger than {self._max_bytes} bytes")


def beginning_with(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that begins with a whole body."""
    given = False

    async def receive_body() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_body
