"""Which topic bears a name: one that was deleted and created again is another source of events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from infra.behaviors import Source, partition_source
from infra.kafka.fetching_by_id import DERIVED
from infra.telemetry import get_logger

log: Final = get_logger(__name__)


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

    def source(self, partition: int, life: int = 0) -> Source:
        """The source of a life of a partition's log, as of the last `adopt`."""
        assert self.id is not None
        return partition_source(self.topic, self.id, partition, life)

    async def read(self) -> str:
        """The topic's id as the broker tells it now; raises `BrokerError` as ``read`` does."""
        return await asyncio.to_thread(self._read)

    def adopt(self, found: str) -> bool:
        """Take the id as the topic's; returns whether there was another one before."""
        if found == self.id:
            return False
        before, self.id = self.id, found
        if before is None and found.startswith(DERIVED):
            log.warning(
                "the brokers give topics no ids: one that is deleted and made anew is taken for the"
                " old one, and its first events for events that were applied",
                topic=self.topic,
            )
        return before is not None
