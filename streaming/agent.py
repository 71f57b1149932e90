"""The agent: batches of a stream, in order, through the writer, and acknowledged when written.

A batch is never acknowledged before store and dead-letter topic have what is theirs, whatever
fails, so that nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

import faust
from aiokafka.errors import KafkaError
from faust.types import TP

from infra.errors import BrokerError, typed_line
from infra.metrics import WorkerMetrics
from infra.telemetry import get_logger
from streaming.groups import Waiting, WaitingBatches, size_of
from streaming.positions import Positions, Wanted
from streaming.topic import TopicIdentity, Topics
from streaming.transport import BatchConsumer, FetchedBatch, InOrder, Standing
from streaming.writer import RETRY_MIN_S, BatchWriter, GivenUp, Writable

log: Final = get_logger(__name__)

PLACE_PAUSE_S: Final = 0.5
"""Pause between two looks for where partitions stand. Should a broker contradict itself, or not be
able to tell, it is asked so often and no more."""

PLACE_LATE_S: Final = 10.0
"""Time after which a partition of which it is not known where to go on is an obstacle."""

UNANSWERED: Final = (BrokerError, KafkaError, TimeoutError)
"""What a question to the brokers ends with that they cannot answer now."""


class BatchAgent:
    """What the agent does and remembers: takes each partition's batches, and only in order.

    Faust's agent calls `consume`. It may crash and be started again; this object stays.
    """

    def __init__(
        self,
        app: faust.App,
        writer: BatchWriter,
        topics: Topics,
        positions: Positions,
        metrics: WorkerMetrics,
        group_bytes: int,
    ) -> None:
        """Make it; nothing is read yet.

        Args:
            app: Faust's.
            writer: brings batches into the store.
            topics, positions: what is read, and where its partitions stand.
            metrics: where all of it is counted.
            group_bytes: what batches that wait to be written, or are, may take in memory.
        """
        self._app = app
        self._group_bytes = group_bytes
        self._writer = writer
        self._topics = topics
        self._positions = positions
        self._metrics = metrics
        self._order = InOrder()
        self._unplaced: dict[TP, float] = {}
        """Partitions of which it is not known where to go on, and since when (monotonic seconds);
        none of their batches is applied."""
        self._untold: set[TP] = set()
        """Partitions of which no broker could tell how far their logs go, twice in a row: leaders
        change."""
        self._once_untold: set[TP] = set()
        """Those of which none could the last time."""
        self._left_over: set[str] = set()
        """Names that another topic bears by now, of which nothing is ours: what was known of the
        one before is told all the same."""
        self._unread: list[TP] = []
        """Partitions that no worker of the group has."""
        self._rebalances = 0
        self._back_ms: int | None = None
        """From when on partitions that are placed are read again, ms since epoch."""
        self._turn = asyncio.Lock()
        self._placing: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    async def consume(self, events: AsyncIterable[Any]) -> None:
        """Apply the batches of a stream: while some are written, the next are decoded, and all that
        were are written together.
        """
        waiting = WaitingBatches(self._group_bytes)
        writing = self._writing = asyncio.create_task(self._write_groups(waiting))
        try:
            async for event in events:
                decoded = await self._writer.decode(event.value)
                await waiting.put(Waiting(event, decoded, size_of(event.value)))
                self._metrics.waiting_bytes.set(waiting.bytes)
        finally:
            self._writing = None
            writing.cancel()

    async def _write_groups(self, waiting: WaitingBatches) -> None:
        while True:
            group = await waiting.take()
            try:
                for one in await self.apply(group):
                    one.event.ack()
            except Exception:
                # No failure is expected here; should there be one, it must not stay silent until
                # the next batch comes, nor end what all later batches need.
                log.exception("batches failed")
                await asyncio.sleep(RETRY_MIN_S)
                self._misplaced({one.batch.tp for one in group} & self._consumer.assignment())
            await waiting.done(group)
            self._metrics.waiting_bytes.set(waiting.bytes)

    async def apply(self, group: Sequence[Waiting]) -> list[Waiting]:
        """Apply batches, as many as can be in one transaction.

        Returns:
            Those that were applied, and may be acknowledged. The others come again.
        """
        applied: list[Waiting] = []
        rest = list(group)
        while rest:
            async with self._turn:
                done, rest = await self._apply_first(rest)
            applied += done
        return applied

    async def _apply_first(self, group: list[Waiting]) -> tuple[list[Waiting], list[Waiting]]:
        """Apply the first of the batches; those that were, and those that are to be looked at next.

        A batch that another leader took than the one before it in its partition is looked at when
        that one is applied: only then it can be told whether the log lost something in between.
        """
        writable: list[Writable] = []
        last: dict[TP, FetchedBatch] = {}
        applied: list[Waiting] = []
        rest: list[Waiting] = []
        astray: FetchedBatch | None = None
        try:
            for place, one in enumerate(group):
                batch, before = one.batch, last.get(one.batch.tp)
                wanted = self._ours(batch.generation)
                if not wanted() or batch.tp in self._unplaced or self._order.is_old(batch):
                    continue
                if not self._order.follows(batch, before):
                    astray = astray or batch
                    continue
                if before is not None and batch.epoch != before.epoch:
                    rest = group[place:]
                    break
                if await self._continues(batch.tp, batch.next, batch.epoch, wanted):
                    writable.append(Writable(batch, one.decoded, self._positions.source(batch.tp)))
                    last[batch.tp] = batch
                    applied.append(one)
            if writable:
                await self._writer.write(writable, self._ours())
        except GivenUp:
            self._go_back_if_interrupted()
            return [], []
        for one in applied:
            self._order.done(one.batch)
            self._positions.applied(one.batch)
        if astray is not None:
            await self._fetch_again(astray)
        return applied, rest

    async def check(self) -> None:
        """Look after what no batch tells: another topic under a name, and how far the logs go.

        Raises:
            BrokerError, KafkaError: the brokers do not answer, or a topic is not there; the others
                are looked after.
        """
        self._go_back_if_interrupted()
        rebalances, (ids, failed) = self._rebalances, await self._topics.read()
        for topic in self._topics:
            if topic.id is not None and topic.topic in ids:
                self._compare(topic, ids[topic.topic], rebalances)
        if any(topic.id is not None for topic in self._topics):
            await self._measure()
        if failed is not None:
            raise failed

    def _compare(self, topic: TopicIdentity, found: str, rebalances: int) -> None:
        """Hold the id that a topic has now, asked after so many rebalances, against what is ours of
        it.
        """
        ours = topic.among(self._consumer.assignment())
        if not ours and rebalances == self._rebalances:
            if found == topic.id:
                self._positions.leave_to_others(topic)
            else:
                self._left_over.add(topic.topic)
                self._place_soon()
        # None should be neither placed nor on its way to be: it would not be read, without a word.
        stray = ours - self._positions.next.keys() - self._unplaced.keys()
        if stray:
            log.error("partitions have no place, placing them", partitions=sorted(stray))
        if misplaced := ours if found != topic.id else stray:
            self._misplaced(misplaced)

    async def _measure(self) -> None:
        """Ask how far the logs go."""
        asked_at = time.time()
        standings = await self._consumer.standings(self._unplaced)
        # Without those that were revoked meanwhile.
        ours = self._unplaced.keys() | self._positions.next.keys()
        self._positions.measure({tp: one for tp, one in standings.items() if tp in ours})
        untold = self._consumer.assignment() - standings.keys()
        self._untold, self._once_untold = untold & self._once_untold, untold
        if not untold:
            self._metrics.logs_asked_timestamp_seconds.set(asked_at)
        self._metrics.unreadable_partitions.set(len(self._unreadable()))
        if self._settling is None or self._settling.done():
            # Not waited for: it waits for the store.
            self._settling = asyncio.create_task(self._settle(standings))

    async def left_unread(self, partitions: Collection[tuple[str, int]]) -> None:
        """Take note that no worker of the group has some partitions, though it has settled; if
        there are any, have it share them out anew.

        Raises:
            KafkaError, TimeoutError: the brokers do not answer.
        """
        self._unread = sorted(TP(*one) for one in partitions)
        if partitions:
            log.warning("partitions are read by no worker, joining anew", partitions=self._unread)
            await self._consumer.rejoin()

    def obstacles(self) -> dict[str, str]:
        """What keeps partitions from being read, by the name of the part."""
        now, part = time.monotonic(), self._topics.part
        waiting = {
            part(tp): "not known yet where to go on reading it"
            for tp, since in self._unplaced.items()
            if now - since > PLACE_LATE_S
        }
        untold = {part(tp): "no broker can tell of it: has it a leader?" for tp in self._untold}
        unread = {part(tp): "no worker of the group reads it" for tp in self._unread}
        ended = {}
        if self._writing is not None and self._writing.done():
            ended["writer"] = "has ended: start the worker again, and report its log"
        there = waiting | self._positions.obstacles() | untold | self._unreadable()
        return unread | there | ended

    def _unreadable(self) -> dict[str, str]:
        return {
            self._topics.part(tp): f"cannot be read at offset {failure.offset}: {failure.error}"
            for tp, failure in self._consumer.failures.items()
            if failure.times > 1
        }

    def close(self) -> None:
        """Look after nothing any more."""
        for task in (self._placing, self._settling):
            if task is not None:
                task.cancel()

    def rebalanced(self, assigned: set[TP]) -> None:
        """Take note of the partitions that are ours now.

        A topic may be another one by now, another worker may have gone on, and logs may have
        changed, so it is found out anew where each partition stands.
        """
        self._rebalances += 1
        self._untold.clear()
        self._unplaced = dict.fromkeys(assigned, time.monotonic())
        self._positions.forget(assigned)
        consumer = self._consumer
        consumer.resume_at = lambda: self._positions.next
        consumer.on_misplaced = self._misplaced
        self._place_soon()

    def _misplaced(self, partitions: AbstractSet[TP]) -> None:
        """Find out anew where the partitions stand: their logs are not as they were."""
        for tp in partitions:
            self._unplaced.setdefault(tp, time.monotonic())
        self._place_soon()

    def _go_back_if_interrupted(self) -> None:
        """Have all partitions go back to before an outage of the store, if there was one."""
        since_ms = self._writer.interruptions.take()
        if since_ms is None:
            return
        log.warning("store was away, what it may have lost is read again", since_ms=since_ms)
        self._back_ms = since_ms if self._back_ms is None else min(since_ms, self._back_ms)
        self._misplaced(self._consumer.assignment())

    def _place_soon(self) -> None:
        """Place what is not placed, whether batches come or not."""
        if self._placing is None or self._placing.done():
            self._placing = asyncio.create_task(self._place_all())

    async def _place_all(self) -> None:
        """Place all, topic by topic, and whatever comes to be placed meanwhile.

        Between two looks batches have their turn: a partition of which no broker can tell must not
        stop the others, nor a topic that is not there.
        """
        said: dict[str, str] = {}
        while (self._unplaced or self._left_over) and not self._app.should_stop:
            given_up = False
            for topic in self._topics:
                async with self._turn:
                    try:
                        await self._place(topic, self._ours())
                        said.pop(topic.topic, None)
                    except GivenUp:
                        given_up = True
                    except UNANSWERED as error:
                        if said.get(topic.topic) != (line := typed_line(error)):
                            log.info("brokers do not answer yet", topic=topic.topic, error=line)
                            said[topic.topic] = line
                    except Exception:
                        if not self._app.should_stop:  # else the consumer's thread may have ended
                            log.exception("partitions not placed", topic=topic.topic)
            if not given_up:
                self._writer.progress.moved()
                await asyncio.sleep(PLACE_PAUSE_S)

    async def _place(self, topic: TopicIdentity, wanted: Wanted) -> None:
        """Find out where a topic's unplaced partitions stand, and go on there."""
        unplaced = topic.among(self._unplaced)
        if not unplaced and topic.topic not in self._left_over:
            return
        rebalances, back_ms, before = self._rebalances, self._back_ms, topic.id
        offsets = await self._positions.find(self._consumer, topic, unplaced, wanted, back_ms)
        self._left_over.discard(topic.topic)
        if before not in (None, topic.id):
            # Another topic: also partitions that were not asked about do not stand as they did.
            self._misplaced(topic.among(self._consumer.assignment()) - unplaced)
        if rebalances == self._rebalances:
            await self._seek(offsets)
        # Asked once more: a rebalance during the seek makes all of them unplaced again.
        if rebalances == self._rebalances:
            for tp in offsets:
                self._unplaced.pop(tp, None)
            if not self._unplaced and self._back_ms == back_ms:
                self._back_ms = None

    async def _continues(self, tp: TP, following: int, epoch: int, wanted: Wanted) -> bool:
        """Whether what was fetched continues the log; if not, the partition is placed anew."""
        try:
            continues = await self._positions.continues(
                self._consumer, tp, following, epoch, wanted
            )
        except UNANSWERED as error:
            log.info("brokers do not answer yet", error=typed_line(error))
            continues = False
        if not continues:
            self._misplaced({tp})
        return continues

    async def _settle(self, standings: Mapping[TP, Standing]) -> None:
        """Go past what is no event in partitions of which all that was fetched is applied."""
        wanted = self._ours()
        async with self._turn:
            placed = self._positions.next
            for tp, standing in standings.items():
                if tp not in placed or tp in self._unplaced or standing.next <= placed[tp]:
                    continue
                if self._order.is_last(tp, standing.seek, standing.number):
                    with contextlib.suppress(GivenUp):
                        if await self._continues(tp, standing.next, standing.epoch, wanted):
                            await self._positions.settle(self._consumer, tp, standing.next, wanted)

    def _ours(self, generation: int | None = None) -> Wanted:
        """Tells whether the partitions of a generation, by default the present one, are ours."""
        since = self._app.consumer_generation_id if generation is None else generation
        return lambda: since == self._app.consumer_generation_id and not self._app.should_stop

    async def _fetch_again(self, batch: FetchedBatch) -> None:
        """Go back to what is applied: something before the batch got lost on its way."""
        log.info(
            "a batch was dropped on its way, fetching it again",
            topic=batch.tp.topic,
            partition=batch.tp.partition,
            offset=batch.first,
        )
        await self._seek(self._positions.next)

    async def _seek(self, offsets: Mapping[TP, int]) -> None:
        for tp, seek in (await self._consumer.seek_to(offsets)).items():
            self._order.expect(tp, seek)

    @property
    def _consumer(self) -> BatchConsumer:
        consumer = self._app.consumer
        assert isinstance(consumer, BatchConsumer)
        return consumer
