from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from infra.stores.memory import MemoryStore
from lifelong.demo.freshness import FreshnessProbe
from lifelong.demo.plan import LiveRequest
from lifelong.demo.processes import ServiceFailed
from lifelong.demo.stream import Client, LiveResult, LiveStream, in_order
from lifelong.shipped import Purchases
from scorer.client import ScorerUnavailable
from scorer.messages import RankAnswer, RankedItem

FIRST, LAST = 100, 1100
Log = list[tuple[str, int]]
"""What happened, in order: ("sent" | "asked" | "answered", row)."""


class PatientClient(Client):
    """Answers every request in a thread of its own, when others have been sent meanwhile."""

    def __init__(self, answered: Callable[[LiveRequest], None], log: Log) -> None:
        self._answer = answered
        self._log = log
        self._requests: queue.SimpleQueue[LiveRequest | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def ask(self, request: LiveRequest) -> None:
        self._log.append(("asked", request.row))
        self._requests.put(request)

    def check(self) -> None:
        pass

    def finish(self) -> LiveResult:
        self._requests.put(None)
        self._thread.join()
        return LiveResult()

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            self._log.append(("answered", request.row))
            self._answer(request)


@pytest.fixture(scope="module")
def purchases() -> Purchases:
    """1,200 purchases of 20 users."""
    random = np.random.default_rng(3)
    return Purchases(
        users=[f"user-{i}" for i in range(20)],
        items=[f"item-{i}" for i in range(50)],
        user=random.integers(0, 20, 1200).astype(np.int32),
        item=random.integers(0, 50, 1200).astype(np.int32),
        time_ms=np.arange(1200) * 60_000,
        titles={},
    )


@pytest.fixture(scope="module")
def requests(purchases: Purchases) -> list[LiveRequest]:
    """One request in mid-stream for each of ten users."""
    rows = [int(np.flatnonzero(purchases.user[:LAST] == user)[-20 - user]) for user in range(10)]
    none = np.zeros(1, np.int64)
    return [
        LiveRequest(row, np.zeros(1, np.int32), target=0, popularity=none, bought=none)
        for row in sorted(rows)
    ]


@pytest.fixture
def probe() -> Iterator[FreshnessProbe]:
    probe = FreshnessProbe(MemoryStore(), b"b" * 16)
    yield probe
    probe.finish(0)


@pytest.fixture(scope="module")
def log(purchases: Purchases, requests: list[LiveRequest]) -> Log:
    """What a stream over rows [FIRST, LAST) did."""
    log: Log = []
    probe = FreshnessProbe(MemoryStore(), b"b" * 16)
    stream = make_stream(purchases, requests, probe, log)
    stream.run()
    probe.finish(0)
    return log


def make_stream(
    purchases: Purchases,
    requests: list[LiveRequest],
    probe: FreshnessProbe,
    log: Log,
    check: Callable[[], None] = lambda: None,
    rate: float = 0,
    on_progress: Callable[[int], None] = lambda _: None,
) -> LiveStream:
    return LiveStream(
        purchases,
        FIRST,
        LAST,
        requests,
        send=lambda row: log.append(("sent", row)),
        client_of=lambda answered: PatientClient(answered, log),
        probe=probe,
        rate=rate,
        on_progress=on_progress,
        check=check,
    )


def sent(log: Log) -> list[int]:
    return [row for what, row in log if what == "sent"]


def test_every_row_is_sent_exactly_once(log: Log) -> None:
    assert sorted(sent(log)) == list(range(FIRST, LAST))


def test_a_users_rows_keep_their_order(log: Log, purchases: Purchases) -> None:
    rows = np.array(sent(log))
    for user in range(len(purchases.users)):
        of_user = rows[purchases.user[rows] == user]
        assert (np.diff(of_user) > 0).all()


def test_every_request_is_asked_once(log: Log, requests: list[LiveRequest]) -> None:
    asked = [row for what, row in log if what == "asked"]

    assert sorted(asked) == [request.row for request in requests]


def test_the_purchase_asked_about_is_sent_only_after_the_answer(
    log: Log, requests: list[LiveRequest]
) -> None:
    for request in requests:
        assert log.index(("sent", request.row)) > log.index(("answered", request.row))


def test_what_the_user_bought_before_is_sent_before_the_question(
    log: Log, requests: list[LiveRequest], purchases: Purchases
) -> None:
    for request in requests:
        user = purchases.user[request.row]
        earlier = FIRST + np.flatnonzero(purchases.user[FIRST : request.row] == user)
        assert len(earlier) > 0
        asked = log.index(("asked", request.row))
        assert all(log.index(("sent", row)) < asked for row in earlier.tolist())


def test_others_go_on_while_a_user_is_held(
    log: Log, requests: list[LiveRequest], purchases: Purchases
) -> None:
    for request in requests:
        other = next(
            row
            for row in range(request.row + 1, LAST)
            if purchases.user[row] >= 10  # who is never asked about
        )
        assert log.index(("sent", other)) < log.index(("sent", request.row))


def test_without_requests_rows_are_sent_in_order(
    purchases: Purchases, probe: FreshnessProbe
) -> None:
    log: Log = []

    make_stream(purchases, [], probe, log).run()

    assert log == [("sent", row) for row in range(FIRST, LAST)]


def test_progress_ends_with_all_rows(purchases: Purchases, probe: FreshnessProbe) -> None:
    seen: list[int] = []

    make_stream(purchases, [], probe, [], on_progress=seen.append).run()

    assert seen == sorted(seen)
    assert seen[-1] == LAST - FIRST


def test_the_rate_is_not_exceeded(purchases: Purchases, probe: FreshnessProbe) -> None:
    _, seconds = make_stream(purchases, [], probe, [], rate=5000).run()

    # The pace is looked at every 64 rows, and the last look lies up to 64 rows before the end.
    assert (LAST - FIRST - 64) / seconds <= 5000


def test_a_service_that_has_ended_stops_the_stream(
    purchases: Purchases, probe: FreshnessProbe
) -> None:
    def ended() -> None:
        raise ServiceFailed("the worker ended with code 1: it said nothing")

    log: Log = []
    with pytest.raises(ServiceFailed):
        make_stream(purchases, [], probe, log, check=ended).run()
    assert len(sent(log)) < LAST - FIRST


def test_a_client_that_failed_is_told_when_it_is_finished(
    purchases: Purchases, requests: list[LiveRequest]
) -> None:
    client = Client("http://127.0.0.1:9", purchases, lambda _: None, [])
    client.ask(requests[0])

    with pytest.raises(ScorerUnavailable):
        client.finish()


def test_ctrs_are_put_back_into_the_candidates_order() -> None:
    candidates = ["c", "a", "b"]
    ranked = [RankedItem("a", 0.5), RankedItem("b", 0.25), RankedItem("c", 0.125)]
    answer = RankAnswer("ann", "tiny", "1", "none", ranked, unknown_items=[], newer=0)

    assert in_order(answer, candidates).tolist() == [0.125, 0.5, 0.25]
