"""Connections of aiokafka's client: they create nothing, and tell when they are gone."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest
import uvloop
from aiokafka.conn import CloseReason, create_conn
from aiokafka.errors import KafkaConnectionError, RequestTimedOutError
from aiokafka.protocol.group import JoinGroupRequest
from aiokafka.protocol.metadata import MetadataRequest, MetadataRequest_v5

from infra.kafka.connections import mend_connections
from infra.kafka.local import LocalKafka

ANSWER_S: Final = 0.1
NEVER_S: Final = 60.0


class Connection:
    """Remembers what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.answer_after_s = 0.0
        self.closed_for: list[CloseReason] = []

    async def send(self, request: object, *, expect_response: bool = True) -> bool:
        self.sent.append(request)
        await asyncio.sleep(self.answer_after_s)
        return expect_response

    def close(self, reason: CloseReason) -> None:
        self.closed_for.append(reason)


class Client:
    """A client of aiokafka, as far as it connects; it has one connection, or none."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.connect_after_s = 0.0
        self.updates = 0
        self._request_timeout_ms = 40_000
        self.patience_ms: list[int] = []
        """With which the first connections were made."""

    async def _get_conn(self, _node: int, *, no_hint: bool = False) -> Any:
        await asyncio.sleep(self.connect_after_s)
        return None if no_hint else self.connection

    async def bootstrap(self) -> None:
        self.patience_ms.append(self._request_timeout_ms)

    def force_metadata_update(self) -> None:
        self.updates += 1


@pytest.fixture
def client() -> Client:
    client = Client(Connection())
    mend_connections(client, ANSWER_S)
    return client


async def test_topics_are_asked_for_without_being_created(client: Client) -> None:
    for _ in range(2):  # the connection is kept
        connection = await client._get_conn(1)
        await connection.send(MetadataRequest(["behaviors"]))
        request = connection.sent[-1].build(MetadataRequest_v5)
        assert request.allow_auto_topic_creation is False


async def test_other_requests_are_sent_as_they_are(client: Client) -> None:
    connection = await client._get_conn(1)
    assert await connection.send("heartbeat", expect_response=False) is False
    assert connection.sent == ["heartbeat"]


async def test_a_node_that_cannot_be_reached_has_no_connection(client: Client) -> None:
    assert await client._get_conn(1, no_hint=True) is None


async def test_a_connection_that_gives_no_answer_in_time_is_closed(client: Client) -> None:
    connection = await client._get_conn(1)
    connection.answer_after_s = NEVER_S
    with pytest.raises(RequestTimedOutError):
        await connection.send(MetadataRequest([]))
    assert connection.closed_for == [CloseReason.CONNECTION_TIMEOUT]


async def test_who_joins_a_group_may_wait_for_the_others(client: Client) -> None:
    connection = await client._get_conn(1)
    connection.answer_after_s = 3 * ANSWER_S
    join = JoinGroupRequest("group", 1, 1, "", None, "consumer", [])
    assert await connection.send(join)
    assert connection.closed_for == []


async def test_the_first_connections_are_made_in_time_as_well(client: Client) -> None:
    await client.bootstrap()
    assert client.patience_ms == [1000 * ANSWER_S]
    assert client._request_timeout_ms == 40_000


async def test_a_connection_that_is_not_made_in_time_is_none(client: Client) -> None:
    client.connect_after_s = NEVER_S
    assert await client._get_conn(1) is None
    assert client.updates == 1


@pytest.mark.kafka
def test_a_connection_that_was_lost_is_told_as_that_under_uvloop(kafka: LocalKafka) -> None:
    """As when a broker is killed while it answers: the half of an answer hides that it is gone."""

    async def lose() -> None:
        host, port = kafka.bootstrap.split(":")
        client = Client(await create_conn(host, int(port)))
        mend_connections(client, ANSWER_S)
        connection = await client._get_conn(1)
        connection._read_task.cancel()
        connection._reader.feed_data(b"half of an answer")
        transport = connection._writer.transport
        transport.abort()
        await connection._closed_fut
        assert connection.connected()
        with pytest.raises(KafkaConnectionError, match="closed"):
            await connection.send(MetadataRequest([]))
        connection.close()

    uvloop.run(lose())
