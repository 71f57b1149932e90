"""A topic's identity: its id, not its name, tells sources apart."""

from __future__ import annotations

import pytest
from faust.types import TP

from infra.errors import BrokerError
from streaming.topic import TopicIdentity, Topics


def test_a_topic_created_anew_is_another_source() -> None:
    identity = TopicIdentity("behaviors", lambda: "")

    assert identity.adopt("first") is False
    first = identity.source(3)
    assert identity.adopt("first") is False
    assert identity.adopt("second") is True
    second = identity.source(3)

    assert first.key != second.key
    assert first.owner == second.owner


@pytest.mark.parametrize(("found", "said"), [("name:cluster", 1), ("an id of Kafka's", 0)])
def test_brokers_without_ids_of_topics_are_told(
    caplog: pytest.LogCaptureFixture, found: str, said: int
) -> None:
    identity = TopicIdentity("behaviors", lambda: found)

    identity.adopt(found)
    identity.adopt(found)

    assert len(caplog.records) == said


def missing() -> str:
    raise BrokerError("there is no topic orders")


async def test_a_topic_that_is_not_there_does_not_hide_the_ids_of_others() -> None:
    clicks, orders = TopicIdentity("clicks", lambda: "id"), TopicIdentity("orders", missing)

    ids, failed = await Topics([orders, clicks]).read()

    assert ids == {"clicks": "id"}
    assert str(failed) == "there is no topic orders"


async def test_where_no_topic_has_an_id_it_is_said_why() -> None:
    with pytest.raises(BrokerError, match="no topic orders"):
        await Topics([TopicIdentity("orders", missing)]).read()


def test_a_partition_is_named_by_its_number_where_there_is_one_topic() -> None:
    clicks, orders = TopicIdentity("clicks", missing), TopicIdentity("orders", missing)

    assert Topics([orders]).part(TP("orders", 3)) == "partition 3"
    assert Topics([orders, clicks]).part(TP("orders", 3)) == "partition 3 of orders"
