"""Traces of a worker: from an event's Kafka headers to the interests that it led to.

    process TOPIC     a transaction, which takes thousands of events, of many traces: it begins a
                      trace of its own, and is linked to the spans that the sampled ones name in
                      their header ``traceparent``
      decode, append, dead letters
    store TOPIC       such an event, in its sender's trace, linked to the transaction
    recluster         a batch of users, linked to the transactions that sealed their segments
      extract, write

Headers are looked at only here, so only where something is traced. Which transaction sealed a
user's segment is known by the time under which the store has the user as due, which is that of the
append; nothing more is stored, and what another worker sealed is linked to nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from infra.metrics import WorkerMetrics
from infra.settings import Settings
from infra.tracing import TRACEPARENT, Stages, Tracing, open_tracing
from streaming.transport import Decoding, FetchedBatch, TracedEvent

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext

    from streaming.events.rejects import Reject
    from streaming.fetching import Record

MOST_LINKS: Final = 32
"""Events of a transaction that are traced, and transactions that a batch of users is linked to."""

MOST_DECODED: Final = 16
"""Batches of a transaction whose decoding is told of."""

MOST_SEALING: Final = 4096
"""Transactions that are remembered for what they sealed: an hour of them under a light load."""

_SAMPLED: Final = frozenset(b"%x" % digit for digit in range(1, 16, 2))


class TransactionTrace(Stages):
    """The spans of one transaction that is traced."""

    def __init__(
        self, traces: WorkerTraces, tracing: Tracing, span: Span, batches: Sequence[FetchedBatch]
    ) -> None:
        decodings = [(one, one.decoding) for one in batches if one.decoding is not None]
        super().__init__(tracing, span, max((of.ended_ns for _, of in decodings), default=None))
        for batch, decoding in decodings[:MOST_DECODED]:
            tracing.within(
                span, "decode", decoding.began_ns, decoding.ended_ns, {"events": len(batch.records)}
            )
        self._traces = traces
        self._decodings = decodings
        self.about = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.destination.name": _topics(batches),
            "messaging.batch.message_count": sum(len(one.records) for one in batches),
            "lifelong.partitions": len({one.tp for one in batches}),
        }

    def seals_at(self, now_ms: int) -> None:
        """Note under which time its events are appended: who is due since then is due by it."""
        self._traces.remember(now_ms, self._span.get_span_context())

    def stored(
        self, applied: int, rejects: Iterable[tuple[FetchedBatch, Sequence[Reject]]]
    ) -> None:
        """Note what became of its events: how many are in sequences by it, and which are not."""
        reasons = {
            (batch.tp, reject.offset): reject.reason.value for batch, of in rejects for reject in of
        }
        self.about |= {"lifelong.applied": applied, "lifelong.rejected": len(reasons)}
        events = [(one, of, event) for one, of in self._decodings for event in of.events]
        for batch, decoding, event in events[:MOST_LINKS]:
            self._store(batch, decoding, event, reasons.get((batch.tp, event.offset)))

    def _store(
        self, batch: FetchedBatch, decoding: Decoding, event: TracedEvent, reason: str | None
    ) -> None:
        topic = batch.tp.topic
        span = self._tracing.begin(
            f"store {topic}",
            "consumer",
            event.parent,
            [self._span.get_span_context()],
            decoding.began_ns,
        )
        if span is None:
            return
        span.set_attributes(
            {
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.destination.name": topic,
                "messaging.destination.partition.id": str(batch.tp.partition),
                "messaging.kafka.offset": event.offset,
            }
        )
        if reason is not None:
            self._tracing.fail(span, f"dead letter: {reason}")
        span.end(self.now_ns())


class WorkerTraces:
    """Makes the spans of a worker; for any thread."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._sealing: dict[int, SpanContext] = {}
        """What sealed segments at a time, ms since epoch, the first of them first."""

    def decoded(self, records: Sequence[Record], began_ns: int, ended_ns: int) -> Decoding:
        """What is to be known of a batch that was decoded."""
        return Decoding(began_ns, ended_ns, list(self._traced(records)))

    def _traced(self, records: Sequence[Record]) -> Iterator[TracedEvent]:
        left = MOST_LINKS
        for record in records:
            for name, value in record.headers:
                # Most are not sampled, which the last digit of their flags tells.
                if name == TRACEPARENT and (value or b"")[54:55] in _SAMPLED:
                    break
            else:
                continue
            parent = self._tracing.sampled(
                {name: (value or b"").decode("latin-1") for name, value in record.headers}
            )
            if parent is not None:
                yield TracedEvent(record.offset, parent)
                left -= 1
                if not left:
                    return

    @contextlib.contextmanager
    def transaction(self, batches: Sequence[FetchedBatch]) -> Iterator[TransactionTrace | None]:
        """The trace of a transaction, which is over when the block is; None: it is not sampled.
        What is logged within names it.
        """
        decodings = [one.decoding for one in batches if one.decoding is not None]
        span = self._tracing.begin(
            f"process {_topics(batches)}",
            "consumer",
            links=[event.parent for one in decodings for event in one.events][:MOST_LINKS],
            began_ns=min((one.began_ns for one in decodings), default=None),
        )
        if span is None:
            yield None
            return
        with TransactionTrace(self, self._tracing, span, batches).under_way() as trace:
            yield trace

    @contextlib.contextmanager
    def reclustering(self, since: Sequence[int]) -> Iterator[Stages | None]:
        """The trace of a batch of users, who are due since those times, ms since epoch; None: no
        transaction that is traced made them due.
        """
        sealing = {id(one): one for time in since if (one := self._sealing.get(time)) is not None}
        span = None
        if sealing:
            links = list(sealing.values())[:MOST_LINKS]
            span = self._tracing.begin("recluster", "internal", links=links)
        if span is None:
            yield None
            return
        with Stages(self._tracing, span).under_way() as trace:
            trace.about = {"lifelong.users": len(since)}
            yield trace

    def remember(self, now_ms: int, transaction: SpanContext) -> None:
        """Note that a transaction seals segments under a time."""
        self._sealing[now_ms] = transaction
        if len(self._sealing) > MOST_SEALING:
            del self._sealing[next(iter(self._sealing))]

    def close(self) -> None:
        """Send what waits; see `Tracing.close`."""
        self._tracing.close()


def _topics(batches: Sequence[FetchedBatch]) -> str:
    """The names of the topics that batches are of."""
    return ", ".join(sorted({one.tp.topic for one in batches}))


def open_traces(settings: Settings, metrics: WorkerMetrics) -> WorkerTraces | None:
    """What makes the spans of a worker; None: nothing is traced. See `open_tracing`."""
    tracing = open_tracing(settings.tracing, "worker", metrics.spans)
    return None if tracing is None else WorkerTraces(tracing)
