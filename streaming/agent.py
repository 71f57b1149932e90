"""The agent: batches of a stream, in order, through the writer, and acknowledged when written.

A batch is never acknowledged before store and dead-letter topic have what is theirs, whatever
fails, so that nothing is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Mapping
from typing import Any, Final

import faust
from faust.types import TP

from infra.errors import BrokerError, one_line
from infra.metrics import WorkerMetrics
from infra.telemetry import get_logger
from streaming.events.decoder import Decoded
from streaming.topic import TopicIdentity
from streaming.transport import BatchConsumer, FetchedBatch, InOrder
from streaming.writer import RETRY_MIN_S, BatchWriter, GivenUp

log: Final = get_logger(__name__)


class BatchAgent:
    """What the agent does and remembers: takes each partition's batches, and only in order.

    Faust's agent calls `consume`. It may crash and be started again; this object stays.
    """

    def __init__(
        self, app: faust.App, writer: BatchWriter, topic: TopicIdentity, metrics: WorkerMetrics
    ) -> None:
        self._app = app
        self._writer = writer
        self._topic = topic
        self._metrics = metrics
        self._order = InOrder()
        self._suspect = True  # whether the topic's id must be read before the next batch
        self._turn = asyncio.Lock()

    async def consume(self, events: AsyncIterable[Any]) -> None:
        """Apply the batches of a stream: one is decoded while the one before it is written."""
        writing: asyncio.Task[None] | None = None
        try:
            async for event in events:
                decoded = await self._writer.decode(event.value)
                if writing is not None:
                    await writing
                writing = asyncio.create_task(self._apply_and_acknowledge(event, decoded))
        finally:
            if writing is not None:
                writing.cancel()

    async def _apply_and_acknowledge(self, event: Any, decoded: Decoded) -> None:
        try:
            applied = await self.apply(event.value, decoded)
        except Exception:
            # No failure is expected here; should there be one, it must not stay silent until the
            # next batch comes.
            log.exception("batch failed")
            await asyncio.sleep(RETRY_MIN_S)
            await self._fetch_again(event.value)
        else:
            if applied:
                event.ack()

    async def apply(self, batch: FetchedBatch, decoded: Decoded) -> bool:
        """Apply the batch; returns whether it may be acknowledged. One that may not comes again."""
        async with self._turn:
            if self._order.is_old(batch):
                return False
            if not self._order.follows(batch):
                await self._fetch_again(batch)
                return False
            try:
                if (self._suspect or batch.rewound) and await self._topic_changed(batch):
                    return False
                source = self._topic.source(batch.tp.partition)
                await self._writer.write(batch, decoded, source, lambda: self._wanted(batch))
            except GivenUp:
                return False
            self._order.done(batch)
            return True

    async def check_topic(self) -> None:
        """Start over if the topic was created anew.

        Raises:
            BrokerError: the broker does not answer, or there is no such topic.
        """
        found = await self._topic.read()
        if found == self._topic.id or self._topic.id is None:
            return
        async with self._turn:
            # Read again: what was found may be older than what `apply` learned meanwhile.
            await self._adopt(await self._topic.read())

    def rebalanced(self, assigned: set[TP], revoked: set[TP]) -> None:
        """Take note that partitions were assigned to us and revoked.

        The topic may be another one by now, so its id is read again before the next batch.
        """
        self._suspect = True
        for tp in revoked - assigned:
            try:
                self._metrics.consumer_lag.remove(str(tp.partition))
            except KeyError:
                continue

    def _wanted(self, batch: FetchedBatch) -> bool:
        return batch.generation == self._app.consumer_generation_id

    async def _topic_changed(self, batch: FetchedBatch) -> bool:
        """Read the topic's id until the broker tells it; returns whether we start over for it."""
        pause = RETRY_MIN_S
        while True:
            try:
                found = await self._topic.read()
            except BrokerError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
                self._writer.progress.moved()
                if not self._wanted(batch):
                    raise GivenUp from None
                continue
            self._suspect = False
            return await self._adopt(found)

    async def _adopt(self, found: str) -> bool:
        if not self._topic.adopt(found):
            return False
        log.warning("topic was created anew, starting at its beginning", topic=self._topic.topic)
        self._expect(await self._consumer.rewind())
        return True

    async def _fetch_again(self, batch: FetchedBatch) -> None:
        """Go back to what is acknowledged: something before the batch got lost on its way."""
        log.info(
            "a batch was dropped on its way, fetching it again",
            partition=batch.tp.partition,
            offset=batch.first,
        )
        try:
            await self._consumer.perform_seek()
        except Exception as error:  # noqa: BLE001 - the next batch does not follow either, and asks again
            log.warning("cannot seek yet", error=one_line(error))
            await asyncio.sleep(RETRY_MIN_S)
            return
        self._expect(self._consumer.seeks)

    def _expect(self, seeks: Mapping[TP, int]) -> None:
        for tp, seek in seeks.items():
            self._order.expect(tp, seek)

    @property
    def _consumer(self) -> BatchConsumer:
        consumer = self._app.consumer
        assert isinstance(consumer, BatchConsumer)
        return consumer
