"""How far each assigned partition was taken, where to go on, and what stands in the way."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec
from faust.types import TP
from prometheus_client import Gauge

from infra.behaviors import Source, partition_source
from infra.kafka.logs import LogBounds
from infra.metrics import WorkerMetrics
from infra.store import Store, wall_clock_ms
from infra.telemetry import get_logger
from streaming.interruptions import Trail
from streaming.lives import Life, Start, read_lives, start, write_life
from streaming.topic import TopicIdentity, Topics
from streaming.transport import BatchConsumer, FetchedBatch, Standing
from streaming.writer import BatchWriter, GivenUp

log: Final = get_logger(__name__)

STILL_S: Final = 60.0
"""Time after which a partition that does not get on, though its log goes on, is an obstacle. The
largest batch on the slowest store takes a fraction of it."""

ENDS: Final = 4096
"""Places of a log's end that are remembered: of some hours, at `worker.check_s`."""

Wanted = Callable[[], bool]
"""Whether the partitions are still ours."""


@dataclass(slots=True)
class _Position:
    """Where a partition stands."""

    next: int
    """Offset below which all is dealt with."""
    fed: int
    """Offset below which the store was fed in this life of the log, whatever is read again."""
    life: Life
    source: Source
    end: int
    """Offset that the log's next record would have, the greatest that was heard of and whose loss
    was not told."""
    held_at: int | None = None
    """Offset at which an open transaction begins; None: none holds the partition back."""
    held_since: float = 0.0
    """Since when, monotonic seconds."""
    still_at: int = -1
    """Offset beyond which it has not come although there is more; -1: there is none, or it may not
    be read yet."""
    still_since: float = 0.0
    """Since when, monotonic seconds."""
    trail: Trail = field(default_factory=Trail)
    ends: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=ENDS))
    """Where the log ended when it was asked, beyond what is dealt with; the first at or below."""
    stamp_ms: int = 0
    """Kafka timestamp of the last event that was applied, ms since epoch; 0: none was."""

    def behind_s(self, end: int, now: float, now_ms: int) -> float:
        """How long the oldest event that is not dealt with has been waiting, at most, of a log that
        ends there now (monotonic seconds, ms since epoch).

        It came after the log was last seen to end before it. Of what was there when the partition
        was assigned, the event before it tells.
        """
        self.ends.append((now, end))
        while len(self.ends) > 1 and self.ends[1][1] <= self.next:
            self.ends.popleft()
        if end <= self.next:
            return 0.0
        seen, ended = self.ends[0]
        if ended > self.next and self.stamp_ms:
            return max(now - seen, (now_ms - self.stamp_ms) / 1000)
        return now - seen


@dataclass(frozen=True, slots=True)
class _Deleted:
    """A partition of a topic that was deleted."""

    tp: TP
    topic_id: str
    end: int
    """As of `_Position`."""
    next: int
    """Where it would have been read on, should the store know nothing of it."""


class Positions:
    """Where the assigned partitions stand: found out after each rebalance, kept from there on.

    Args:
        topics: which topics they are of.
        store: knows how far it was fed, and of which life of each log.
        writer: reaches the store, and does not give up.
        metrics: where all of it is counted.
        held_max_s: how long a transaction may hold a partition back before that is an obstacle.
        clock: ms since epoch.
    """

    def __init__(
        self,
        topics: Topics,
        store: Store,
        writer: BatchWriter,
        metrics: WorkerMetrics,
        held_max_s: float,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._topics = topics
        self._store = store
        self._writer = writer
        self._metrics = metrics
        self._held_max_s = held_max_s
        self._clock = clock
        self._at: dict[TP, _Position] = {}
        self._before: dict[TP, _Position] = {}
        """Where partitions stood that have not been found anew since a rebalance."""
        self._assigned: frozenset[TP] = frozenset()
        self._heard: dict[TP, LogBounds] = {}
        """The logs of partitions of which it was not found out yet where to go on."""
        self._told: set[tuple[TP, int, str, range]] = set()
        """Losses that were told, of partitions that are being placed."""
        self._deleted: list[_Deleted] = []
        """What was known of deleted topics, until it is told what was lost with it."""

    @property
    def next(self) -> dict[TP, int]:
        """Where to go on reading, of the partitions where that was found out."""
        return {tp: at.next for tp, at in self._at.items()}

    def source(self, tp: TP) -> Source:
        """The source that the partition is now; raises `GivenUp` if it is not ours any more."""
        return self._of(tp).source

    def forget(self, assigned: Collection[TP]) -> None:
        """Know nothing for sure any more; partitions that are not ours are told of no longer.

        Where they stood is still known until it is heard whether the topic is the same: a rebalance
        is how the group's members hear that it was deleted, and there may be several.
        """
        self._before |= self._at
        self._at.clear()
        self._assigned = frozenset(assigned)
        metrics = self._metrics
        metrics.partitions.set(len(assigned))
        ours = {_labels(tp) for tp in assigned}
        for gauge in _by_partition(metrics):
            # A consumer that crashed has left its own behind, too.
            samples = [one.labels for metric in gauge.collect() for one in metric.samples]
            for labels in {(one["topic"], one["partition"]) for one in samples} - ours:
                gauge.remove(*labels)

    def leave_to_others(self, topic: TopicIdentity) -> None:
        """Know nothing any more of partitions that are not ours: the topic is there, so others of
        the group have them, and tell what is lost. Two that know of one partition would both tell
        it.
        """
        for known in (self._before, self._heard):
            for tp in topic.among(known) - self._assigned:
                known.pop(tp)

    async def find(
        self,
        consumer: BatchConsumer,
        topic: TopicIdentity,
        partitions: Collection[TP],
        wanted: Wanted,
        back_ms: int | None = None,
    ) -> dict[TP, int]:
        """Find out where to go on in partitions of a topic, from what the store, the group and the
        logs say; with ``back_ms``, ms since epoch, no later than at the first event since then, nor
        at what was applied since then: a worker that lags applies events long after they happened.

        Returns:
            The offsets, without those of partitions of which no broker can tell now.

        Raises:
            BrokerError, KafkaError: the brokers do not answer.
            GivenUp: the partitions are not ours any more.
        """
        store, found_id = self._store, await topic.read()
        before = topic.id
        if topic.adopt(found_id):
            assert before is not None
            log.warning("topic was created anew, starting at its beginning", topic=topic.topic)
            self._note_deleted(topic, before)
            # Nobody stands anywhere in the new topic yet; what is known of the old one's logs must
            # not be kept under its id.
            for known in (self._before, self._heard, self._at):
                for tp in topic.among(known):
                    known.pop(tp)
        else:
            self.leave_to_others(topic)
        consumer.read_by_id(topic.topic, found_id)
        await self._tell_deleted(wanted)
        numbers = [tp.partition for tp in partitions]
        lives = await self._writer.until_done(lambda: read_lives(store, found_id, numbers), wanted)
        sources = {n: topic.source(n, life.number) for n, life in lives.items()}
        keys = [sources[number].key for number in numbers]
        reached = dict(
            zip(
                numbers,
                await self._writer.until_done(lambda: store.positions(keys), wanted),
                strict=True,
            )
        )
        logs = await consumer.logs({tp: lives[tp.partition].epoch for tp in partitions})
        for tp, found in logs.items():
            number = tp.partition
            begin = start(
                lives[number], reached[number], found.committed, found.bounds, found.epoch_end
            )
            await self._begin(tp, begin, reached[number], found.bounds.end, wanted)
            if begin.offset != (found.committed or 0):
                consumer.acknowledge(tp, begin.offset, anew=True)
            else:
                consumer.take_over(tp, found.committed)
            self._before.pop(tp, None)
            self._heard.pop(tp, None)
        if back_ms is not None:
            since = await consumer.offsets_since(logs, back_ms)
            for tp in logs:
                at = self._of(tp)
                stood = at.trail.at(back_ms)
                back = min(since.get(tp, at.next), at.next if stood is None else stood)
                if back < at.next:
                    at.next = max(back, at.life.begins, logs[tp].bounds.beginning)
                    consumer.acknowledge(tp, at.next, anew=True)
        return {tp: self._of(tp).next for tp in logs}

    async def continues(
        self, consumer: BatchConsumer, tp: TP, following: int, epoch: int, wanted: Wanted
    ) -> bool:
        """Whether what was fetched up to an offset continues the log that the store was fed.

        Asked whenever another leader took it than what came before: then the log may have lost
        its tail meanwhile, and have grown again. Raises as `find` does.
        """
        at = self._of(tp)
        life = at.life
        if epoch in (-1, life.epoch) or (epoch < life.epoch and following <= at.fed):
            return True
        if life.epoch >= 0:
            found = (await consumer.logs({tp: life.epoch})).get(tp)
            if found is None or found.epoch_end is None or found.epoch_end < at.fed:
                return False
        at.life = msgspec.structs.replace(life, epoch=max(epoch, life.epoch))
        await self._keep_life(tp, at.life, wanted)
        return True

    def applied(self, batch: FetchedBatch) -> None:
        """Take note that the store has a batch."""
        if batch.tp in self._at:  # else the partition is placed anew, after a rebalance
            at = self._at[batch.tp]
            self._moved(at, batch.next)
            if batch.records:
                at.stamp_ms = batch.records[-1].timestamp

    async def settle(self, consumer: BatchConsumer, tp: TP, following: int, wanted: Wanted) -> None:
        """Go past what is no event: the end of a transaction, and what one took back."""
        at = self._of(tp)
        await self._writer.reach(at.source, following - 1, wanted)
        self._moved(at, following)
        consumer.acknowledge(tp, following)

    def measure(self, standings: Mapping[TP, Standing]) -> None:
        """Tell how far each partition is behind its log, and whether a transaction holds it."""
        now, metrics = time.monotonic(), self._metrics
        for tp, standing in standings.items():
            at, bounds = self._at.get(tp), standing.log
            labels = _labels(tp)
            lag = max(0, bounds.end - self._last_known(tp, standing))
            metrics.consumer_lag.labels(*labels).set(lag)
            metrics.log_end.labels(*labels).set(bounds.end)
            if at is None:
                self._hear(tp, bounds)
                for gauge in (metrics.held_events, metrics.held_seconds, metrics.behind_seconds):
                    gauge.remove(*labels)  # what they said was of where it stood
                continue
            behind_s = at.behind_s(bounds.end, now, self._clock())
            metrics.behind_seconds.labels(*labels).set(behind_s)
            if at.end <= bounds.end:
                at.end = bounds.end
            elif 0 <= standing.next <= bounds.end:
                self._lost(tp, "truncation", range(bounds.end, at.end))
                at.end = bounds.end
            # Else what was fetched goes beyond the log's end: it is applied yet, or the partition
            # is placed anew, and then it is told what nobody has any more.
            held = bounds.end - bounds.stable
            if held <= 0:
                at.held_at = None
            elif at.held_at != bounds.stable:
                at.held_at, at.held_since = bounds.stable, now
            still_at = at.next if at.next < bounds.stable else -1
            if still_at != at.still_at:
                at.still_at, at.still_since = still_at, now
            metrics.held_events.labels(*labels).set(max(0, held))
            metrics.held_seconds.labels(*labels).set(now - at.held_since if held > 0 else 0)

    def obstacles(self) -> dict[str, str]:
        """Partitions that a transaction has held back for too long, or that do not get on though
        they could, by the name of the part.
        """
        now, part = time.monotonic(), self._topics.part
        still = {
            part(tp): f"nothing was applied from offset {at.still_at} on for"
            f" {now - at.still_since:.0f} s, though there is more: is the worker overloaded?"
            for tp, at in list(self._at.items())
            if at.still_at >= 0 and now - at.still_since > STILL_S
        }
        return still | {
            part(tp): f"an open transaction holds it back at offset {at.held_at}"
            f" since {now - at.held_since:.0f} s: end the producer's transaction"
            for tp, at in list(self._at.items())
            if at.held_at is not None and now - at.held_since > self._held_max_s
        }

    def _last_known(self, tp: TP, standing: Standing) -> int:
        """Offset below which a partition is dealt with; where that was not found out since it was
        assigned, as the store may be stuck, the last that was known of it.
        """
        if tp in self._at:
            return self._at[tp].next
        known = [standing.log.beginning, -1 if standing.committed is None else standing.committed]
        if tp in self._before:
            known.append(self._before[tp].next)
        return max(known)

    def _of(self, tp: TP) -> _Position:
        if tp not in self._at:  # there was a rebalance meanwhile
            raise GivenUp
        return self._at[tp]

    async def _begin(
        self, tp: TP, begin: Start, reached: int | None, end: int, wanted: Wanted
    ) -> None:
        """Take a partition up where it is to go on, and tell what is lost."""
        source = self._topics[tp.topic].source(tp.partition, begin.life.number)
        fed = max(
            begin.offset, begin.life.begins, -1 if reached is None or begin.cut else reached + 1
        )
        before = self._at.get(tp) or self._before.get(tp)
        unread = range(begin.cut.stop or end, end if before is None else before.end)
        # Told before the store is moved past it: who is killed in between has told it, and another
        # tells it again.
        if begin.cut and self._is_news(tp, source, "cut", begin.cut):
            self._metrics.log_cuts.inc()
            log.error(
                "the log lost its tail, new events take its offsets",
                topic=tp.topic,
                partition=tp.partition,
                first_offset=begin.cut.start,
                last_offset=begin.cut.stop - 1,
                life=begin.life.number,
            )
        if unread and self._is_news(tp, source, "truncation", unread):
            self._lost(tp, "truncation", unread)
        if begin.gone and self._is_news(tp, source, "retention", begin.gone):
            self._lost(tp, "retention", begin.gone)
        if begin.cut:
            # Kept before anything is applied under it.
            await self._keep_life(tp, begin.life, wanted)
        if begin.gone:
            await self._writer.reach(source, begin.offset - 1, wanted)
        self._told = {news for news in self._told if news[0] != tp}
        at = self._at[tp] = _Position(begin.offset, fed, begin.life, source, end)
        if before is not None and before.source == source and begin.offset <= before.next:
            at.trail = before.trail  # nobody else has had it meanwhile
        else:
            at.trail.passed(self._clock(), begin.offset)

    def _is_news(self, tp: TP, source: Source, what: str, offsets: range) -> bool:
        """Whether a loss was not told yet while its partition is being placed, however often that
        is tried.
        """
        news = (tp, source.key, what, offsets)
        told = news in self._told
        self._told.add(news)
        return not told

    def _hear(self, tp: TP, log: LogBounds) -> None:
        """Take note of the log of a partition of which it is not known where to go on."""
        if tp in self._before:
            self._before[tp].end = max(self._before[tp].end, log.end)
        else:
            self._heard[tp] = log

    def _note_deleted(self, topic: TopicIdentity, topic_id: str) -> None:
        """Note what is known of the topic by that name with that id, which is no more."""
        for tp in topic.among(self._heard):
            heard = self._heard[tp]
            self._deleted.append(_Deleted(tp, topic_id, heard.end, heard.beginning))
        stood = self._before | self._at
        for tp in topic.among(stood):
            self._deleted.append(_Deleted(tp, topic_id, stood[tp].end, stood[tp].next))

    async def _tell_deleted(self, wanted: Wanted) -> None:
        """Tell what a deleted topic held, as far as that is known, and the store was not fed."""
        while self._deleted:
            gone = self._deleted[-1]
            following = await self._writer.until_done(partial(self._following, gone), wanted)
            self._deleted.pop()
            if gone.end > following:
                self._lost(gone.tp, "deletion", range(following, gone.end))

    def _following(self, gone: _Deleted) -> int:
        """Offset of the first event of a deleted partition that the store was not fed."""
        number = gone.tp.partition
        life = read_lives(self._store, gone.topic_id, [number])[number]
        source = partition_source(gone.tp.topic, gone.topic_id, number, life.number)
        (fed,) = self._store.positions([source.key])
        return max(life.begins, gone.next if fed is None else fed + 1)

    def _lost(self, tp: TP, cause: str, offsets: range) -> None:
        self._metrics.lost_events.labels(cause).inc(len(offsets))
        log.error(
            "events are gone from Kafka before they were read",
            cause=cause,
            count=len(offsets),
            topic=tp.topic,
            partition=tp.partition,
            first_offset=offsets.start,
            last_offset=offsets.stop - 1,
        )

    async def _keep_life(self, tp: TP, life: Life, wanted: Wanted) -> None:
        topic = self._topics[tp.topic].id
        assert topic is not None
        await self._writer.until_done(
            lambda: write_life(self._store, topic, tp.partition, life), wanted
        )

    def _moved(self, at: _Position, following: int) -> None:
        at.trail.passed(self._clock(), at.next)
        at.next = following
        at.fed = max(at.fed, following)


def _labels(tp: TP) -> tuple[str, str]:
    """The labels of a partition."""
    return tp.topic, str(tp.partition)


def _by_partition(metrics: WorkerMetrics) -> tuple[Gauge, ...]:
    """The gauges that tell of each partition."""
    return (
        metrics.consumer_lag,
        metrics.log_end,
        metrics.behind_seconds,
        metrics.held_events,
        metrics.held_seconds,
    )
