"""The connections of aiokafka's client, mended: nothing is created that is asked for, and a
connection that is gone is told as that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from infra.errors import BrokerError
from infra.kafka.logins import broker_secret, tls_context

if TYPE_CHECKING:
    from infra.settings import BrokerSettings


def mend_connections(client: Any, broker: BrokerSettings | None = None) -> None:
    """Have all connections of a client of aiokafka mended. Before it connects.

    *Topics are asked for without being created.* A broker with auto.create.topics.enable, as it is
    by default, creates a topic that is asked for by its name, unless the request says otherwise: a
    topic that was deleted would come back, with as many partitions as that broker gives. aiokafka
    has no setting for it.

    *A lost connection is a `KafkaConnectionError`.* aiokafka expects an OSError of a transport that
    is closed, asyncio's says nothing, and uvloop's raises RuntimeError; that ends the task which
    keeps the client's knowledge of the cluster, and whoever waits for that waits for ever.

    *A password or a certificate that was exchanged counts for the next connection*, given
    ``broker``: aiokafka would keep what it was made with.
    """
    connect = client._get_conn

    async def connected(node: Any, **how: Any) -> Any:
        if broker is not None and not any(
            at[0] == node and kept.connected() for at, kept in client._conns.items()
        ):
            with suppress(BrokerError):  # while a file is exchanged; whoever asks next tells it
                _renew(client, broker)
        connection = await connect(node, **how)
        if connection is not None and not isinstance(connection.send, _Mended):
            connection.send = _Mended(connection.send)
        return connection

    client._get_conn = connected


def _renew(client: Any, broker: BrokerSettings) -> None:
    """Give the client what the files hold now that prove who we are."""
    if broker.security_protocol.endswith("SSL"):
        client._ssl_context = tls_context(broker)
    if broker.sasl_password is not None:
        client._sasl_plain_password = broker_secret(broker, "sasl_password")


class _Mended:
    """A connection's way to send requests, and to get what answers them."""

    def __init__(self, send: Callable[..., Awaitable[Any]]) -> None:
        self._send = send

    def __call__(self, request: Any, *how: Any, **more: Any) -> Awaitable[Any]:
        if isinstance(request, MetadataRequest):
            request._allow_auto_topic_creation = False
        try:
            return self._send(request, *how, **more)
        except RuntimeError as error:
            raise KafkaConnectionError(str(error)) from error
