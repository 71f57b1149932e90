"""Events that are sent at a rate, and how soon one counts in rankings."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from infra.errors import RequestError
from infra.kafka.clients import producer_config
from infra.settings import EventSettings, Settings
from lifelong.loadtest.traffic import PREFIX, Traffic, message
from scorer.client import RankClient, ScorerError
from streaming.files.replay import FLUSH_S, SLICE, TICK_S, EventProducer, RatePacer

PROBE_S: Final = 1.0
"""Pause between two events that are followed into rankings."""

LOOK_S: Final = 0.05
"""Pause between two looks whether one counts."""

UNSEEN_S: Final = 30.0
"""When it is given up."""


@dataclass
class Sent:
    """What became of the events."""

    seconds: float
    sent: int = 0
    acknowledged: int = 0

    @property
    def errors(self) -> float:
        """The share of those of which Kafka did not say that it has them."""
        return 1.0 - self.acknowledged / self.sent if self.sent else 0.0

    def report(self) -> dict[str, Any]:
        """Its figures."""
        return {
            "sent": self.sent,
            "per_s": round(self.sent / self.seconds, 1),
            "acknowledged": self.acknowledged,
        }


@dataclass
class Fresh:
    """Seconds from an event sent to a ranking that knew its user, from outside."""

    seconds: list[float] = field(default_factory=list)
    unseen: int = 0
    users: int = 0
    """Made up for it, one an event."""

    def report(self) -> dict[str, Any]:
        """Its figures."""
        p50, p99 = np.quantile(self.seconds, (0.5, 0.99)) if self.seconds else (None, None)
        return {
            "followed": len(self.seconds) + self.unseen,
            "unseen": self.unseen,
            "p50_s": None if p50 is None else round(float(p50), 3),
            "p99_s": None if p99 is None else round(float(p99), 3),
        }


def producer_of(settings: Settings) -> EventProducer:
    """A producer for the topic of behaviors.

    Raises:
        BrokerError: Kafka does not answer, or has no such topic.
    """
    producer = EventProducer(producer_config(settings.broker), settings.broker.topic)
    producer.check()
    return producer


def send_all(
    producer: EventProducer,
    events: EventSettings,
    traffic: Traffic,
    rate: float,
    seconds: float,
    run: str,
    stop: threading.Event,
) -> Sent:
    """Send events for so long, evenly, or until told to stop."""
    action = events.action_names[0]
    pacer = RatePacer(rate)
    most = np.zeros(SLICE, np.int64)
    sent = Sent(seconds)
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end and not stop.is_set():
        ready = 0 if producer.full else pacer.ready(now, most)
        if not ready:
            producer.poll(0)
            stop.wait(max(TICK_S, min(pacer.pause(now), end - now)))
            continue
        time_ms = time.time_ns() // 1_000_000
        producer.send_messages(
            [
                message(
                    {
                        "event_id": f"{run}-{sent.sent + number}",
                        "user_id": user,
                        "item_id": item,
                        "action": action,
                        "event_time": time_ms,
                    },
                    events,
                )
                for number, (user, item) in enumerate(traffic.of_events(ready))
            ]
        )
        sent.sent += ready
    producer.flush(FLUSH_S)
    sent.acknowledged = producer.delivered
    return sent


def follow(
    producer: EventProducer,
    events: EventSettings,
    client: RankClient,
    item: str,
    run: str,
    stop: threading.Event,
) -> Fresh:
    """Send single events of users whom nobody knows, and ask for rankings until they are known."""
    fresh = Fresh()
    while not stop.is_set():
        user = f"{PREFIX}{run}-{fresh.users}"
        fresh.users += 1
        began = time.monotonic()
        event = {
            "event_id": user,
            "user_id": user,
            "item_id": item,
            "action": events.action_names[0],
            "event_time": time.time_ns() // 1_000_000,
        }
        producer.send_messages([message(event, events)])
        while not _known(client, user, item):
            producer.poll(0)
            if stop.wait(LOOK_S) or time.monotonic() > began + UNSEEN_S:
                break
        else:
            fresh.seconds.append(time.monotonic() - began)
            stop.wait(PROBE_S)
            continue
        if not stop.is_set():  # one that had less time tells nothing
            fresh.unseen += 1
    producer.flush(FLUSH_S)
    return fresh


def _known(client: RankClient, user: str, item: str) -> bool:
    try:
        return client.rank(user, [item]).history != "none"
    except (ScorerError, RequestError):  # which the rankings at their rate count
        return False
