"""The connections of aiokafka's client, mended: nothing is created that is asked for, a connection
that is gone is told as that, and one that gives no answers is given up in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaConnectionError, RequestTimedOutError
from aiokafka.protocol.group import JoinGroupRequest, SyncGroupRequest
from aiokafka.protocol.metadata import MetadataRequest

from infra.errors import BrokerError
from infra.kafka.logins import broker_secret, tls_context

if TYPE_CHECKING:
    from infra.settings import BrokerSettings

HELD_BACK: Final = (JoinGroupRequest, SyncGroupRequest)
"""Requests that brokers answer once a group has met; all others they answer at once."""


def mend_connections(client: Any, answer_s: float, broker: BrokerSettings | None = None) -> None:
    """Have all connections of a client of aiokafka mended. Before it connects.

    Args:
        client: of aiokafka.
        answer_s: time within which a broker must answer what it can answer at once.
        broker: whose secrets may be exchanged; None: those that it was made with stay.

    *Topics are asked for without being created.* A broker with auto.create.topics.enable, as it is
    by default, creates a topic that is asked for by its name, unless the request says otherwise: a
    topic that was deleted would come back, with as many partitions as that broker gives. aiokafka
    has no setting for it.

    *A lost connection is a `KafkaConnectionError`.* aiokafka expects an OSError of a transport that
    is closed, asyncio's says nothing, and uvloop's raises RuntimeError; that ends the task which
    keeps the client's knowledge of the cluster, and whoever waits for that waits for ever.

    *A connection without answers is given up.* A broker that hangs, or a network that drops what
    it is given, leaves connections open that give nothing. aiokafka has one patience for all
    requests, longer than a group takes to meet; it asks for metadata through such a connection
    again and again; and while it makes one, it holds a lock that all others wait for.

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
        try:
            connection = await asyncio.wait_for(connect(node, **how), answer_s)
        except TimeoutError:
            client.force_metadata_update()  # as where it is refused
            return None
        if connection is not None and not isinstance(connection.send, _Mended):
            connection.send = _Mended(connection, answer_s)
        return connection

    client._get_conn = connected
    bootstrap = client.bootstrap

    async def bootstrapped() -> None:
        patience_ms, client._request_timeout_ms = client._request_timeout_ms, round(1000 * answer_s)
        try:
            await bootstrap()
        finally:
            client._request_timeout_ms = patience_ms

    client.bootstrap = bootstrapped


def _renew(client: Any, broker: BrokerSettings) -> None:
    """Give the client what the files hold now that prove who we are."""
    if broker.security_protocol.endswith("SSL"):
        client._ssl_context = tls_context(broker)
    if broker.sasl_password is not None:
        client._sasl_plain_password = broker_secret(broker, "sasl_password")


class _Mended:
    """A connection's way to send requests, and to get what answers them."""

    def __init__(self, connection: Any, answer_s: float) -> None:
        self._connection = connection
        self._send: Callable[..., Awaitable[Any]] = connection.send
        self._answer_s = answer_s

    async def __call__(self, request: Any, *how: Any, **more: Any) -> Any:
        if isinstance(request, MetadataRequest):
            request._allow_auto_topic_creation = False
        try:
            answer = self._send(request, *how, **more)
        except RuntimeError as error:
            raise KafkaConnectionError(str(error)) from error
        patience_s = None if isinstance(request, HELD_BACK) else self._answer_s
        try:
            return await asyncio.wait_for(answer, patience_s)
        except TimeoutError:
            self._connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
            raise RequestTimedOutError from None
