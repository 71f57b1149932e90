"""Transactions that producers have open: whose, since when, and in which partitions.

By KIP-664, which neither confluent-kafka nor aiokafka knows: each broker is asked for those that it
coordinates. Brokers know it from Kafka 3.0 on, and tell of those that one may describe.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from infra.errors import BrokerError, one_line
from infra.kafka.logins import aiokafka_login

if TYPE_CHECKING:
    from infra.settings import BrokerSettings

_NO_TAGS: Final[dict[int, bytes]] = {}
_STATES: Final = ("Ongoing", "PrepareCommit", "PrepareAbort")
"""Of transactions that hold their partitions back."""


class OpenTransaction(NamedTuple):
    """A transaction that its producer has begun and not ended."""

    producer: str
    """Its transactional.id."""
    since_ms: int
    """When it began, ms since epoch, by the broker's clock."""
    partitions: frozenset[tuple[str, int]]
    """(topic, number) of those that it wrote to."""


def open_transactions(broker: BrokerSettings, *, timeout_s: float = 5.0) -> list[OpenTransaction]:
    """Those that any broker tells of; none of a Kafka that cannot tell.

    Raises:
        BrokerError: a broker does not answer, or files that prove who we are cannot be used.
    """
    log = logging.getLogger("aiokafka")  # what it says is in the errors' text
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        return asyncio.run(asyncio.wait_for(_ask(broker), timeout_s))
    except (KafkaError, OSError, TimeoutError) as error:
        raise BrokerError(
            f"Kafka at {broker.bootstrap} does not tell of its transactions"
            f" ({one_line(error) or 'no answer'}): try again"
        ) from None
    finally:
        log.setLevel(level)


async def _ask(broker: BrokerSettings) -> list[OpenTransaction]:
    client = AIOKafkaClient(
        bootstrap_servers=[one.strip() for one in broker.bootstrap.split(",")],
        client_id="lifelong",
        **aiokafka_login(broker),
    )
    try:
        await client.bootstrap()
        found: list[OpenTransaction] = []
        for node in client.cluster.brokers():
            try:
                listed = await client.send(node.nodeId, _ListTransactions())
            except (IncompatibleBrokerVersion, NotImplementedError):
                continue
            names = [name for name, *_ in listed.transactions]
            if names:
                told = await client.send(node.nodeId, _DescribeTransactions(names))
                found += [_open(*one) for one in told.transactions if one[0] == 0]
        return found
    finally:
        await client.close()


def _open(
    _error: int,
    name: str,
    _state: str,
    _timeout_ms: int,
    since_ms: int,
    _producer: int,
    _epoch: int,
    topics: list[tuple[str, list[int], Any]],
    _tags: Any,
) -> OpenTransaction:
    places = frozenset((topic, number) for topic, numbers, _ in topics for number in numbers)
    return OpenTransaction(name, since_ms, places)


class _Listed(Response):  # type: ignore[misc]  # aiokafka has no annotations
    API_KEY = 66
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("unknown_states", CompactArray(CompactString("utf-8"))),
        (
            "transactions",
            CompactArray(
                ("transactional_id", CompactString("utf-8")),
                ("producer_id", Int64),
                ("state", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _List(RequestStruct):  # type: ignore[misc]
    API_KEY = 66
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Listed
    SCHEMA = Schema(
        ("states", CompactArray(CompactString("utf-8"))),
        ("producer_ids", CompactArray(Int64)),
        ("tags", TaggedFields),
    )


class _ListTransactions(Request[_List]):  # type: ignore[misc]
    API_KEY = 66

    def build(self, request_struct_class: type[_List]) -> _List:
        return request_struct_class(list(_STATES), [], _NO_TAGS)


class _Described(Response):  # type: ignore[misc]
    API_KEY = 65
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "transactions",
            CompactArray(
                ("error_code", Int16),
                ("transactional_id", CompactString("utf-8")),
                ("state", CompactString("utf-8")),
                ("timeout_ms", Int32),
                ("start_time_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                (
                    "topics",
                    CompactArray(
                        ("topic", CompactString("utf-8")),
                        ("partitions", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _Describe(RequestStruct):  # type: ignore[misc]
    API_KEY = 65
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Described
    SCHEMA = Schema(
        ("transactional_ids", CompactArray(CompactString("utf-8"))), ("tags", TaggedFields)
    )


class _DescribeTransactions(Request[_Describe]):  # type: ignore[misc]
    API_KEY = 65

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[_Describe]) -> _Describe:
        return request_struct_class(self._names, _NO_TAGS)
