"""Which topic bears a name: one that was deleted and created again is another source of events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from faust.types import TP

from infra.behaviors import Source, partition_source
from infra.errors import BrokerError
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

    def among(self, partitions: Iterable[TP]) -> set[TP]:
        """Those of some partitions that are of the topic."""
        return {tp for tp in partitions if tp.topic == self.topic}

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


class Topics:
    """The topics that a worker reads.

    >>> topics = Topics([TopicIdentity("clicks", str), TopicIdentity("orders", str)])
    >>> topics.part(TP("orders", 3)), topics["orders"].topic
    ('partition 3 of orders', 'orders')
    """

    def __init__(self, topics: Iterable[TopicIdentity]) -> None:
        self._topics = {one.topic: one for one in topics}

    def __iter__(self) -> Iterator[TopicIdentity]:
        return iter(self._topics.values())

    def __getitem__(self, name: str) -> TopicIdentity:
        return self._topics[name]

    def part(self, tp: TP) -> str:
        """What a partition is called among the parts of a worker: of one topic, by its number."""
        number = f"partition {tp.partition}"
        return number if len(self._topics) == 1 else f"{number} of {tp.topic}"

    async def read(self) -> tuple[dict[str, str], BrokerError | None]:
        """The ids of topics as the broker tells them now, by their names, and why the first of the
        others has none.

        Raises:
            BrokerError: none has one.
        """
        answers = await asyncio.gather(*map(_read, self))
        ids = {
            one.topic: told
            for one, told in zip(self, answers, strict=True)
            if isinstance(told, str)
        }
        failed = next((told for told in answers if isinstance(told, BrokerError)), None)
        if failed is not None and not ids:
            raise failed
        return ids, failed


async def _read(topic: TopicIdentity) -> str | BrokerError:
    try:
        return await topic.read()
    except BrokerError as error:
        return error
