"""Traces: what a request, or a transaction of events, went through, as spans for an OTLP receiver.

OpenTelemetry's API and SDK as they are, known here alone, and imported only where
``tracing.endpoint`` is set: a process that traces nothing has none of it. Spans wait in a bounded
queue for a thread that sends them; where the receiver is away they are dropped and counted, and
nobody waits. No span names a user or an item.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from urllib.parse import urlsplit

from structlog.contextvars import bound_contextvars

from infra.errors import SettingsError, typed_line
from infra.settings import TracingSettings
from infra.telemetry import get_logger, without_users

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.trace import Span, SpanContext
    from prometheus_client import Counter

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

MOST_WAITING: Final = 4096
"""Spans that may wait to be sent, some megabytes; the next are dropped."""

END_S: Final = 2.0
"""Time for what waits to be sent when a process ends."""

SLOW_SAID_S: Final = 3600.0
"""How often it is said that a receiver takes spans, and not all of them."""

MOST_STAGES: Final = 64
"""Stages of one whole that are told of, at most: a request may rank for thousands of users."""

Attributes = Mapping[str, str | bool | float]
Kind = Literal["server", "consumer", "internal"]

log = get_logger(__name__)


def open_tracing(settings: TracingSettings, service: str, spans: Counter) -> Tracing | None:
    """What makes the spans of this process, or None where nothing is traced.

    Args:
        settings: where they go, and how many.
        service: who says it: "scorer" or "worker".
        spans: counts them, by outcome.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """
    if settings.endpoint is None:
        return None
    try:
        return Tracing(settings, service, spans)
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"tracing.endpoint = {settings.endpoint!r}: traces need a package that is not installed"
            f" ({error.name}); pip install 'lifelong[tracing]', or leave the setting out"
        ) from None


class Tracing:
    """Makes spans and has them sent. One a process; its methods are for any thread."""

    def __init__(
        self,
        settings: TracingSettings,
        service: str,
        spans: Counter,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Begin to send.

        Args:
            settings: `TracingSettings.endpoint` is set.
            service: see `open_tracing`.
            spans: the same.
            timeout_s: time in which the receiver must have taken what it is sent, tries included;
                None: what OpenTelemetry's own settings say, 10 s.
        """
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        assert settings.endpoint is not None
        # What it says at every try we say once (`_Outage`).
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        endpoint = traces_url(settings.endpoint)
        self._outage = _Outage(endpoint, spans)
        self._provider = TracerProvider(
            sampler=_sampler(settings.sample),
            resource=Resource.create(
                {
                    "service.name": f"lifelong-{service}",
                    "service.version": version("lifelong"),
                    "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
                }
            ),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint, timeout=timeout_s)
        self._provider.add_span_processor(_processor(exporter, self._outage))
        self._tracer = self._provider.get_tracer("lifelong")
        self._propagator = TraceContextTextMapPropagator()
        self._trace = trace
        self._kinds: dict[Kind, trace.SpanKind] = {
            "server": trace.SpanKind.SERVER,
            "consumer": trace.SpanKind.CONSUMER,
            "internal": trace.SpanKind.INTERNAL,
        }
        self._failed = trace.StatusCode.ERROR
        # Never what is current: none of our spans is, and a library's is none of ours.
        self._nowhere = Context()

    def begin(
        self,
        name: str,
        kind: Kind,
        parent: Mapping[str, str] | SpanContext | None = None,
        links: Sequence[SpanContext] = (),
        began_ns: int | None = None,
    ) -> Span | None:
        """A span that is under way; None: it is not sampled.

        Args:
            parent: the headers that came (traceparent, tracestate), or what another span is known
                by; None: it begins a trace.
            links: other spans that it is about. One that is sampled has this one sampled, too.
            began_ns: since when, ns since epoch; None: now.
        """
        span = self._tracer.start_span(
            name,
            self._context(parent),
            self._kinds[kind],
            links=[self._trace.Link(link) for link in links],
            start_time=began_ns,
        )
        return span if span.is_recording() else None

    def within(
        self, parent: Span, name: str, began_ns: int, ended_ns: int, attributes: Attributes
    ) -> None:
        """Tell of a part of a span, once it is over."""
        span = self._tracer.start_span(
            name,
            self._trace.set_span_in_context(parent),
            attributes=dict(attributes),
            start_time=began_ns,
        )
        span.end(ended_ns)

    def fail(self, span: Span, why: str) -> None:
        """Have the span be told as one that failed; ``why`` may name users, the span does not."""
        span.set_status(self._failed, without_users(why))

    def sampled(self, headers: Mapping[str, str]) -> SpanContext | None:
        """The span that headers name as their sender's; None: they name none that is sampled."""
        named = self._propagator.extract(headers, self._nowhere)
        context = self._trace.get_current_span(named).get_span_context()
        return context if context.trace_flags.sampled else None

    def headers(self, span: Span) -> dict[str, str]:
        """The headers that name a span."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(span))
        return carrier

    def close(self) -> None:
        """Send what waits, within `END_S`; what is not sent by then is lost."""
        # In a thread, since the SDK waits for as long as the receiver may take.
        ending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(END_S)
        if self._outage.waiting:
            log.warning("traces were not all sent", spans=self._outage.waiting)

    def _context(self, parent: Mapping[str, str] | SpanContext | None) -> Context:
        if parent is None:
            return self._nowhere
        if isinstance(parent, self._trace.SpanContext):
            named = self._trace.NonRecordingSpan(parent)
            return self._trace.set_span_in_context(named, self._nowhere)
        return self._propagator.extract(parent, self._nowhere)


class Stages:
    """A span whose stages follow each other: each is told of when it is over.

    For one thread after the other, as a request or a transaction goes through them.
    """

    def __init__(self, tracing: Tracing, span: Span, began_ns: int | None = None) -> None:
        self._tracing = tracing
        self._span = span
        # A clock that never jumps, told as time since epoch.
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()
        self._reached = self.now_ns() if began_ns is None else began_ns
        self._stages = 0
        self.about: dict[str, str | bool | float] = {}
        """What is told of it in the end."""

    @property
    def trace_id(self) -> str:
        """The id of the trace, as logs and headers have it."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def now_ns(self) -> int:
        """The time, ns since epoch."""
        return self._epoch_ns + time.perf_counter_ns()

    def passed(self, stage: str, **attributes: str | bool | float) -> None:
        """Note that all since the last stage was this one, and is over."""
        now = self.now_ns()
        if self._stages < MOST_STAGES:
            self._tracing.within(self._span, stage, self._reached, now, attributes)
        self._stages += 1
        self._reached = now

    @contextlib.contextmanager
    def under_way(self) -> Iterator[Self]:
        """A block with which it is over; what is logged within names the trace."""
        failure = None
        try:
            with bound_contextvars(trace_id=self.trace_id):
                yield self
        except BaseException as error:
            failure = typed_line(error)
            raise
        finally:
            self.end(failure)

    def end(self, failure: str | None = None) -> None:
        """Note that it is over; ``failure``: why it failed, if it did."""
        self._span.set_attributes(self.about)
        if failure is not None:
            self._tracing.fail(self._span, failure)
        self._span.end()


def traces_url(endpoint: str) -> str:
    """Where a receiver takes traces: OTLP's path, unless the endpoint has one.

    >>> traces_url("http://127.0.0.1:4318/")
    'http://127.0.0.1:4318/v1/traces'
    """
    return endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"


class _Outage:
    """How many spans wait, and were dropped; that the receiver is away, or slow, is said once."""

    def __init__(self, endpoint: str, spans: Counter) -> None:
        self._endpoint = endpoint
        self._sent, self._dropped = spans.labels("sent"), spans.labels("dropped")
        self._lock = threading.Lock()
        self._lost = 0
        """Spans dropped since it was last told how many."""
        self._quiet_until = -math.inf
        self._away = False
        self.waiting = 0

    def admit(self) -> bool:
        """Whether there is room for one more span; there is not where the receiver is slow."""
        with self._lock:
            if self.waiting < MOST_WAITING:
                self.waiting += 1
                return True
        self._drop(1)
        return False

    def sent(self, spans: int) -> None:
        """Note that the receiver took some."""
        with self._lock:
            self.waiting -= spans
            back, self._away = self._away, False
            lost = self._lost
            if back:
                self._lost, self._quiet_until = 0, -math.inf
        self._sent.inc(spans)
        if back:
            log.info("traces are taken again", endpoint=self._endpoint, dropped=lost)

    def failed(self, spans: int) -> None:
        """Note that it did not take some, which are dropped."""
        with self._lock:
            self.waiting -= spans
            self._away = True
        self._drop(spans)

    def _drop(self, spans: int) -> None:
        self._dropped.inc(spans)
        with self._lock:
            self._lost += spans
            now = time.monotonic()
            if now < self._quiet_until:
                return
            # Until it is back; where it is there and slow, once an hour.
            self._quiet_until = math.inf if self._away else now + SLOW_SAID_S
        log.warning(
            "traces are not taken, spans are dropped until they are; is there a receiver of OTLP"
            " over HTTP, and is it fast enough?",
            endpoint=self._endpoint,
        )


def _sampler(share: float) -> Sampler:
    """Whoever has a parent does as it says; others do as what they are about, or by chance."""
    from opentelemetry.sdk.trace.sampling import (
        ALWAYS_ON,
        ParentBased,
        Sampler,
        SamplingResult,
        TraceIdRatioBased,
    )

    class LinkedOrByChance(Sampler):
        chance = TraceIdRatioBased(share)

        def should_sample(  # type: ignore[no-untyped-def,override]  # as the parent's
            self, parent_context, trace_id, name, kind=None, attributes=None, links=None, **more
        ) -> SamplingResult:
            linked = any(link.context.trace_flags.sampled for link in links or ())
            return (ALWAYS_ON if linked else self.chance).should_sample(
                parent_context, trace_id, name, kind, attributes, links, **more
            )

        def get_description(self) -> str:
            return "LinkedOrByChance"

    return ParentBased(LinkedOrByChance())


def _processor(exporter: SpanExporter, outage: _Outage) -> SpanProcessor:
    """The SDK's, which counts what it sends and has room for so many spans, not one more."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )

    class Counted(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = SpanExportResult.FAILURE
            try:
                result = exporter.export(spans)
            finally:
                taken = result is SpanExportResult.SUCCESS
                (outage.sent if taken else outage.failed)(len(spans))
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return exporter.force_flush(timeout_millis)

    class Bounded(BatchSpanProcessor):
        def on_end(self, span: Any) -> None:
            if outage.admit():
                super().on_end(span)

    return Bounded(Counted(), max_queue_size=MOST_WAITING, schedule_delay_millis=1000)
