"""Administration of a Kafka: whether it answers, topics' ids and partitions, creating topics."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewTopic,
    ResourceType,
)

from infra.errors import BrokerError, nearest, one_line
from infra.kafka.clients import bootstrap_of, client_config
from infra.kafka.fetching_by_id import DERIVED
from infra.kafka.logins import certificate_fault, fetch_token
from infra.kafka.mock import mock_clusters

if TYPE_CHECKING:
    from infra.settings import BrokerSettings

_MOCK_CLUSTER: Final = "mockCluster"  # how librdkafka's mock begins its cluster id
_DOWN: Final = KafkaError._ALL_BROKERS_DOWN  # said in addition to what is wrong with each
_STARTING: Final = (
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
)
_NO_TOPIC_ID: Final = "A" * 22  # sixteen zero bytes: a Kafka older than topic ids


class Cluster(NamedTuple):
    """A Kafka that answered."""

    id: str
    brokers: tuple[str, ...]
    """HOST:PORT of each broker, as the cluster advertises them."""

    @property
    def is_mock(self) -> bool:
        """Whether it is librdkafka's mock: 5 MiB kept per partition, nothing on disk."""
        return self.id.startswith(_MOCK_CLUSTER)


def ping(broker: BrokerSettings | str, *, timeout_s: float = 5.0) -> Cluster:
    """The cluster behind ``broker``.

    Raises:
        BrokerError: it did not answer within ``timeout_s`` seconds, or refused us.
    """
    with _admin(broker, timeout_s) as admin:
        return _cluster(admin.list_topics(timeout=timeout_s))


def create_topic(
    broker: BrokerSettings | str,
    name: str,
    partitions: int,
    *,
    replication: int = 1,
    timeout_s: float = 10.0,
    **config: str | int,
) -> bool:
    """Create topic ``name`` unless it is there, and wait until it can be used.

    ``config`` holds the topic's own settings, dots written as underscores:
    ``create_topic(broker, "behaviors", 8, retention_ms=-1)``. A topic that exists is left as it
    is, whatever its number of partitions.

    Returns:
        Whether this call created it.

    Raises:
        BrokerError: Kafka cannot be reached, or refused.
    """
    with _admin(broker, timeout_s) as admin:
        cluster = _cluster(admin.list_topics(timeout=timeout_s))
        if cluster.is_mock:
            return _create_mock_topic(admin, cluster, name, partitions, timeout_s)
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        topic = NewTopic(name, partitions, replication, config=settings)
        created = True
        try:
            admin.create_topics([topic], request_timeout=timeout_s)[name].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
            created = False
        # The controller has it; the broker that we ask may hear of it a little later.
        _wait_until_led(admin, name, timeout_s)
        return created


def topic_id(broker: BrokerSettings | str, name: str, *, timeout_s: float = 5.0) -> str:
    """Kafka's id of topic ``name``, base64 of 16 bytes; a topic created again has another one.

    A mock cluster and a Kafka older than 2.8 give none. There it is derived from the name and
    the cluster's id, and says so (`DERIVED`): stable, but blind to a topic deleted and created
    again.

    Raises:
        BrokerError: Kafka cannot be reached, or there is no such topic.
    """
    with _admin(broker, timeout_s) as admin:
        metadata = admin.list_topics(timeout=timeout_s)
        cluster = _cluster(metadata)
        if cluster.is_mock:
            found = _NO_TOPIC_ID if name in metadata.topics else None
        else:
            topic = _describe(admin, name, timeout_s)
            # Spelt as Kafka's own tools do.
            found = topic and str(topic.topic_id).translate(str.maketrans("+/", "-_"))
        if found is None:
            raise no_topic(bootstrap_of(broker), name, metadata.topics)
        if found != _NO_TOPIC_ID:
            return found
        # A mock's id is a mere memory address; its port makes two of them differ.
        where = ",".join(cluster.brokers) if cluster.is_mock else ""
        digest = hashlib.sha256(f"{cluster.id}/{where}/{name}".encode()).digest()[:16]
        return DERIVED + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def unread_partitions(
    broker: BrokerSettings | str, names: Iterable[str], group: str, *, timeout_s: float = 5.0
) -> set[tuple[str, int]]:
    """Partitions of topics that no member of a group has, by the topic's name and their number;
    none while the group settles anew, and on a mock cluster, which cannot tell.

    Raises:
        BrokerError: Kafka cannot be reached.
    """
    with _admin(broker, timeout_s) as admin:
        metadata = admin.list_topics(timeout=timeout_s)
        if _cluster(metadata).is_mock:
            return set()
        there = {
            (name, number)
            for name in metadata.topics.keys() & set(names)
            for number in metadata.topics[name].partitions
        }
        found = admin.describe_consumer_groups([group])[group].result(timeout_s)
    if found.state != ConsumerGroupState.STABLE:
        return set()
    had = [place for member in found.members for place in member.assignment.topic_partitions]
    return there - {(place.topic, place.partition) for place in had}


def topic_partitions(broker: BrokerSettings | str, name: str, *, timeout_s: float = 5.0) -> int:
    """Number of partitions of topic ``name``; 0 where there is no such topic.

    Raises:
        BrokerError: Kafka cannot be reached.
    """
    with _admin(broker, timeout_s) as admin:
        # All topics are listed: asked for one by its name, a broker may create it.
        topic = admin.list_topics(timeout=timeout_s).topics.get(name)
        return 0 if topic is None else len(topic.partitions)


class TopicSetting(NamedTuple):
    """A setting of a topic."""

    value: str
    given: bool
    """Whether the topic itself has it, not its brokers."""


def topic_config(
    broker: BrokerSettings | str, name: str, *, timeout_s: float = 5.0
) -> dict[str, TopicSetting]:
    """The settings of a topic.

    Raises:
        BrokerError: Kafka cannot be reached, does not tell, or there is no such topic.
    """
    asked = ConfigResource(ResourceType.TOPIC, name)
    with _admin(broker, timeout_s) as admin:
        found = admin.describe_configs([asked], request_timeout=timeout_s)[asked].result()
    of_topic = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
    return {
        key: TopicSetting(str(entry.value), entry.source == of_topic)
        for key, entry in found.items()
    }


def set_topic_config(
    broker: BrokerSettings | str,
    name: str,
    settings: Mapping[str, str | None],
    *,
    timeout_s: float = 5.0,
) -> None:
    """Set settings of a topic; None: as its brokers have it.

    Raises:
        BrokerError: Kafka cannot be reached, or refuses.
    """
    entries = [
        ConfigEntry(
            key,
            value or "",
            incremental_operation=AlterConfigOpType.DELETE
            if value is None
            else AlterConfigOpType.SET,
        )
        for key, value in settings.items()
    ]
    changed = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
    with _admin(broker, timeout_s) as admin:
        admin.incremental_alter_configs([changed], request_timeout=timeout_s)[changed].result()


class Standing(NamedTuple):
    """How far a partition's log goes, and a group came in it."""

    log: range
    """The offsets that the log holds."""
    stable: int
    """Offset up to which no transaction is open, and so up to which it may be read."""
    committed: int | None
    """The offset that the group committed; None: it did not."""


def standings(
    broker: BrokerSettings | str, group: str, name: str, *, timeout_s: float = 5.0
) -> dict[int, Standing]:
    """How far a group came in each partition of a topic.

    Raises:
        BrokerError: Kafka cannot be reached, or does not tell.
    """
    partitions = [
        TopicPartition(name, number)
        for number in range(topic_partitions(broker, name, timeout_s=timeout_s))
    ]
    # A consumer and not an admin client, whose list_consumer_group_offsets ends the process
    # (confluent-kafka 2.12, a segmentation fault) where a coordinator has yet to load its groups.
    config = {**client_config(broker), "group.id": group, "enable.auto.commit": False}
    # Where a log ends depends on who asks: to one who reads what is committed alone, it ends before
    # the first open transaction. Asked in this order, what comes meanwhile looks like none.
    consumer, uncommitted = (
        Consumer({**config, "isolation.level": level})
        for level in ("read_committed", "read_uncommitted")
    )
    try:
        committed = _committed(consumer, partitions, timeout_s)
        logs = [uncommitted.get_watermark_offsets(tp, timeout=timeout_s) for tp in partitions]
        stable = [consumer.get_watermark_offsets(tp, timeout=timeout_s)[1] for tp in partitions]
    except KafkaException as error:
        raise BrokerError(
            f"Kafka at {bootstrap_of(broker)} does not tell how far group {group} came in {name}:"
            f" {one_line(error.args[0].str())}"
        ) from None
    finally:
        consumer.close()
        uncommitted.close()
    return {
        tp.partition: Standing(range(*log), end, tp.offset if tp.offset >= 0 else None)
        for tp, log, end in zip(committed, logs, stable, strict=True)
    }


def _committed(
    consumer: Consumer, partitions: list[TopicPartition], timeout_s: float
) -> list[TopicPartition]:
    """What the consumer's group committed, asked until a broker that has just started tells."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return list(consumer.committed(partitions, timeout=timeout_s))
        except KafkaException as error:
            if error.args[0].code() not in _STARTING or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def require_topic(broker: BrokerSettings | str, name: str, *, timeout_s: float = 5.0) -> None:
    """Make sure that topic ``name`` is there.

    Raises:
        BrokerError: it is not, or Kafka cannot be reached.
    """
    with _admin(broker, timeout_s) as admin:
        topics = admin.list_topics(timeout=timeout_s).topics
        if name not in topics:
            raise no_topic(bootstrap_of(broker), name, topics)


def no_topic(bootstrap: str, name: str, topics: Iterable[str]) -> BrokerError:
    """The error of whoever needs topic ``name``, which is not among those there; it names the
    nearest one.
    """
    near = nearest(name, [topic for topic in topics if not topic.startswith("__")])
    return BrokerError(
        f"there is no topic {name} on Kafka at {bootstrap}: "
        + (f"did you mean {near}? " if near else "")
        + "correct its name, create it, or have workers do so (broker.create_topics)"
    )


@contextmanager
def _admin(broker: BrokerSettings | str, timeout_s: float) -> Iterator[Any]:
    """An admin client whose failures are `BrokerError`s that name the place and the cause."""
    causes: list[KafkaError] = []
    config = client_config(broker) | {
        "error_cb": causes.append,
        "reconnect.backoff.max.ms": 250,
    }
    where = bootstrap_of(broker)
    silent = logging.getLogger(f"{__name__}.librdkafka")  # what it says is in the errors' text
    silent.disabled = True
    try:
        admin = AdminClient(config, logger=silent)
    except KafkaException as error:
        raise BrokerError(
            f"no client for Kafka at {where}: {one_line(error.args[0].str())}"
        ) from None
    try:
        yield admin
    except KafkaException as error:
        failure = error.args[0]
        admin.poll(0)  # hands over what librdkafka has noted: the cause behind "timed out"
        if failure.code() in (
            KafkaError._TRANSPORT,
            KafkaError._TIMED_OUT,
            KafkaError._ALL_BROKERS_DOWN,
            KafkaError._RESOLVE,
            KafkaError._AUTHENTICATION,
        ):
            raise BrokerError(_unreachable(broker, timeout_s, [*causes, failure])) from None
        raise BrokerError(f"Kafka at {where} refused: {one_line(failure.str())}") from None


def _cluster(metadata: Any) -> Cluster:
    brokers = tuple(f"{b.host}:{b.port}" for b in metadata.brokers.values())
    return Cluster(metadata.cluster_id or "", brokers)


def _describe(admin: Any, name: str, timeout_s: float) -> Any | None:
    """Kafka's description of topic ``name``, or None where there is no such topic."""
    try:
        futures = admin.describe_topics(TopicCollection([name]), request_timeout=timeout_s)
        return futures[name].result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return None
        raise


def _wait_until_led(admin: Any, name: str, timeout_s: float) -> None:
    """Wait until every partition of topic ``name``, just created, has a leader."""
    deadline = time.monotonic() + timeout_s
    while True:
        topic = _describe(admin, name, timeout_s)
        if topic is not None and all(p.leader is not None for p in topic.partitions):
            return
        if time.monotonic() > deadline:
            raise BrokerError(
                f"topic {name} was created, but Kafka does not show that after {timeout_s:g} s: "
                "look at the broker's log"
            )
        time.sleep(0.02)


def _unreachable(broker: BrokerSettings | str, timeout_s: float, causes: list[Any]) -> str:
    """Why Kafka does not answer, and what to do about it, from all that librdkafka noted."""
    where = bootstrap_of(broker)
    lines = [_cause(cause.str()) for cause in causes if cause.code() != _DOWN] or ["no broker"]
    denied = [cause for cause in causes if cause.code() == KafkaError._AUTHENTICATION]
    if not isinstance(broker, str) and (login := _login_fault(broker, lines)) is not None:
        return login
    if denied:
        return (
            f"Kafka at {where} refused the login ({_cause(denied[0].str())}): correct "
            "broker.sasl_username, broker.sasl_password or broker.sasl_mechanism"
        )
    # A handshake that failed, or a broker that closed the connection: which of the two is heard of
    # first is a matter of time.
    if "SSL" in lines[0]:
        return (
            f"Kafka at {where} and we do not agree on TLS ({lines[0]}): correct "
            "broker.security_protocol or broker.ca_file"
        )
    return (
        f"Kafka at {where} did not answer within {timeout_s:g} s ({lines[0]}): start it "
        "(`lifelong broker` starts a local one), or correct broker.bootstrap or "
        "broker.security_protocol"
    )


def _login_fault(broker: BrokerSettings, lines: list[str]) -> str | None:
    """What is wrong with a certificate or a token, where librdkafka's words show that one is."""
    said = " ".join(lines)
    if "certificate verify failed" in said:
        return certificate_fault(broker)
    if re.search(r"alert .*(certificate|unknown ca)", said):
        ours = f"our certificate {broker.cert_file}" if broker.cert_file else "us without one"
        return (
            f"Kafka at {broker.bootstrap} refuses {ours} ({lines[0]}): correct broker.cert_file and"
            " broker.key_file, or what the brokers trust"
        )
    if broker.sasl_mechanism == "OAUTHBEARER" and "mechanism handshake" not in said:
        try:
            fetch_token(broker)
        except BrokerError as error:
            return str(error)
        if "authentication" in said:
            return (
                f"Kafka at {broker.bootstrap} refuses the tokens of {broker.oauth_token_url}"
                f" ({lines[0]}): correct broker.oauth_scope, or the issuer, the audience and the"
                " keys that the brokers expect"
            )
    return None


def _cause(text: str) -> str:
    """The telling part of librdkafka's words on a connection: what failed, and why."""
    text = re.sub(r"\s*\(after .*", "", one_line(text))
    return re.sub(r"^\S+: (?=Connect|Failed|SASL|SSL)", "", text)


def _create_mock_topic(
    admin: Any, cluster: Cluster, name: str, partitions: int, timeout_s: float
) -> bool:
    if name in admin.list_topics(timeout=timeout_s).topics:
        return False
    mock = next((mock_clusters[b] for b in cluster.brokers if b in mock_clusters), None)
    if mock is not None:
        mock.create_topic(name, partitions)
        return True
    # Another process holds it: asking for a topic by its name creates it, with four partitions.
    made = len(admin.list_topics(name, timeout=timeout_s).topics[name].partitions)
    if made != partitions:
        raise BrokerError(
            f"topic {name} got {made} partitions instead of {partitions}: only the process that "
            "runs the mock cluster can choose; create the topic there"
        )
    return True
