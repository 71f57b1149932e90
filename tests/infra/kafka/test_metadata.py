"""What a broker is told to create when it is asked for topics: nothing."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.protocol.metadata import MetadataRequest, MetadataRequest_v5

from infra.kafka.metadata import create_no_topics


class Connection:
    """Remembers what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def send(self, request: object, *, expect_response: bool = True) -> bool:
        self.sent.append(request)
        return expect_response


class Client:
    """A client of aiokafka, as far as it connects; it has one connection, or none."""

    def __init__(self, connection: Connection | None) -> None:
        self.connection = connection

    async def _get_conn(self, _node: int, *, no_hint: bool = False) -> Connection | None:
        return None if no_hint else self.connection


@pytest.fixture
def client() -> Client:
    client = Client(Connection())
    create_no_topics(client)
    return client


async def test_topics_are_asked_for_without_being_created(client: Client) -> None:
    for _ in range(2):  # the connection is kept
        connection = await client._get_conn(1)
        assert connection is not None
        await connection.send(MetadataRequest(["behaviors"]))
        request = connection.sent[-1].build(MetadataRequest_v5)
        assert request.allow_auto_topic_creation is False


async def test_other_requests_are_sent_as_they_are(client: Client) -> None:
    connection = await client._get_conn(1)
    assert connection is not None
    assert await connection.send("heartbeat", expect_response=False) is False
    assert connection.sent == ["heartbeat"]


async def test_a_node_that_cannot_be_reached_has_no_connection(client: Client) -> None:
    assert await client._get_conn(1, no_hint=True) is None
