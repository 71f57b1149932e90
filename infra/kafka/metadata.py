"""What aiokafka asks brokers of topics, without their creating them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.protocol.metadata import MetadataRequest


def create_no_topics(client: Any) -> None:
    """Have a client of aiokafka ask for topics without their being created. Before it connects.

    A broker with auto.create.topics.enable, as it is by default, creates a topic that is asked for
    by its name, unless the request says otherwise: a topic that was deleted would come back, with
    as many partitions as that broker gives. aiokafka has no setting for it.
    """
    connect = client._get_conn

    async def connected(*place: Any, **how: Any) -> Any:
        connection = await connect(*place, **how)
        if connection is not None and not isinstance(connection.send, _Asking):
            connection.send = _Asking(connection.send)
        return connection

    client._get_conn = connected


class _Asking:
    """Sends requests as they are, but those for metadata with the word that nothing be created."""

    def __init__(self, send: Callable[..., Awaitable[Any]]) -> None:
        self._send = send

    def __call__(self, request: Any, *how: Any, **more: Any) -> Awaitable[Any]:
        if isinstance(request, MetadataRequest):
            request._allow_auto_topic_creation = False
        return self._send(request, *how, **more)
