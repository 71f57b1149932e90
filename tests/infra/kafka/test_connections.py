"""Connections of aiokafka's client: they create nothing, and tell when they are gone."""

from __future__ import annotations

from typing import Any

import pytest
import uvloop
from aiokafka.conn import create_conn
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest, MetadataRequest_v5

from infra.kafka.connections import mend_connections
from infra.kafka.local import LocalKafka


class Connection:
    """Remembers what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def send(self, request: object, *, expect_response: bool = True) -> bool:
        self.sent.append(request)
        return expect_response


class Client:
    """A client of aiokafka, as far as it connects; it has one connection, or none."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def _get_conn(self, _node: int, *, no_hint: bool = False) -> Any:
        return None if no_hint else self.connection


@pytest.fixture
def client() -> Client:
    client = Client(Connection())
    mend_connections(client)
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


@pytest.mark.kafka
def test_a_connection_that_was_lost_is_told_as_that_under_uvloop(kafka: LocalKafka) -> None:
    """As when a broker is killed while it answers: the half of an answer hides that it is gone."""

    async def lose() -> None:
        host, port = kafka.bootstrap.split(":")
        client = Client(await create_conn(host, int(port)))
        mend_connections(client)
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
