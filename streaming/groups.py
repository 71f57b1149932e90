"""Batches that were decoded and wait to be written, all of them together.

One transaction takes all that was decoded while the one before it was written, whatever partitions
it is of. So a light load is written at once, and under a heavy one the groups grow: a store that
keeps users in pages writes each page once for many of them, not once a batch.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from streaming.events.decoder import Decoded
from streaming.transport import FetchedBatch

EVENT_BYTES: Final = 250
"""What an event takes in memory beside its key and value, about: the record as an object, its place
in the decoder's columns, and its share of a user."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A batch that waits to be written."""

    event: Any
    """Faust's event, which is acknowledged when the batch is written."""
    decoded: Decoded
    size: int
    """Bytes that it takes in memory, about."""

    @property
    def batch(self) -> FetchedBatch:
        """What was fetched."""
        batch: FetchedBatch = self.event.value
        return batch


def size_of(batch: FetchedBatch) -> int:
    """Bytes that a batch takes in memory, about, decoded."""
    values = sum(len(record.value or b"") + len(record.key or b"") for record in batch.records)
    return values + len(batch.records) * EVENT_BYTES


class WaitingBatches:
    """A queue of batches, bounded by the memory of those in it and of those being written.

    Args:
        most_bytes: what all of them may take; a larger batch goes through alone.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._waiting: list[Waiting] = []
        self._changed = asyncio.Condition()

    @property
    def bytes(self) -> int:
        """What is taken now."""
        return self._bytes

    async def put(self, one: Waiting) -> None:
        """Add a batch, once there is room for it."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._bytes or self._bytes + one.size <= self._most_bytes
            )
            self._bytes += one.size
            self._waiting.append(one)
            self._changed.notify_all()

    async def take(self) -> list[Waiting]:
        """All that wait, in the order in which they came, at least one; `done` gives room again."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._waiting))
            taken, self._waiting = self._waiting, []
            return taken

    async def done(self, taken: list[Waiting]) -> None:
        """Give the room of batches back that were taken and are written, or dropped."""
        async with self._changed:
            self._bytes -= sum(one.size for one in taken)
            self._changed.notify_all()
