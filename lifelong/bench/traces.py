"""``python -m lifelong.bench.traces``: what tracing costs where it is off, and where it is on.

The thread's own time, since the machine may have much else to do. Nobody takes the spans.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable
from typing import Final

from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from prometheus_client import CollectorRegistry

from infra.metrics import WorkerMetrics
from infra.settings import TracingSettings
from infra.tracing import TRACEPARENT, Tracing
from scorer.traces import begin_trace, this_trace
from streaming.fetching import Records
from streaming.traces import WorkerTraces

RECORDS: Final = 4000
STAGES: Final = ("admission", "waiting", "decode", "store", "features", "model", "encode")
PARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
NOWHERE: Final = "http://127.0.0.1:9"


def main() -> None:
    """Print a line for each case."""
    metrics = WorkerMetrics(CollectorRegistry())
    settings = TracingSettings(endpoint=NOWHERE, sample=0.0)
    tracing = Tracing(settings, "worker", metrics.spans, timeout_s=0.1)
    traces = WorkerTraces(tracing)

    def ranked(flag: str) -> None:
        trace = begin_trace(tracing, {TRACEPARENT: PARENT + flag})
        if trace is not None:
            for stage in STAGES:
                trace.passed(stage)
            trace.answered("POST /v1/rank", {}, failed=False)

    _print("off: a ranking, ns", 1e9 * (_best(_off, 300_000) - _best(_nothing, 300_000)))
    _print("on: a ranking that is not sampled, us", 1e6 * _best(lambda: ranked("0"), 5000))
    _print("on: a ranking that is, us", 1e6 * _best(lambda: ranked("1"), 500))
    for what, header in (("without headers", ""), ("with one that is not sampled", PARENT + "0")):
        records = _records(header)
        seconds = _best(lambda records=records: traces.decoded(records, 0, 1), 20)  # type: ignore[misc]
        _print(f"on: a record {what}, ns", 1e9 * seconds / RECORDS)
    tracing.close()


def _off() -> None:
    """What a request's way has of traces: four looks, in admission, service and twice the ranker,
    and six questions what came of them.
    """
    for looks in (1, 1, 2, 2):
        trace = this_trace.get()
        for _ in range(looks):
            if trace is not None:
                return


def _nothing() -> None:
    """A call."""


def _best(call: Callable[[], object], number: int) -> float:
    """Seconds of one of so many calls, at best."""
    return min(timeit.repeat(call, number=number, repeat=7, timer=time.thread_time)) / number


def _records(header: str) -> Records:
    """What a fetch gives, as aiokafka parses it."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 10_000_000)
    headers = [(TRACEPARENT, header.encode())] if header else []
    for offset in range(RECORDS):
        builder.append(offset, 0, b"user-%d" % offset, b"x" * 160, headers)
    return list(DefaultRecordBatch(bytes(builder.build())))


def _print(what: str, value: float) -> None:
    print(f"{what}: {value:.0f}")


if __name__ == "__main__":
    main()
