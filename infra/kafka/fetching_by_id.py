"""Kafka's Fetch by the topic's id (KIP-516), which aiokafka does not know.

Who fetches by name and offset gets, without a word, the records of another topic that bears the
name by now: one that was deleted and created again. By id, a broker refuses. Brokers know it from
Kafka 3.1 on.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiokafka.errors import IncompatibleBrokerVersion, OffsetOutOfRangeError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v11, FetchResponse_v11
from aiokafka.protocol.types import (
    AbstractType,
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

FETCH: Final = 1
"""Kafka's key of the request."""

DERIVED: Final = "name:"
"""What an id begins with that is none of Kafka's (`infra.kafka.admin.topic_id`)."""

Send = Callable[[int, Any], Awaitable[Any]]
"""Sends a request to a broker and returns its answer: `aiokafka.client.AIOKafkaClient.send`."""

_ANOTHER_TOPIC: Final = frozenset({100, 103})
"""Error codes of a partition: the broker knows no topic by the id, or has a log of another's."""

_NO_TAGS: Final[dict[int, bytes]] = {}


def uuid_of(topic_id: str) -> bytes | None:
    """The 16 bytes of a topic's id as `infra.kafka.admin.topic_id` gives it; None: a derived one,
    which no broker knows.

    >>> len(uuid_of("AAAAAAAAAAAAAAAAAAAAAQ"))
    16
    """
    if topic_id.startswith(DERIVED):
        return None
    return base64.urlsafe_b64decode(topic_id + "==")


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]  # aiokafka has no annotations
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: Any) -> bytes:
        found: bytes = data.read(16)
        return found


class _FetchByIdResponse(Response):  # type: ignore[misc]  # aiokafka has no annotations
    API_KEY = FETCH
    API_VERSION = 13
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("session_id", Int32),
        (
            "topics",
            CompactArray(
                ("topic_id", _Uuid),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("high_watermark", Int64),
                        ("last_stable_offset", Int64),
                        ("log_start_offset", Int64),
                        (
                            "aborted_transactions",
                            CompactArray(
                                ("producer_id", Int64),
                                ("first_offset", Int64),
                                ("tags", TaggedFields),
                            ),
                        ),
                        ("preferred_read_replica", Int32),
                        ("records", CompactBytes),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _FetchByIdStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = FETCH
    API_VERSION = 13
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _FetchByIdResponse
    SCHEMA = Schema(
        ("replica_id", Int32),
        ("max_wait_ms", Int32),
        ("min_bytes", Int32),
        ("max_bytes", Int32),
        ("isolation_level", Int8),
        ("session_id", Int32),
        ("session_epoch", Int32),
        (
            "topics",
            CompactArray(
                ("topic_id", _Uuid),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("current_leader_epoch", Int32),
                        ("fetch_offset", Int64),
                        ("last_fetched_epoch", Int32),
                        ("log_start_offset", Int64),
                        ("partition_max_bytes", Int32),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        (
            "forgotten_topics_data",
            CompactArray(
                ("topic_id", _Uuid),
                ("partitions", CompactArray(Int32)),
                ("tags", TaggedFields),
            ),
        ),
        ("rack_id", CompactString("utf-8")),
        ("tags", TaggedFields),
    )


class _FetchById(Request[_FetchByIdStruct]):  # type: ignore[misc]
    """A fetch as aiokafka would send it, of those topics by their ids that have one."""

    API_KEY = FETCH

    def __init__(self, request: FetchRequest, ids: Mapping[str, bytes]) -> None:
        named = request.build(FetchRequest_v11)
        topics = [
            (ids[topic], [(*partition, _NO_TAGS) for partition in map(_place, places)], _NO_TAGS)
            for topic, places in named.topics
            if topic in ids
        ]
        self._fields: tuple[Any, ...] = (
            named.replica_id,
            named.max_wait_time,
            named.min_bytes,
            named.max_bytes,
            named.isolation_level,
            named.session_id,
            named.session_epoch,
            topics,
            [],
            named.rack_id,
            _NO_TAGS,
        )

    def build(self, request_struct_class: type[_FetchByIdStruct]) -> _FetchByIdStruct:
        return request_struct_class(*self._fields)


def _place(named: tuple[int, int, int, int, int]) -> tuple[int, int, int, int, int, int]:
    """A partition of the request, with the epoch of what was fetched last: not known."""
    partition, leader_epoch, offset, log_start, most = named
    return partition, leader_epoch, offset, -1, log_start, most


async def fetch_by_id(
    send: Send, node: int, request: FetchRequest, ids: Mapping[str, bytes]
) -> Any:
    """The answer to a fetch, as aiokafka knows it, of the topics with these ids and no others.

    A partition of another topic by that name has the error of an offset that is out of range:
    its log has not what was asked for. Where none of the topics has an id, and of brokers that know
    no ids, it is asked by name; of those without one beside others there is no answer.

    Args:
        send: sends a request to a broker.
        node: the broker.
        request: what aiokafka would fetch.
        ids: the 16 bytes of each topic's id, by its name.
    """
    if not any(topic in ids for topic, _ in request.topics):
        return await send(node, request)
    try:
        answer = await send(node, _FetchById(request, ids))
    except (IncompatibleBrokerVersion, NotImplementedError):  # a Kafka older than 3.1
        return await send(node, request)
    names = {one: topic for topic, one in ids.items()}
    topics = [
        (names[topic], [_named(*partition) for partition in partitions])
        for topic, partitions, _ in answer.topics
    ]
    return FetchResponse_v11(answer.throttle_time_ms, answer.error_code, answer.session_id, topics)


def _named(
    partition: int,
    code: int,
    high_watermark: int,
    stable: int,
    log_start: int,
    aborted: list[tuple[int, int, Any]] | None,
    replica: int,
    records: bytes | None,
    _: Any,
) -> tuple[Any, ...]:
    """A partition of an answer as it would be by name."""
    code = OffsetOutOfRangeError.errno if code in _ANOTHER_TOPIC else code
    producers = None if aborted is None else [(producer, first) for producer, first, _ in aborted]
    return partition, code, high_watermark, stable, log_start, producers, replica, records
