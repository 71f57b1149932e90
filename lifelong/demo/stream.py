"""The demo's live stream: purchases sent at a rate, while a client asks for rankings in between.

A user who is asked about thinks for a while before that purchase: their earlier events are out,
the purchase itself and everything after it wait until the ranking was answered. So no answer can
have seen the purchase that it is about, and the other users' events flow on meanwhile.
"""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from infra.arrays import F32
from infra.segments import SEGMENT
from lifelong.demo.freshness import FreshnessProbe
from lifelong.demo.plan import LiveRequest
from lifelong.shipped import Purchases
from scorer.client import Outcome, RankClient, Retries
from scorer.messages import RankAnswer

THINK_S: Final = 1.0
"""How long a user who is asked about thinks before the purchase. Three months pass in seconds
here, so that without it a basket's purchases would lie microseconds apart, as they never do."""

LARGE: Final = 3000
"""B of the large requests, which are asked for their latency."""

LARGE_EVERY: Final = 10
"""One large request follows so many small ones."""

FRESHNESS_EVERY: Final = 200
"""One event in so many is followed into rankings, and every one that fills a segment."""

PATIENT: Final = Retries(most=5, share=1.0)
"""A machine with more to do than the demo may have its scorer ask clients to come again."""

PATIENT_S: Final = 30.0
"""Time for a request with its retries: each may take as long as the scorer lets one wait."""

CLIENTS: Final = 2
"""Threads that ask for rankings; enough that no purchase waits long for its turn."""


class Sender(Protocol):
    """What sends the purchase of a row to Kafka."""

    def __call__(self, row: int) -> None: ...


@dataclass
class LiveResult:
    """What was measured while the stream ran."""

    ctrs: dict[int, F32] = field(default_factory=dict)
    """CTRs f32[B] by the request's row, in the order of its candidates."""
    seconds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Latencies by number of candidates, as the client saw them."""
    ask_seconds: float = 0.0
    """Time from the first request to the last answer."""
    told: int = 0
    """Outcomes that the scorer was told."""


class Client:
    """Asks for rankings in threads of its own and notes what came back."""

    def __init__(
        self,
        url: str,
        purchases: Purchases,
        answered: Callable[[LiveRequest], None],
        large: Sequence[str],
    ) -> None:
        """``answered`` is called in a client's thread; ``large`` are the 3,000 candidates."""
        self.result = LiveResult()
        self._url = url
        self._purchases = purchases
        self._answered = answered
        self._large = large
        self._tasks: queue.SimpleQueue[LiveRequest | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._asked = 0
        self._started = 0.0
        self._failure: Exception | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"client-{i}", daemon=True)
            for i in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, request: LiveRequest) -> None:
        """Put a request in line."""
        self._tasks.put(request)

    def check(self) -> None:
        """Raise what ended a client's thread, if one did."""
        if self._failure is not None:
            raise self._failure

    def finish(self) -> LiveResult:
        """Wait for all answers."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self.check()
        return self.result

    def _run(self) -> None:
        try:
            with RankClient(self._url, PATIENT_S, PATIENT) as client:
                while (request := self._tasks.get()) is not None:
                    self._ask(client, request)
        except Exception as error:  # noqa: BLE001  # raised by check() and finish(), in the caller's thread
            self._failure = error

    def _ask(self, client: RankClient, request: LiveRequest) -> None:
        purchases = self._purchases
        user = purchases.users[purchases.user[request.row]]
        time_ms = int(purchases.time_ms[request.row])
        candidates = [purchases.items[code] for code in request.candidates]
        ranking = self._timed(client, user, candidates, time_ms)
        ctrs = in_order(ranking, candidates)
        with self._lock:
            self.result.ctrs[request.row] = ctrs
            self._asked += 1
            large_too = self._asked % LARGE_EVERY == 0
        self._answered(request)
        bought = candidates[request.target]
        outcomes = [Outcome(entry.ctr, entry.item == bought) for entry in ranking.items]
        counted = client.tell(outcomes, ranking.version).counted
        with self._lock:
            self.result.told += counted
        if large_too:
            self._timed(client, user, self._large, time_ms)

    def _timed(
        self, client: RankClient, user: str, candidates: Sequence[str], time_ms: int
    ) -> RankAnswer:
        begin = time.perf_counter()
        ranking = client.rank(user, candidates, time_ms=time_ms)
        end = time.perf_counter()
        with self._lock:
            self._started = self._started or begin
            self.result.seconds[len(candidates)].append(end - begin)
            self.result.ask_seconds = end - self._started
        return ranking


def in_order(ranking: RankAnswer, candidates: Sequence[str]) -> F32:
    """f32[B]: the CTRs of a ranking in the order of its (distinct) candidates."""
    ctr = {entry.item: entry.ctr for entry in ranking.items}
    return np.array([ctr[item] for item in candidates], np.float32)


class LiveStream:
    """Sends rows [first, last) in order, at a rate, holding back the users who are asked about."""

    def __init__(
        self,
        purchases: Purchases,
        first: int,
        last: int,
        requests: Sequence[LiveRequest],
        *,
        send: Sender,
        client_of: Callable[[Callable[[LiveRequest], None]], Client],
        probe: FreshnessProbe,
        rate: float,
        on_progress: Callable[[int], None],
        check: Callable[[], None],
    ) -> None:
        """``check`` raises when a service has ended; ``rate`` 0 means as fast as it goes."""
        self._purchases = purchases
        self._first, self._last = first, last
        self._request_at = {request.row: request for request in requests}
        self._send_row = send
        self._probe = probe
        self._rate = rate
        self._on_progress = on_progress
        self._check = check
        self._held: dict[int, deque[int]] = {}
        self._thinking: list[tuple[float, int]] = []
        self._released: queue.SimpleQueue[LiveRequest] = queue.SimpleQueue()
        self._client = client_of(self._released.put)
        before = np.bincount(purchases.user[:first], minlength=len(purchases.users))
        self._counts = Counter(dict(enumerate(before.tolist())))
        self._sent = 0

    def run(self) -> tuple[LiveResult, float]:
        """Send everything; what the client measured, and the seconds that sending took."""
        begin = time.perf_counter()
        users = self._purchases.user
        for row in range(self._first, self._last):
            if not row % 64:
                self._turn(begin, row - self._first)
            user = int(users[row])
            if user in self._held:
                self._held[user].append(row)
            elif row in self._request_at:
                self._held[user] = deque([row])
                heapq.heappush(self._thinking, (time.perf_counter() + THINK_S, row))
            else:
                self._send(row)
        while self._held:
            self._turn(begin, 0)
            time.sleep(0.001)
        seconds = time.perf_counter() - begin
        self._on_progress(self._sent)
        return self._client.finish(), seconds

    def _turn(self, begin: float, reached: int) -> None:
        """What is due between two events: users who have thought, answers, pace, progress."""
        while True:
            now = time.perf_counter()
            while self._thinking and self._thinking[0][0] <= now:
                _, row = heapq.heappop(self._thinking)
                self._client.ask(self._request_at[row])
            self._release()
            ahead = reached / self._rate - (now - begin) if self._rate else 0
            if ahead <= 0:
                break
            time.sleep(min(ahead, 0.002))
        self._on_progress(self._sent)
        self._client.check()
        self._check()

    def _release(self) -> None:
        while not self._released.empty():
            user = int(self._purchases.user[self._released.get().row])
            for row in self._held.pop(user):
                self._send(row)

    def _send(self, row: int) -> None:
        user = int(self._purchases.user[row])
        self._send_row(row)
        self._sent += 1
        self._counts[user] += 1
        if self._sent % FRESHNESS_EVERY == 0 or self._counts[user] % SEGMENT == 0:
            self._probe.sent(self._purchases.users[user], self._counts[user])
