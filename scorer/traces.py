"""The trace of a ranking request: one span, whichever protocol brought it, and one for each stage.

    admission    until it was taken on, its body read
    waiting      for its turn to compute
    decode       its body, and its candidates looked up
    store        the user read
    features     what the model is fed
    model        run
    explain      where that was asked for
    encode       the answer's body

A request for several users has features and model once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from structlog.contextvars import bind_contextvars

from infra.tracing import TRACEPARENT, Attributes, Stages, Tracing
from models.bundle import Bundle
from scorer.messages import HistoryKind

if TYPE_CHECKING:
    from opentelemetry.trace import Span

T = TypeVar("T")
Asked = TypeVar("Asked")


class RequestTrace(Stages):
    """The spans of one ranking request that is traced."""

    def __init__(self, tracing: Tracing, span: Span) -> None:
        super().__init__(tracing, span)
        self.header = tracing.headers(span)[TRACEPARENT]
        """What names its span, as a traceparent."""
        self._rankings = self._candidates = self._newer = 0
        self._degraded = False

    def computing(self, job: Callable[[Asked], T]) -> Callable[[Asked], T]:
        """A job that tells how long it waited, and when its answer was made."""

        def traced(asked: Asked) -> T:
            self.passed("waiting")
            answer = job(asked)
            self.passed("encode")
            return answer

        return traced

    def ranked(
        self, bundle: Bundle, history: HistoryKind, newer: int, candidates: int, *, degraded: bool
    ) -> None:
        """Note what a user was ranked with."""
        self._rankings += 1
        self._candidates += candidates
        self._newer += newer
        self._degraded |= degraded
        self.about |= {
            "lifelong.rankings": self._rankings,
            "lifelong.candidates": self._candidates,
            "lifelong.newer": self._newer,
            "lifelong.degraded": self._degraded,
            "lifelong.system": bundle.manifest.system,
            "lifelong.bundle.version": bundle.version,
            "lifelong.history": history,
        }

    def answered(self, name: str, about: Attributes, *, failed: bool) -> None:
        """Note that the request is over.

        Args:
            name: of the span: method and route.
            about: what the protocol tells of the answer.
            failed: whether the scorer is to blame for what it was.
        """
        self._span.update_name(name)
        self.about |= about
        self.end("answered with an error" if failed else None)


this_trace: ContextVar[RequestTrace | None] = ContextVar("this_trace", default=None)
"""The trace of the request that the current task answers; None: it has none."""


def begin_trace(tracing: Tracing, headers: Mapping[str, str]) -> RequestTrace | None:
    """The trace of a request that begins, by its headers; None: it is not sampled. What is logged
    of the request names it from now on.
    """
    span = tracing.begin("rank", "server", headers)
    trace = None if span is None else RequestTrace(tracing, span)
    this_trace.set(trace)
    if trace is not None:
        bind_contextvars(trace_id=trace.trace_id)
    return trace
