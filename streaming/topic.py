"""Which topic bears a name: one that was deleted and created again is another source of events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from infra.behaviors import Source, partition_source


class TopicIdentity:
    """Which topic bears the name now: one that was deleted and created again is another source.

    Args:
        topic: its name.
        read: asks the broker for the topic's id. It blocks, and raises `BrokerError` when the
            broker does not answer or has no such topic.
    """

    def __init__(self, topic: str, read: Callable[[], str]) -> None:
        self.topic = topic
        self.id: str | None = None
        self._read = read
        self._sources: dict[int, Source] = {}

    def source(self, partition: int) -> Source:
        """The source of a partition, as of the last `adopt`."""
        source = self._sources.get(partition)
        if source is None:
            assert self.id is not None
            source = partition_source(self.topic, self.id, partition)
            self._sources[partition] = source
        return source

    async def read(self) -> str:
        """The topic's id as the broker tells it now; raises `BrokerError` as ``read`` does."""
        return await asyncio.to_thread(self._read)

    def adopt(self, found: str) -> bool:
        """Take the id as the topic's; returns whether there was another one before."""
        if found == self.id:
            return False
        before, self.id = self.id, found
        self._sources.clear()
        return before is not None
