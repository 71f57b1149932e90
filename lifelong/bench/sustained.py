"""``lifelong bench stream --minutes``: what a worker takes for minutes, and how soon events count.

First a light load comes as fast as the worker takes it: events are sent while it works, always some
in front of it, and Kafka removes them soon, so that the topic stays below two gigabytes however
long that lasts. Then, in the same store, the load comes at a share of the rate just measured, and a
sample of events is followed from their sending to where a ranking would see them
(`lifelong.demo.freshness`).
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from infra.errors import SettingsError
from infra.kafka.admin import create_topic
from infra.kafka.clients import producer_config
from infra.kafka.local import LocalKafka
from infra.settings import StoreSettings
from infra.stores import open_store
from lifelong.bench.feed import Ahead, Feed
from lifelong.bench.loads import LOADS, LoadName
from lifelong.bench.stream import OURS, PARTITIONS
from lifelong.bench.worker import BenchedWorker, Look, Run, started
from lifelong.demo.freshness import FreshnessProbe
from lifelong.machine import machine
from lifelong.shipped import BUNDLE
from models.bundle import Bundle
from streaming.files.replay import EventProducer, RatePacer

AHEAD: Final = 1_000_000
"""Events in front of the worker: several of its transactions."""
RETENTION: Final = {"retention_bytes": 128 << 20, "segment_bytes": 32 << 20}
"""Of each partition: three times what is in front of the worker."""
REMOVAL: Final = {"log.retention.check.interval.ms": "5000"}
LOOK_S: Final = 0.5
OFFERED_S: Final = 60.0
"""Longest that the share of the load is offered."""
PATIENCE_S: Final = 300.0
"""For the worker to begin, and to take what is still in front of it."""


def run(name: LoadName, minutes: float, share: float, *, reclustering: bool) -> dict[str, Any]:
    """Measure; the bench's JSON object.

    Args:
        name: the load, one that has no end.
        minutes: how long it comes as fast as the worker takes it.
        share: of the rate measured, at which it comes then.
        reclustering: whether the worker reclusters meanwhile.

    Raises:
        SettingsError: the load ends.
        BrokerError: there is no Apache Kafka to measure with.
    """
    if name == "purchases":
        raise SettingsError("--minutes: there are too few purchases; add --load light or uniform")
    users = LOADS[name, False].users
    seconds = 60 * minutes
    with (
        tempfile.TemporaryDirectory(prefix="lifelong-bench-") as directory,
        LocalKafka(Path(directory) / "kafka", kind="apache", properties=REMOVAL) as kafka,
    ):
        create_topic(kafka.bootstrap, "bench", PARTITIONS, **RETENTION)
        create_topic(kafka.bootstrap, "bench.dead", 1)
        feed = Feed(EventProducer(producer_config(kafka.bootstrap), "bench"), name, users)
        with started(
            Path(directory), kafka.bootstrap, "bench", reclustering=reclustering
        ) as worker:
            taken = _sustain(worker, feed, seconds)
            figures = taken.figures(feed.users)
            offered_s = min(seconds, OFFERED_S)
            before = feed.sent
            rankings = _offer(worker, feed, share * taken.events_per_second, offered_s)
            offered = (feed.sent - before) / offered_s
    figures |= {
        "offered_events_per_second": offered,
        "event_in_rankings_p50_s": float(np.percentile(rankings, 50)),
        "event_in_rankings_p99_s": float(np.percentile(rankings, 99)),
    }
    figures = {key: round(value, 3) for key, value in figures.items()}
    return {
        "machine": machine(),
        "results": [{"name": OURS, "value": round(taken.events_per_second, 1), "unit": "events/s"}],
        "ratios": {},
        "peers": [],
        "tables": [
            {
                "title": f"{minutes:g} minutes, then {share:.0%} of that rate",
                "columns": ["value"],
                "rows": {key: [value] for key, value in figures.items()},
            }
        ],
        "load": {
            "name": name,
            "events": taken.events,
            "users": users,
            "reclustering": "on" if reclustering else "off",
        },
        "figures": figures,
    }


def _sustain(worker: BenchedWorker, feed: Feed, seconds: float) -> Run:
    """What it takes when there is always more; bytes and events are of all that was sent."""
    ahead = Ahead(AHEAD)

    def enough(first: Look, now: Look) -> bool:
        ahead.applied = now.applied
        return now.at - first.at >= seconds

    with feed.flowing(ahead):
        taken = worker.watch(enough, pause_s=LOOK_S, limit_s=seconds + PATIENCE_S)
    # The users who are counted are those of all that was sent.
    all_of_it = worker.watch(
        lambda _, now: now.applied >= feed.sent, pause_s=LOOK_S, limit_s=PATIENCE_S
    )
    return replace(taken, events=all_of_it.events, written=all_of_it.written, kept=all_of_it.kept)


def _offer(worker: BenchedWorker, feed: Feed, rate: float, seconds: float) -> list[float]:
    """Seconds from an event's sending to where rankings see it, of a sample at that rate."""
    store = open_store(StoreSettings(url=f"lmdb://{worker.store}"), read_only=True)
    try:
        digest = Bundle.load(BUNDLE, verify=False).digest
        probe = FreshnessProbe(store, digest, clusters=False)
        with feed.flowing(RatePacer(rate), probe):
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                worker.look()
                time.sleep(LOOK_S)
        return probe.finish(PATIENCE_S).rankings
    finally:
        store.close()
