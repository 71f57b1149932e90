"""What becomes of spans, whether anybody takes them or not."""

from __future__ import annotations

import subprocess
import sys
import time
from io import StringIO
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from infra.settings import TracingSettings
from infra.tracing import MOST_STAGES, MOST_WAITING, Stages, Tracing, open_tracing
from tests.scorer.running import free_port
from tests.trace_receiver import attributes, receiving

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-0"


def counter() -> Counter:
    return Counter("spans", "Spans.", ["outcome"], registry=CollectorRegistry())


def count(spans: Counter, outcome: str) -> float:
    return float(spans.labels(outcome)._value.get())


def tracing_to(
    url: str, spans: Counter | None = None, sample: float = 1.0, timeout_s: float = 30
) -> Tracing:
    settings = TracingSettings(endpoint=url, sample=sample)
    return Tracing(settings, "worker", spans or counter(), timeout_s=timeout_s)


def send(tracing: Tracing, number: int) -> None:
    for _ in range(number):
        span = tracing.begin("one", "internal")
        assert span is not None
        span.end()


def test_nothing_is_traced_unless_asked_for() -> None:
    assert open_tracing(TracingSettings(), "scorer", counter()) is None


def test_packages_that_are_missing_are_named_with_the_extra() -> None:
    program = """
import sys
from prometheus_client import Counter
from infra.errors import SettingsError
from infra.settings import TracingSettings
from infra.tracing import open_tracing
sys.modules["opentelemetry.sdk"] = None
settings = TracingSettings(endpoint="http://127.0.0.1:1")
try:
    open_tracing(settings, "scorer", Counter("a", "A.", ["b"]))
except SettingsError as error:
    print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "tracing.endpoint = 'http://127.0.0.1:1': traces need a package" in told.stdout
    assert "pip install 'lifelong[tracing]'" in told.stdout


def test_spans_are_sent_and_counted() -> None:
    spans = counter()
    with receiving() as receiver:
        tracing = tracing_to(receiver.url, spans)
        send(tracing, 3)
        tracing.close()
    assert [span.name for span in receiver.spans] == ["one"] * 3
    assert receiver.services == {"lifelong-worker"}
    assert (count(spans, "sent"), count(spans, "dropped")) == (3, 0)


@pytest.mark.parametrize(("flag", "sample", "sampled"), [("1", 0.0, True), ("0", 1.0, False)])
def test_a_sender_decides_for_its_own(flag: str, sample: float, sampled: bool) -> None:
    with receiving() as receiver:
        tracing = tracing_to(receiver.url, sample=sample)
        span = tracing.begin("one", "server", {"traceparent": PARENT + flag})
        assert (span is not None) is sampled
        if span is not None:
            assert tracing.headers(span)["traceparent"].split("-")[1] == TRACE
            span.end()
        tracing.close()
    assert [one.trace_id.hex() for one in receiver.spans] == [TRACE] * sampled


def test_a_receiver_that_is_away_costs_spans_which_are_counted_and_said_once(
    logged: StringIO,
) -> None:
    spans, port = counter(), free_port()
    tracing = tracing_to(f"http://127.0.0.1:{port}", spans, timeout_s=0.3)
    for lost in (1, 2):
        send(tracing, 1)
        until(lambda lost=lost: count(spans, "dropped") == lost)
    (line,) = logged.getvalue().splitlines()
    assert "spans are dropped" in line
    with receiving(port) as receiver:
        send(tracing, 1)
        receiver.until(lambda: receiver.spans)
        tracing.close()
    assert count(spans, "sent") == 1
    assert '"dropped": 2' in logged.getvalue().splitlines()[-1]


def test_a_receiver_that_is_slow_holds_nobody_up() -> None:
    spans = counter()
    with receiving() as receiver:
        receiver.answers.clear()
        tracing = tracing_to(receiver.url, spans)
        send(tracing, MOST_WAITING + 100)
        assert count(spans, "dropped") == 100
        receiver.answers.set()
        tracing.close()


def test_what_failed_names_no_user() -> None:
    with receiving() as receiver:
        tracing = tracing_to(receiver.url)
        span = tracing.begin("one", "internal")
        assert span is not None
        stages = Stages(tracing, span)
        with pytest.raises(ValueError, match="ann"), stages.under_way():
            raise ValueError("the record of user 'ann' is truncated")
        tracing.close()
    (sent,) = receiver.spans
    assert sent.status.message == "ValueError: the record of user #49915e0d is truncated"


def test_stages_follow_each_other_and_are_bounded() -> None:
    with receiving() as receiver:
        tracing = tracing_to(receiver.url)
        span = tracing.begin("whole", "internal")
        assert span is not None
        with Stages(tracing, span).under_way() as stages:
            for number in range(MOST_STAGES + 9):
                stages.passed("part", number=number)
        tracing.close()
    (whole,) = receiver.named("whole")
    parts = receiver.named("part")
    assert receiver.below(whole) == ["part"] * MOST_STAGES
    assert [attributes(one)["number"] for one in parts] == list(range(MOST_STAGES))
    ends = [one.end_time_unix_nano for one in parts]
    assert [one.start_time_unix_nano for one in parts[1:]] == ends[:-1]
    assert whole.start_time_unix_nano <= parts[0].start_time_unix_nano


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
