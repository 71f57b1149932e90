from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.behaviors import Source, pack_behavior, partition_source
from infra.errors import StoreFull
from infra.kafka.admin import topic_id
from infra.kafka.local import LocalKafka
from infra.kafka.mock import MockCluster
from infra.settings import BrokerSettings, RegistrySettings, Settings, StoreSettings
from infra.store import Append, Group
from infra.stores import open_store
from lifelong.checks import run_checks
from tests.aerospike_double import (
    AerospikeDouble,
    AerospikeServer,
    aerospike_server,
    double,
    refuse_writes,
)
from tests.schema_registry import RegistryDouble
from tests.streaming.kafka_harm import delete_records, send_in_transaction, transactional
from tests.streaming.running import PATIENCE_S, create_topics, event, new_settings, produce

__all__ = ["aerospike_server", "double"]


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """A broker that answers, without topics."""
    cluster = MockCluster()
    yield cluster.bootstrap
    cluster.close()


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    """Another broker, for a test that makes topics."""
    cluster = MockCluster()
    yield cluster
    cluster.close()


@pytest.fixture
def settings(broker: str, tmp_path: Path) -> Settings:
    """An LMDB store that nobody has made."""
    return Settings(
        broker=BrokerSettings(bootstrap=broker),
        store=StoreSettings(url=f"lmdb://{tmp_path / 'store'}", name="shop", ttl_s=60),
    )


def check(settings: Settings, name: str) -> dict[str, Any]:
    """What is found of one thing."""
    checks = run_checks(settings, quiet=True)["checks"]
    found: dict[str, Any] = next(check for check in checks if check["name"] == name)
    return found


def check_store(settings: Settings) -> dict[str, Any]:
    """What is found of the store."""
    return check(settings, "store")


def test_a_store_that_is_not_there_is_told_and_not_made(settings: Settings, tmp_path: Path) -> None:
    found = check_store(settings)

    assert not found["ok"]
    assert "there is no store" in found["detail"]
    assert "start a worker" in found["detail"]
    assert list(tmp_path.iterdir()) == []


def test_a_store_says_which_it_is(settings: Settings) -> None:
    store = open_store(settings.store)
    assert store.identity is not None
    store.close()

    found = check_store(settings)

    assert found["ok"]
    assert "is empty" in found["detail"]
    assert f"shop, id {store.identity.id}" in found["detail"]
    assert "ttl_s 60" in found["detail"]


def test_a_store_with_users_says_so(settings: Settings) -> None:
    store = open_store(settings.store)
    append = Append("ann", [pack_behavior(1, 1, 0, 0, 2)], [0], [0])
    store.append([Group(Source(1, 1), [append])], 1)
    store.close()

    assert "has users" in check_store(settings)["detail"]


def test_a_store_that_is_another_one_is_told(settings: Settings) -> None:
    open_store(settings.store).close()
    other = settings.store.model_copy(update={"id": "0" * 32})

    found = check_store(settings.model_copy(update={"store": other}))

    assert not found["ok"]
    assert "store.id" in found["detail"]


def test_looking_changes_nothing_of_what_a_store_says_of_itself(settings: Settings) -> None:
    open_store(settings.store, actions=("view", "click")).close()
    shorter = settings.store.model_copy(update={"ttl_s": 5})
    events = settings.events.model_copy(update={"action_names": ("view", "click", "a typo")})

    found = check_store(settings.model_copy(update={"store": shorter, "events": events}))

    assert found["ok"]
    store = open_store(settings.store, read_only=True)
    identity = store.identity
    store.close()
    assert identity is not None
    assert (identity.ttl_s, identity.actions) == (60, ("view", "click"))


def test_a_store_that_cannot_be_written_is_told(settings: Settings) -> None:
    url = f"{settings.store.url}?max_size={256 * 1024}"
    small = settings.store.model_copy(update={"url": url})
    store = open_store(small)
    with contextlib.suppress(StoreFull):
        for number in range(1000):
            store.put_bookmark(f"{number}", bytes(1000))
    store.close()

    found = check_store(settings.model_copy(update={"store": small}))

    assert not found["ok"]
    assert "raise max_size" in found["detail"]


def test_a_store_that_is_nearly_full_is_told(settings: Settings) -> None:
    url = f"{settings.store.url}?max_size={1024 * 1024}"
    small = settings.store.model_copy(update={"url": url})
    store = open_store(small)
    store.put_bookmark("much", bytes(850_000))
    store.close()

    found = check_store(settings.model_copy(update={"store": small}))

    assert not found["ok"]
    assert "of what it may have" in found["detail"]


@pytest.fixture
def on_aerospike(settings: Settings, aerospike_server: AerospikeServer) -> Settings:
    """A store on Aerospike, as a worker makes it."""
    store = StoreSettings(url=aerospike_server.url, name="shop")
    open_store(store).close()
    return settings.model_copy(update={"store": store})


def test_a_store_on_aerospike_says_which_it_is(on_aerospike: Settings) -> None:
    found = check_store(on_aerospike)
    assert found["ok"], found["detail"]
    assert "is empty; shop, id " in found["detail"]
    assert re.search(r"; \d+% full$", found["detail"])


def test_a_store_on_aerospike_that_is_full_is_told(
    on_aerospike: Settings, double: AerospikeDouble
) -> None:
    double.fault = refuse_writes(8)
    found = check_store(on_aerospike)
    assert not found["ok"]
    assert "has no room left" in found["detail"]


def test_a_store_on_aerospike_that_is_nearly_full_is_told(
    on_aerospike: Settings, double: AerospikeDouble
) -> None:
    double.fullness["data_used_pct"] = "60"
    found = check_store(on_aerospike)
    assert not found["ok"]
    assert "86% of what it may have, data_used_pct 60, writes stop at 70 used" in found["detail"]


def test_a_store_on_aerospike_that_does_not_tell_how_full_it_is_says_so(
    on_aerospike: Settings, double: AerospikeDouble
) -> None:
    double.fullness.clear()
    found = check_store(on_aerospike)
    assert found["detail"].endswith("how full it is, it does not tell")


def test_an_index_that_is_missing_is_told(on_aerospike: Settings, double: AerospikeDouble) -> None:
    double.builds = True  # it is told to be made anew, and that takes a while
    double.drop_index("sequence-due")
    found = check_store(on_aerospike)
    assert not found["ok"]
    assert "an index of due users" in found["detail"]


def test_a_mistyped_topic_is_told_with_the_nearest_one(
    settings: Settings, cluster: MockCluster
) -> None:
    cluster.create_topic("behaviours", 1)
    broker = settings.broker.model_copy(update={"bootstrap": cluster.bootstrap})
    found = check(settings.model_copy(update={"broker": broker}), "topic")
    assert not found["ok"]
    assert "did you mean behaviours?" in found["detail"]


def test_topics_that_a_worker_will_create_are_no_problem(settings: Settings) -> None:
    open_store(settings.store).close()
    broker = settings.broker.model_copy(update={"create_topics": True})
    settings = settings.model_copy(update={"broker": broker})
    for name in ("topic", "dead letters", "progress"):
        found = check(settings, name)
        assert found["ok"]
        assert "not there yet" in found["detail"]


def check_progress(settings: Settings) -> dict[str, Any]:
    return check(settings, "progress")


def feed(settings: Settings, upto: int) -> None:
    """Have the store of the one partition fed up to an offset."""
    source = partition_source(
        settings.broker.topic, topic_id(settings.broker, settings.broker.topic), 0
    )
    store = open_store(settings.store)
    store.append([Group(source, [], upto)], 1)
    store.close()


@pytest.fixture
def fed(kafka: LocalKafka, tmp_path: Path) -> Settings:
    """A topic of one partition with 20 events, and a store that was fed 5 of them."""
    settings = new_settings(kafka.bootstrap, broker={"partitions": 1})
    store = StoreSettings(url=f"lmdb://{tmp_path / 'store'}")
    settings = settings.model_copy(update={"store": store})
    create_topics(settings)
    produce(settings, [("a", event("a", number)) for number in range(20)])
    feed(settings, 4)
    return settings


def test_what_the_store_lacks_is_told(fed: Settings) -> None:
    found = check_progress(fed)
    assert found["ok"], found["detail"]
    assert found["detail"].startswith("15 events")


def test_what_kafka_has_removed_before_it_was_read_is_told(fed: Settings) -> None:
    delete_records(fed, 10)
    found = check_progress(fed)
    assert not found["ok"]
    assert "offsets 5 to 9 of partition 0 are gone from Kafka" in found["detail"]


def test_a_log_that_ends_before_what_the_store_was_fed_is_told(fed: Settings) -> None:
    feed(fed, 29)
    found = check_progress(fed)
    assert not found["ok"]
    assert "offsets 20 to 29 of partition 0 were cut off" in found["detail"]


def test_an_open_transaction_is_told_with_its_partition(fed: Settings) -> None:
    producer = transactional(fed)
    send_in_transaction(producer, fed, [("a", event("a", 20)), ("a", event("a", 21))])
    found = check_progress(fed)
    assert found["detail"].startswith("17 events")
    whose = (
        r"a transaction of [0-9a-f]{32}, open for \d s, holds back partition 0 from offset 20 on"
    )
    assert re.search(whose, found["detail"])
    assert (found["status"], found["ok"]) == ("warning", True)
    worker = fed.worker.model_copy(update={"held_max_s": 0.1})
    time.sleep(0.2)
    found = check_progress(fed.model_copy(update={"worker": worker}))
    assert (found["status"], found["ok"]) == ("failed", False)
    assert "for longer than worker.held_max_s = 0.1: end that producer" in found["detail"]
    producer.abort_transaction(PATIENCE_S)
    assert check_progress(fed)["status"] == "ok"


def test_progress_is_not_asked_for_without_a_topic(settings: Settings) -> None:
    found = check_progress(settings)
    assert not found["ok"]
    assert found["detail"].startswith("not looked at")


def test_of_several_sources_each_is_looked_at(broker: str, tmp_path: Path) -> None:
    store = {"url": f"lmdb://{tmp_path / 'store'}"}
    sources = [{"name": name, "topic": f"{name}.events"} for name in ("shop", "app")]
    settings = Settings.model_validate(
        {"broker": {"bootstrap": broker}, "store": store, "sources": sources}
    )

    found = {one["name"]: one["detail"] for one in run_checks(settings, quiet=True)["checks"]}

    assert "sources shop (json in shop.events), app (json in app.events)" in found["settings"]
    assert "there is no topic shop.events" in found["topic shop"]
    assert "there is no topic app.events" in found["topic app"]
    assert "not looked at, since the topic app" in found["progress app"]


def test_a_constant_of_a_source_is_judged(settings: Settings) -> None:
    shop = {"name": "shop", "topic": "t", "constants": {"item_id": "x" * 300}}
    broker = {"bootstrap": settings.broker.bootstrap}
    wrong = Settings.model_validate({"broker": broker, "sources": [shop]})
    assert "sources.shop.constants: item_id" in check(wrong, "settings")["detail"]


def test_a_registry_is_asked_for_what_it_has_of_the_topic(
    settings: Settings, registry: RegistryDouble
) -> None:
    chosen = RegistrySettings(url=registry.url)
    settings = settings.model_copy(update={"registry": chosen})
    registry.register(f"{settings.broker.topic}-value", {"schema": '"string"'})
    registry.register("other-value", {"schema": '"long"'})

    found = check(settings, "registry")

    assert found["ok"]
    assert "has 2 subjects" in found["detail"]
    assert f"{settings.broker.topic}-value" in found["detail"]
    assert "other-value" not in found["detail"]

    registry.fails_with = 503
    found = check(settings, "registry")
    assert not found["ok"]
    assert "answers 503" in found["detail"]
