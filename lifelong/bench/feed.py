"""A load that is sent while it is measured, so that no topic has to hold all of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from infra.arrays import I64
from infra.store import wall_clock_ms
from lifelong.bench.loads import ITEMS, SEED, LoadName, draw_users
from lifelong.demo.freshness import FreshnessProbe
from streaming.files.replay import (
    SLICE,
    TICK_S,
    BehaviorEvent,
    EventProducer,
    Message,
    Pacer,
)

DRAWN: Final = 1 << 18
"""Events drawn at once."""

FOLLOWED: Final = 200
"""One event in so many is followed into rankings."""

_encode: Final = msgspec.json.Encoder().encode


class Ahead:
    """A pacer: as much as keeps so many events in front of the worker, which is never idle then,
    and reads them before Kafka removes them.
    """

    def __init__(self, events: int) -> None:
        self.applied = 0.0
        """How far the worker is; whoever watches it tells."""
        self._events = events
        self._sent = 0

    def ready(self, now: float, times: npt.NDArray[np.int64]) -> int:  # noqa: ARG002
        count = min(len(times), max(0, int(self.applied) + self._events - self._sent))
        self._sent += count
        return count

    def pause(self, now: float) -> float:  # noqa: ARG002
        return TICK_S


class Feed:
    """Events of a load without end; what was sent before counts on when it is gone on with."""

    def __init__(self, producer: EventProducer, name: LoadName, users: int) -> None:
        self._producer = producer
        self._drawn = _draw(name, users)
        self._counts = np.zeros(users, np.int64)

    @property
    def sent(self) -> int:
        """Events handed to Kafka."""
        return self._producer.sent

    @property
    def users(self) -> int:
        """How many users they are of."""
        return int(np.count_nonzero(self._counts))

    @contextmanager
    def flowing(self, pacer: Pacer, probe: FreshnessProbe | None = None) -> Iterator[None]:
        """Events are sent in a thread of its own until this is left; the probe follows some.

        Raises:
            BrokerError: some did not arrive.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
            sending = pool.submit(self._send, pacer, probe, stop)
            try:
                yield
            finally:
                stop.set()
            sending.result()
        self._producer.close()

    def _send(self, pacer: Pacer, probe: FreshnessProbe | None, stop: threading.Event) -> None:
        any_time = np.zeros(SLICE, np.int64)
        rest = np.zeros(0, np.int64)
        while not stop.is_set():
            now = time.monotonic()
            ready = pacer.ready(now, any_time)
            if not ready:
                stop.wait(max(TICK_S, pacer.pause(now)))
                continue
            while len(rest) < ready:
                rest = np.concatenate([rest, next(self._drawn)])
            drawn, rest = rest[:ready], rest[ready:]
            first = self.sent
            if probe is not None:
                for place in range(-first % FOLLOWED, ready, FOLLOWED):
                    user = drawn[place]
                    count = self._counts[user] + np.count_nonzero(drawn[: place + 1] == user)
                    probe.sent(_name(user), int(count))
            self._producer.send_messages(_messages(drawn, first))
            np.add.at(self._counts, drawn, 1)


def _draw(name: LoadName, users: int) -> Iterator[I64]:
    rng = np.random.default_rng(SEED)
    while True:
        yield draw_users(name, users, DRAWN, rng)


def _messages(users: I64, first: int) -> list[Message]:
    now = wall_clock_ms()
    return [
        {
            "key": (user := _name(code)).encode(),
            "value": _encode(
                BehaviorEvent(f"event-{place}", user, f"item-{place % ITEMS}", "purchase", now)
            ),
        }
        for place, code in enumerate(users.tolist(), first)
    ]


def _name(user: int) -> str:
    return f"user-{user}"
