"""Sources through a real Kafka: formats, letters that go back, several sources in a worker."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from faust.types import TP

from infra.behaviors import partition_owner
from infra.errors import BrokerError
from infra.kafka.admin import create_topic
from infra.kafka.local import LocalKafka
from infra.settings import Settings
from infra.stores import open_store
from lifelong.shipped import BUNDLE
from streaming.letters import send_again
from tests.infra.kafka.steps import delete_topic
from tests.streaming.running import (
    NOW,
    WatchedStore,
    WorkerProcess,
    committed,
    create_topics,
    dead_letters_of,
    event,
    headers_of,
    new_settings,
    produce,
    running,
    until,
)

pytestmark = pytest.mark.kafka


def of_source(bootstrap: str, **source: Any) -> Settings:
    """Settings of who reads a source beside another."""
    new = new_settings(bootstrap)
    web = {"name": "web", "topic": new.broker.topic, "format": "cloudevents", **source}
    changes = {"bootstrap": bootstrap, "partitions": 1}
    changes["dead_letter_topic"] = new.broker.dead_letter_topic
    return Settings.model_validate(
        {
            "broker": changes,
            "worker": new.worker.model_dump(),
            "store": {"url": "memory://"},
            "sources": [web, {"name": "other", "topic": "another"}],
        }
    ).reading("web")


def attributes(number: int, kind: str = "click") -> dict[str, str]:
    return {
        "ce_specversion": "1.0",
        "ce_id": str(number),
        "ce_source": "/shop",
        "ce_type": kind,
        "ce_time": "2023-11-14T22:13:20Z",
    }


def data(user: str, item: str) -> bytes:
    return json.dumps({"user_id": user, "item_id": item}).encode()


async def test_events_in_headers_are_applied_and_go_back_with_them(kafka: LocalKafka) -> None:
    settings = of_source(kafka.bootstrap)
    await asyncio.to_thread(create_topics, settings)
    produce(settings, [("a", data("a", "1"))], headers=attributes(1))
    produce(settings, [("a", data("a", "2"))], headers=attributes(2, "kiss"))
    produce(settings, [("a", b"{}")])
    store = WatchedStore()

    async with running(settings, store) as worker:
        await until(lambda: worker.events("rejected") >= 2, "two are refused")
        assert store.counts() == {"a": 1}
        letters = await asyncio.to_thread(dead_letters_of, settings, 2)
        told = [headers_of(letter) for letter in letters]
        assert [of["reason"] for of in told] == ["unknown_action", "bad_format"]
        assert told[0]["header.ce_type"] == "kiss"

        done = await asyncio.to_thread(send_again, settings.broker, "unknown_action")
        assert done.sent == 1
        await until(lambda: worker.events("rejected") >= 3, "it is refused for the same")
        (_, _, again) = await asyncio.to_thread(dead_letters_of, settings, 3)
        assert headers_of(again)["header.ce_type"] == "kiss"
        assert headers_of(again)["reason"] == "unknown_action"


async def test_events_of_one_record_come_once_when_it_is_read_again(kafka: LocalKafka) -> None:
    settings = of_source(kafka.bootstrap, format="json", key="any")
    await asyncio.to_thread(create_topics, settings)
    fields = {"action": "click", "event_time": NOW}
    events = [fields | {"user_id": user, "item_id": user * 3} for user in "abacab"]
    produce(settings, [("x", json.dumps(events).encode())] * 3)
    store = WatchedStore()
    for _ in range(2):
        async with running(settings, store) as worker:
            produce(settings, [("x", json.dumps(events[:1]).encode())])
            await until(lambda: worker.events("applied") >= 1, "the last one is applied")
    assert store.counts() == {"a": 3 * 3 + 2, "b": 2 * 3, "c": 3}


def two_sources(bootstrap: str, **sections: Any) -> tuple[Settings, Settings, Settings]:
    """Settings of who reads clicks, in JSON, and orders, of Segment, which have topics of their own
    with three partitions and two; and those of who reads either.
    """
    new = new_settings(bootstrap, **sections)
    name = new.broker.topic
    clicks = {"name": "clicks", "topic": f"{name}.clicks"}
    orders = {"name": "orders", "topic": f"{name}.orders", "format": "segment"}
    orders |= {"dead_letter_topic": f"{name}.orders.dead"}
    given = new.model_dump()
    given |= {"events": {}, "sources": [clicks, orders]}
    del given["broker"]["topic"]
    settings = Settings.model_validate(given)
    readers = [
        one.model_copy(update={"broker": one.broker.model_copy(update={"partitions": partitions})})
        for one, partitions in zip(settings.readers(), (3, 2), strict=True)
    ]
    for one in readers:
        create_topic(one.broker, one.broker.topic, one.broker.partitions)
        create_topic(one.broker, one.broker.dead_letter_topic, 1)
    return settings, readers[0], readers[1]


def order(user: str, number: int) -> bytes:
    """An order of two products, which are two events; without an id, as `clicked`: only the marks
    can tell repetitions.
    """
    content = {
        "type": "track",
        "userId": user,
        "event": "Order Completed",
        "timestamp": "2023-11-14T22:13:20Z",
        "properties": {"products": [{"product_id": f"{number}"}, {"product_id": "bag"}]},
    }
    return json.dumps(content).encode()


def clicked(user: str, number: int) -> bytes:
    return event(user, number, event_id=None)


def of_topic(reader: Settings) -> set[TP]:
    return {TP(reader.broker.topic, number) for number in range(reader.broker.partitions)}


async def test_a_worker_reads_each_topic_in_its_format(kafka: LocalKafka) -> None:
    settings, clicks, orders = two_sources(kafka.bootstrap)
    users = [f"u{n}" for n in range(20)]
    store = WatchedStore()
    for again in range(2):
        produce(clicks, [(user, clicked(user, 2 * again + n)) for user in users for n in range(2)])
        produce(orders, [(user, order(user, again)) for user in users])
    produce(clicks, [("u0", order("u0", 9))])
    produce(orders, [("u0", b"[1]")])

    async with running(settings, store) as worker:
        await until(lambda: worker.events("applied") == 8 * len(users), "all are applied")
        await until(lambda: worker.events("rejected") == 2, "and the strays refused")
        assert worker.places == of_topic(clicks) | of_topic(orders)
        await until(lambda: sum(committed(clicks).values()) == 81, "clicks are committed")
        await until(lambda: sum(committed(orders).values()) == 41, "orders are committed")
    async with running(settings, store) as again_there:
        produce(orders, [("u1", order("u1", 7))])
        await until(lambda: again_there.events("applied") == 2, "the last one is applied")

    assert store.counts() == {user: 8 + 2 * (user == "u1") for user in users}
    owners = {source.owner for source, _, _ in store.appends}
    assert owners == {partition_owner(*tp) for tp in of_topic(clicks) | of_topic(orders)}
    for one, value in ((clicks, order("u0", 9)), (orders, b"[1]")):
        (letter,) = await asyncio.to_thread(dead_letters_of, one, 1)
        assert (letter.value(), headers_of(letter)["topic"]) == (value, one.broker.topic)


async def test_workers_of_one_group_may_read_some_sources_alone(kafka: LocalKafka) -> None:
    settings, clicks, orders = two_sources(kafka.bootstrap)
    everything, store = of_topic(clicks) | of_topic(orders), WatchedStore()

    async with running(settings, store) as both:
        await until(lambda: both.places == everything, "one has all")
        async with running(settings.narrowed(["orders"]), store) as one:
            await until(lambda: len(one.places) == 1, "another has a share of orders")
            assert one.places < of_topic(orders)
            await until(lambda: both.places == everything - one.places, "the one has the rest")
            produce(clicks, [(f"u{n}", clicked(f"u{n}", n)) for n in range(20)])
            produce(orders, [(f"u{n}", order(f"u{n}", n)) for n in range(20)])
            await until(lambda: sum(store.counts().values()) == 60, "all are applied")
            assert both.events("replayed") == one.events("replayed") == 0


async def test_a_topic_that_is_gone_leaves_the_others_be_and_is_read_when_made_anew(
    kafka: LocalKafka,
) -> None:
    settings, clicks, orders = two_sources(kafka.bootstrap)
    store = WatchedStore()
    produce(orders, [("u1", order("u1", n)) for n in range(5)])

    async with running(settings, store) as worker:
        agent = worker.app.batch_agent
        await until(lambda: store.counts() == {"u1": 10}, "orders are applied")
        await agent.check()
        await asyncio.to_thread(delete_topic, kafka.bootstrap, orders.broker.topic)
        with pytest.raises(BrokerError, match=f"no topic {orders.broker.topic}"):
            await agent.check()
        agent._misplaced(of_topic(clicks))
        produce(clicks, [("u1", clicked("u1", n)) for n in range(3)])
        await until(lambda: store.counts() == {"u1": 13}, "clicks are placed and applied")
        create_topic(orders.broker, orders.broker.topic, orders.broker.partitions)
        await agent.check()
        produce(orders, [("u1", order("u1", 10 + n)) for n in range(7)])
        await until(lambda: store.counts() == {"u1": 27}, "orders of the new topic are applied")
    assert worker.events("replayed") == 0


USERS = 100


def rounds(
    ended: threading.Event, made: Callable[[str, int], bytes]
) -> Iterator[tuple[str, bytes]]:
    """Whole rounds of one record for each user, as many as begin before the end."""
    for number in itertools.takewhile(lambda _: not ended.is_set(), itertools.count()):
        for user in range(USERS):
            yield f"u{user}", made(f"u{user}", number)
        time.sleep(0.1)


@pytest.mark.slow
async def test_workers_of_several_sources_killed_in_mid_stream_lose_and_double_nothing(
    kafka: LocalKafka, warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: two workers start, and the killed one's partitions wait for its session to end."""
    settings, clicks, orders = two_sources(
        kafka.bootstrap,
        store={"url": f"lmdb://{tmp_path / 'store'}"},
        bundle={"path": str(BUNDLE)},
        log={"format": "json"},
        worker={"session_timeout_s": 3.0},
    )
    killed = threading.Event()
    with ExitStack() as stack:
        stays, goes = (
            stack.enter_context(WorkerProcess(settings, tmp_path / f"log{n}", warm))
            for n in range(2)
        )
        await until(lambda: stays.ready() and goes.ready(), "both are ready")
        sending = asyncio.gather(
            asyncio.to_thread(produce, clicks, rounds(killed, clicked)),
            asyncio.to_thread(produce, orders, rounds(killed, order)),
        )
        try:
            await asyncio.sleep(1.0)
            goes.end(signal.SIGKILL)
            await asyncio.sleep(0.5)
        finally:
            killed.set()
            sent = await sending
        await until(lambda: sum(committed(clicks).values()) == sent[0], "clicks are committed")
        await until(lambda: sum(committed(orders).values()) == sent[1], "orders are committed")
        assert stays.end() == 0

    store = open_store(settings.store)
    users = store.users(b"", 1000).users
    counts = [one.version.count for one in store.sequences(users) if one is not None]
    store.close()
    clicks_sent, orders_sent = sent
    assert (len(counts), set(counts)) == (USERS, {(clicks_sent + 2 * orders_sent) // USERS})
