"""What brokers say of partitions' logs: where they begin and end, and an epoch of theirs.

Asked through a client of aiokafka that is connected already; it knows each partition's leader.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, LeaderNotAvailableError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.types import Array, Int16, Int32, Int64, Schema, String

from infra.kafka.fetching_by_id import Send, fetch_by_id

NO_IDS: Final[Mapping[str, bytes]] = MappingProxyType({})

_LATEST: Final = -1
_UNCOMMITTED: Final = 0
_CONSUMER: Final = -1  # in the place of a replica's id
_ANY_LEADER: Final = -1  # whatever epoch it is in


class LogBounds(NamedTuple):
    """A partition's log, as its leader has it."""

    beginning: int
    """Offset of its first record."""
    stable: int
    """Offset up to which no transaction is open, and so up to which it may be read."""
    end: int
    """Offset that its next record will have."""


async def log_bounds(
    client: Any, partitions: Iterable[TopicPartition], ids: Mapping[str, bytes] = NO_IDS
) -> dict[TopicPartition, LogBounds]:
    """Where the partitions' logs begin and end now; without those of which nobody can tell.

    Asked by topics' ids: a broker that has just learnt of a topic that was created again may still
    have the log of the one before it, which it tells of to whoever asks by name.

    Raises `KafkaError` where nobody can tell of any.

    Args:
        client: of aiokafka.
        partitions: which.
        ids: the 16 bytes of topics' ids, by their names; others are asked for by name.
    """
    ends = await _ends(client, partitions)
    send: Send = client.send

    def request(topic: str, numbers: list[int]) -> FetchRequest:
        # From its end on a log gives nothing, but tells where it is.
        places = [(number, ends[TopicPartition(topic, number)], 1) for number in numbers]
        return FetchRequest(0, 0, 1, _UNCOMMITTED, [(topic, places)])

    def ask(leader: int, request: FetchRequest) -> Awaitable[Any]:
        return fetch_by_id(send, leader, request, ids)

    answers = await _ask(client, ends, request, ask) if ends else []
    bounds = {}
    for topic, (partition, error, high_watermark, stable, beginning, *_) in answers:
        if _is_told(client, error):
            tp = TopicPartition(topic, partition)
            # A new leader's high watermark may lag for a moment, and then it tells no end.
            bounds[tp] = LogBounds(beginning, stable, max(ends[tp], high_watermark))
    return bounds


async def epoch_ends(
    client: Any, epochs: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int | None]:
    """Where each partition's log ended when the given epoch of its leaders did, as it is now.

    Every record carries the epoch of the leader that took it. If the log lost its tail since, this
    is where what is left of it ends, and what other leaders took begins, however far it has grown
    again. None: the log does not know the epoch. Partitions of which nobody can tell are left out.
    Raises `KafkaError` where nobody can tell of any.
    """

    def request(topic: str, numbers: list[int]) -> _EpochRequest:
        return _EpochRequest(
            topic, [(n, _ANY_LEADER, epochs[TopicPartition(topic, n)]) for n in numbers]
        )

    try:
        answers = await _ask(client, epochs, request)
    except (IncompatibleBrokerVersion, NotImplementedError):  # a Kafka older than 2.3
        return dict.fromkeys(epochs)
    return {
        TopicPartition(topic, partition): end if end >= 0 else None
        for topic, (error, partition, _, end) in answers
        if _is_told(client, error)
    }


async def _ends(client: Any, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    def request(topic: str, numbers: list[int]) -> OffsetRequest:
        return OffsetRequest(_CONSUMER, _UNCOMMITTED, [(topic, [(n, _LATEST) for n in numbers])])

    return {
        TopicPartition(topic, partition): offset
        for topic, (partition, error, _, offset) in await _ask(client, partitions, request)
        if _is_told(client, error)
    }


async def _ask(
    client: Any,
    partitions: Iterable[TopicPartition],
    request: Callable[[str, list[int]], Any],
    send: Send | None = None,
) -> list[tuple[str, Any]]:
    """The answers of the partitions' leaders: (topic, what is said of one partition)."""
    send = send or client.send
    by_leader: dict[tuple[int, str], list[int]] = defaultdict(list)
    failure: KafkaError | None = None
    for tp in partitions:
        leader = client.cluster.leader_for_partition(tp)
        if leader is None or leader < 0:
            client.force_metadata_update()
            failure = LeaderNotAvailableError(f"{tp.topic}/{tp.partition}")
        else:
            by_leader[leader, tp.topic].append(tp.partition)
    answers: list[tuple[str, Any]] = []
    for (leader, topic), numbers in by_leader.items():
        try:
            answer = await send(leader, request(topic, numbers))
        except IncompatibleBrokerVersion:
            raise
        except KafkaError as error:
            client.force_metadata_update()
            failure = error
        else:
            answers += [(topic, part) for topic, parts in answer.topics for part in parts]
    if failure is not None and not answers:
        raise failure
    return answers


def _is_told(client: Any, code: int) -> bool:
    """Whether a part of an answer is one; otherwise another broker may lead the partition now."""
    if code:
        client.force_metadata_update()
    return not code


class _EpochResponse(Response):  # type: ignore[misc]  # aiokafka has no annotations
    API_KEY = 23
    API_VERSION = 2
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader_epoch", Int32),
                        ("end_offset", Int64),
                    ),
                ),
            ),
        ),
    )


class _EpochRequestStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 23
    API_VERSION = 2
    RESPONSE_TYPE = _EpochResponse
    SCHEMA = Schema(
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(
                        ("partition", Int32),
                        ("current_leader_epoch", Int32),
                        ("leader_epoch", Int32),
                    ),
                ),
            ),
        ),
    )


class _EpochRequest(Request[_EpochRequestStruct]):  # type: ignore[misc]
    """OffsetForLeaderEpoch (KIP-101, KIP-320), which aiokafka does not know."""

    API_KEY = 23

    def __init__(self, topic: str, partitions: list[tuple[int, int, int]]) -> None:
        self._topics = [(topic, partitions)]

    def build(self, request_struct_class: type[_EpochRequestStruct]) -> _EpochRequestStruct:
        return request_struct_class(self._topics)
