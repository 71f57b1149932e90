"""The Faust app that brings batches of events from Kafka into the store.

`create_app` composes it: the transport fetches batches, the agent takes them in order and
acknowledges them, the writer brings them into the store.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

import faust
from faust.auth import OAuthCredentials
from faust.tables import TableManager
from faust.types import TP

from infra.kafka.logins import Tokens, broker_secret, tls_context
from infra.metrics import WorkerMetrics
from infra.settings import BrokerSettings, Settings
from infra.store import Store, wall_clock_ms
from infra.telemetry import get_logger
from streaming.agent import BatchAgent
from streaming.assignment import Assignor
from streaming.dead_letters import DeadLetters
from streaming.interruptions import Interruptions
from streaming.positions import Positions
from streaming.topic import TopicIdentity, Topics
from streaming.traces import WorkerTraces
from streaming.transport import BatchTransport, faust_log
from streaming.writer import BatchWriter

log: Final = get_logger(__name__)

QUEUED_BATCHES: Final = 4
"""Batches that wait between fetcher and agent: enough to keep the agent busy, few enough that a
worker holds no more than some MB of events."""

FETCH_BYTES: Final = 4_194_304
"""Most bytes fetched from a partition at once: several full batches, so that few are short ones. A
larger record is still fetched, alone."""

COMMIT_INTERVAL_S: Final = 1.0
"""How often offsets are committed. What a killed worker had not committed is skipped by marks."""

METADATA_MAX_AGE_S: Final = 5.0
"""How soon new partitions, and a topic that appears, are noticed."""

REQUEST_TIMEOUT_S: Final = 40.0
REBALANCE_TIMEOUT_S: Final = 30.0


class LifelongApp(faust.App):
    """A Faust app with the parts that the worker looks after."""

    logger = faust_log
    writer: BatchWriter
    batch_agent: BatchAgent
    broker: BrokerSettings

    def _create_directories(self) -> None:
        """Create none: Faust's are for tables, and state lives in the store."""


class NoTables(TableManager):
    """Faust's tables, of which there are none."""

    async def on_start(self) -> None:
        """Start at once; the parent waits a second for whoever may yet declare a table."""
        await self._update_channels()
        await self.recovery.start()


def create_app(
    settings: Settings,
    store: Store,
    dead_letters: DeadLetters,
    metrics: WorkerMetrics,
    *,
    topic_id: Callable[[str], str],
    digest: bytes | None = None,
    interruptions: Interruptions | None = None,
    traces: WorkerTraces | None = None,
    on_assigned: Callable[[set[TP]], None] = lambda _: None,
    clock: Callable[[], int] = wall_clock_ms,
) -> LifelongApp:
    """Compose the Faust app that brings events into the store. Nothing is connected yet.

    Args:
        settings: all of them, with the sources that are read.
        store: takes the sequences.
        dead_letters: takes what cannot be read.
        metrics: where all of it is counted.
        topic_id: asks the broker for the id of a topic, see `TopicIdentity`.
        digest: of the bundle that users are due for; None: for no other than they were.
        interruptions: outages of the store, after which events are fed again.
        traces: what makes spans of transactions; None: nothing does.
        on_assigned: told the partitions that are ours, after each rebalance.
        clock: ms since epoch.
    """
    app = LifelongApp(settings.broker.group, **_faust_settings(settings))
    app.broker = settings.broker
    app.transport = BatchTransport(app.conf.broker, app)
    # Nothing is produced through Faust: dead letters have an idempotent producer of their own.
    app.boot_strategy.enable_kafka_producer = False
    app.writer = BatchWriter(
        settings,
        store,
        dead_letters,
        metrics,
        digest=digest,
        interruptions=interruptions,
        traces=traces,
        clock=clock,
    )
    names = [one.broker.topic for one in settings.readers()]
    topics = Topics(TopicIdentity(name, partial(topic_id, name)) for name in names)
    held_max_s = settings.worker.held_max_s
    positions = Positions(topics, store, app.writer, metrics, held_max_s)
    app.batch_agent = agent = BatchAgent(
        app, app.writer, topics, positions, metrics, settings.worker.group_bytes
    )
    topic = app.topic(*names, key_serializer="raw", value_serializer="raw", schema=_BatchSchema())

    async def behaviors(stream: Any) -> None:
        await agent.consume(stream.noack().events())

    app.agent(topic, name="behaviors")(behaviors)

    async def assigned(_sender: Any, assigned: set[TP], **_: Any) -> None:
        agent.rebalanced(assigned)
        app.writer.progress.assigned = True
        app.writer.progress.moved()
        for name in names:
            numbers = sorted(tp.partition for tp in assigned if tp.topic == name)
            log.info("partitions assigned", topic=name, partitions=numbers)
        on_assigned(assigned)

    app.on_partitions_assigned.connect(cast("Any", assigned), weak=False)
    return app


class _BatchSchema(faust.Schema[Any, Any]):
    """Passes a batch through as it is: the agent decodes."""

    def compile(self, app: Any, **_: Any) -> Callable[..., Awaitable[Any]]:
        create_event = app.create_event

        async def decode(message: Any, **_: Any) -> Any:
            return create_event(None, message.value, None, message)

        return decode


def _faust_settings(settings: Settings) -> dict[str, Any]:
    """Faust's settings, made of ours."""
    broker, worker = settings.broker, settings.worker
    session = worker.session_timeout_s
    addresses = [address.strip() for address in broker.bootstrap.split(",")]
    return {
        "broker": ";".join(f"kafka://{address}" for address in addresses),
        "broker_credentials": _credentials(broker),
        "broker_session_timeout": session,
        "broker_heartbeat_interval": session / 4,
        "broker_request_timeout": max(REQUEST_TIMEOUT_S, session + 1),
        "broker_rebalance_timeout": REBALANCE_TIMEOUT_S,
        "broker_max_poll_records": worker.fetch_max,
        "broker_commit_interval": COMMIT_INTERVAL_S,
        # Where to go on is for us to find out, and to tell what is lost (`Positions`).
        "consumer_auto_offset_reset": "none",
        "consumer_group_instance_id": worker.member,
        "consumer_max_fetch_size": FETCH_BYTES,
        "consumer_metadata_max_age_ms": int(METADATA_MAX_AGE_S * 1000),
        "key_serializer": "raw",
        "value_serializer": "raw",
        "stream_wait_empty": False,
        "stream_buffer_maxsize": QUEUED_BATCHES,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "web_enabled": False,
        "autodiscover": False,
        "TableManager": NoTables,
        "PartitionAssignor": Assignor,
        "store": "memory://",
    }


def _credentials(broker: BrokerSettings) -> Any:
    """Faust's credentials for Kafka; None where it asks for none."""
    if broker.security_protocol == "PLAINTEXT":
        return None
    context = tls_context(broker) if broker.security_protocol.endswith("SSL") else None
    if broker.security_protocol == "SSL":
        return faust.SSLCredentials(context)
    if broker.sasl_mechanism == "OAUTHBEARER":
        return OAuthCredentials(oauth_cb=Tokens(broker), ssl_context=context)
    return faust.SASLCredentials(
        mechanism=broker.sasl_mechanism,
        username=broker.sasl_username,
        password=broker_secret(broker, "sasl_password"),
        ssl_context=context,
    )
