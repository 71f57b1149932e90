"""A Kafka on this machine, and the few questions that Lifelong asks of any Kafka.

`LocalKafka` runs Apache Kafka itself: fetched once with Maven, one process that is broker and
controller (KRaft), bound to 127.0.0.1. Where Java or Maven is missing, librdkafka's mock cluster
takes its place, and says so. The functions below it work on every Kafka.

    with LocalKafka(Path(".lifelong/kafka")) as kafka:
        create_topic(kafka.bootstrap, "behaviors", 8)

Run as a program (`python -m infra.kafka DIRECTORY OWNER COMMAND...`) this module is the guard that
stands between the owner of a broker and its Java process, so that the latter never outlives the
former. confluent-kafka is therefore imported by the functions that use it: the guard needs none
of it, and stays small.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import hashlib
import logging
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, NamedTuple, Protocol, Self

from infra.errors import BrokerError

if TYPE_CHECKING:
    from infra.settings import BrokerSettings

KAFKA_VERSION: Final = "4.1.2"
JAVA_VERSION: Final = 17
"""Oldest Java that the Kafka above runs on."""

_SLF4J_VERSION: Final = "1.7.36"  # the slf4j-api that this Kafka is built against
_DEPENDENCY_PLUGIN: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
_FETCH_TIMEOUT_S: Final = 600.0  # 43 MB; a slow line, not a dead one
_FORMAT_TIMEOUT_S: Final = 60.0
_GRACE_S: Final = 10.0  # an idle broker needs 0.4 s to close its logs; then SIGKILL
_MOCK_CLUSTER: Final = "mockCluster"  # how librdkafka's mock begins its cluster id
_NO_TOPIC_ID: Final = "A" * 22  # sixteen zero bytes: a Kafka older than topic ids

_POM: Final = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>lifelong</groupId>
  <artifactId>local-kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>{_SLF4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

_JVM_FLAGS: Final = (
    "-Xmx512m",
    # The quick compiler and the plain collector start 0.4 s sooner, and took 3.9 s of CPU rather
    # than 6.1 for 1.5 million events in and out.
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)

# Relative paths (the broker runs in its directory), since `log.dirs` splits at commas.
_PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={data}

# One broker: one copy of everything, and a group that starts without waiting for others.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0

# A misspelt topic is an error, not a new topic; and a deleted one stays deleted.
auto.create.topics.enable=false
# Retention goes by the time in the records: purchases of 2010 would be gone at once.
log.retention.ms=-1
# Events too long for Lifelong must reach it to be refused by it.
message.max.bytes=16777216

# Small: the cleaner alone takes 128 MB otherwise.
log.cleaner.dedupe.buffer.size=2097152
num.network.threads=2
num.io.threads=4
"""

Kind = Literal["auto", "apache", "mock"]


class Log(Protocol):
    """What of a logger is used here; the standard library's and structlog's both fit."""

    def info(self, event: str, /) -> Any: ...

    def warning(self, event: str, /) -> Any: ...


# ---------------------------------------------------------------------------- asking any Kafka


class Cluster(NamedTuple):
    """A Kafka that answered."""

    id: str
    brokers: tuple[str, ...]
    """HOST:PORT of each broker, as the cluster advertises them."""

    @property
    def is_mock(self) -> bool:
        """Whether it is librdkafka's mock: 5 MiB kept per partition, nothing on disk."""
        return self.id.startswith(_MOCK_CLUSTER)


def client_config(broker: BrokerSettings | str) -> dict[str, Any]:
    """Configuration of a confluent-kafka client for ``broker``: its settings, or HOST:PORT.

    Raises:
        BrokerError: the file of certificate authorities is missing.
    """
    config: dict[str, Any] = {
        "client.id": "lifelong",
        "log.connection.close": False,  # brokers close idle connections; that is no news
    }
    if isinstance(broker, str):
        return config | {"bootstrap.servers": broker}
    config["bootstrap.servers"] = broker.bootstrap
    config["security.protocol"] = broker.security_protocol
    if broker.sasl_mechanism is not None:
        config["sasl.mechanism"] = broker.sasl_mechanism
    if broker.sasl_username is not None:
        config["sasl.username"] = broker.sasl_username
    if broker.sasl_password is not None:
        config["sasl.password"] = broker.sasl_password.get_secret_value()
    if broker.ca_file is not None:
        if not broker.ca_file.is_file():  # OpenSSL's words for this name no file
            raise BrokerError(f"broker.ca_file: there is no file {broker.ca_file}: correct it")
        config["ssl.ca.location"] = str(broker.ca_file)
    return config


def producer_config(broker: BrokerSettings | str) -> dict[str, Any]:
    """Configuration of a confluent-kafka producer of events for ``broker``."""
    return client_config(broker) | {
        # librdkafka's own default (CRC32) puts keys elsewhere than the Java and aiokafka clients.
        "partitioner": "murmur2_random",
        # A retry after a lost acknowledgement must not send an event twice.
        "enable.idempotence": True,
        "linger.ms": 5,
    }


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
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import NewTopic

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
        _wait(lambda: _has_leaders(_describe(admin, name, timeout_s)), name, "created", timeout_s)
        return created


def delete_topic(broker: BrokerSettings | str, name: str, *, timeout_s: float = 10.0) -> bool:
    """Delete topic ``name`` with all its records, and wait until it is gone.

    Returns:
        Whether it was there.

    Raises:
        BrokerError: Kafka cannot be reached, or refused; a mock cluster always refuses.
    """
    from confluent_kafka import KafkaError, KafkaException

    with _admin(broker, timeout_s) as admin:
        if _cluster(admin.list_topics(timeout=timeout_s)).is_mock:
            raise BrokerError(
                f"topic {name} cannot be deleted: librdkafka's mock cluster has no such call; "
                "start another one"
            )
        try:
            admin.delete_topics([name], request_timeout=timeout_s)[name].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
            return False
        _wait(lambda: _describe(admin, name, timeout_s) is None, name, "deleted", timeout_s)
        return True


def topic_id(broker: BrokerSettings | str, name: str, *, timeout_s: float = 5.0) -> str:
    """Kafka's id of topic ``name``, base64 of 16 bytes; a topic created again has another one.

    A mock cluster and a Kafka older than 2.8 give none. There it is derived from the name and
    the cluster's id: stable, but blind to a topic deleted and created again.

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
            raise BrokerError(
                f"there is no topic {name} on Kafka at {_bootstrap(broker)}: create it, or "
                "correct its name in the settings"
            )
        if found != _NO_TOPIC_ID:
            return found
        # A mock's id is a mere memory address; its port makes two of them differ.
        where = ",".join(cluster.brokers) if cluster.is_mock else ""
        digest = hashlib.sha256(f"{cluster.id}/{where}/{name}".encode()).digest()[:16]
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def topic_partitions(broker: BrokerSettings | str, name: str, *, timeout_s: float = 5.0) -> int:
    """Number of partitions of topic ``name``; 0 where there is no such topic.

    Raises:
        BrokerError: Kafka cannot be reached.
    """
    with _admin(broker, timeout_s) as admin:
        # All topics are listed: asked for one by its name, a broker may create it.
        topic = admin.list_topics(timeout=timeout_s).topics.get(name)
        return 0 if topic is None else len(topic.partitions)


@contextmanager
def _admin(broker: BrokerSettings | str, timeout_s: float) -> Iterator[Any]:
    """An admin client whose failures are `BrokerError`s that name the place and the cause."""
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import AdminClient

    causes: list[str] = []
    config = client_config(broker) | {
        "error_cb": lambda error: causes.append(error.str()),
        "reconnect.backoff.max.ms": 250,
    }
    where = _bootstrap(broker)
    silent = logging.getLogger(f"{__name__}.librdkafka")  # what it says is in the errors' text
    silent.disabled = True
    try:
        admin = AdminClient(config, logger=silent)
    except KafkaException as error:
        raise BrokerError(f"no client for Kafka at {where}: {_line(error.args[0].str())}") from None
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
            cause = next((c for c in causes if "brokers are down" not in c), failure.str())
            raise BrokerError(
                f"Kafka at {where} did not answer within {timeout_s:g} s ({_cause(cause)}): "
                "start it (`lifelong broker` starts a local one), or correct broker.bootstrap"
            ) from None
        raise BrokerError(f"Kafka at {where} refused: {_line(failure.str())}") from None


def _bootstrap(broker: BrokerSettings | str) -> str:
    return broker if isinstance(broker, str) else broker.bootstrap


def _cluster(metadata: Any) -> Cluster:
    brokers = tuple(f"{b.host}:{b.port}" for b in metadata.brokers.values())
    return Cluster(metadata.cluster_id or "", brokers)


def _describe(admin: Any, name: str, timeout_s: float) -> Any | None:
    """Kafka's description of topic ``name``, or None where there is no such topic."""
    from confluent_kafka import KafkaError, KafkaException, TopicCollection

    try:
        futures = admin.describe_topics(TopicCollection([name]), request_timeout=timeout_s)
        return futures[name].result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return None
        raise


def _has_leaders(topic: Any | None) -> bool:
    return topic is not None and all(p.leader is not None for p in topic.partitions)


def _wait(done: Callable[[], bool], name: str, deed: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise BrokerError(
                f"topic {name} was {deed}, but Kafka does not show that after {timeout_s:g} s: "
                "look at the broker's log"
            )
        time.sleep(0.02)


def _cause(text: str) -> str:
    """The telling part of librdkafka's words on a connection: what failed, and why."""
    text = re.sub(r"\s*\(after .*", "", _line(text))
    return re.sub(r"^\S+: (?=Connect|Failed|SASL|SSL)", "", text)


def _line(text: str, limit: int = 300) -> str:
    """``text`` on one line of at most ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


# --------------------------------------------------------------------------- the mock cluster


class _MockCluster:
    """librdkafka's mock cluster in this process, driven through its C interface.

    confluent-kafka gives no way from Python to create a topic on it with a chosen number of
    partitions; librdkafka's public header `rdkafka_mock.h` does.
    """

    def __init__(self) -> None:
        from confluent_kafka import cimpl

        try:
            # Symbols are looked up in the extension's own dependencies: the very librdkafka.
            self._library = _declare(ctypes.CDLL(cimpl.__file__))
        except (OSError, AttributeError):
            raise BrokerError(
                "this build of confluent-kafka has no mock cluster: install Java 17 and Maven, "
                "or the wheel from PyPI"
            ) from None
        config = self._library.rd_kafka_conf_new()
        # It warns of missing bootstrap servers; this client only carries the cluster.
        self._library.rd_kafka_conf_set(config, b"log_level", b"0", None, 0)
        self._client = self._library.rd_kafka_new(0, config, None, 0)
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, 1)
        if not self._cluster:
            raise BrokerError("librdkafka's mock cluster did not start: 127.0.0.1 has no free port")
        self.bootstrap: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        _mock_clusters[self.bootstrap] = self

    def create_topic(self, name: str, partitions: int) -> None:
        code = self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        if code != 0:
            raise BrokerError(f"the mock cluster refused topic {name}: librdkafka error {code}")

    def close(self) -> None:
        del _mock_clusters[self.bootstrap]
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)


_mock_clusters: Final[dict[str, _MockCluster]] = {}
"""Mock clusters of this process by address: Kafka's protocol cannot create topics on them."""


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the types of the C functions that `_MockCluster` calls."""
    pointer, text, integer, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_conf_set", integer, [pointer, text, text, text, size]),
        ("rd_kafka_new", pointer, [integer, pointer, text, size]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, integer]),
        ("rd_kafka_mock_cluster_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_topic_create", integer, [pointer, text, integer, integer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _create_mock_topic(
    admin: Any, cluster: Cluster, name: str, partitions: int, timeout_s: float
) -> bool:
    if name in admin.list_topics(timeout=timeout_s).topics:
        return False
    mock = next((_mock_clusters[b] for b in cluster.brokers if b in _mock_clusters), None)
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


# --------------------------------------------------------------------------- fetching Kafka


def default_cache() -> Path:
    """Where fetched programs are kept: ``$XDG_CACHE_HOME/lifelong``, or ``~/.cache/lifelong``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "lifelong"


def apache_obstacle(
    cache: Path | None = None, *, java: str = "java", maven: str = "mvn"
) -> str | None:
    """Why Apache Kafka cannot run on this machine, in one line; None where it can."""
    if shutil.which(java) is None:
        return f"there is no Java ({java}): install Java {JAVA_VERSION} or newer"
    try:
        answer = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Java does not run ({_line(str(error))}): install Java {JAVA_VERSION} or newer"
    version = re.search(r'version "(\d+)', answer.stderr + answer.stdout)
    if answer.returncode != 0 or version is None:
        said = _line(answer.stderr or answer.stdout, 100)
        return f"Java does not run ({said}): install Java {JAVA_VERSION} or newer"
    if int(version[1]) < JAVA_VERSION:
        return f"Java is too old ({version[0]}): install Java {JAVA_VERSION} or newer"
    fetched = ((cache or default_cache()) / f"kafka-{KAFKA_VERSION}").is_dir()
    if not fetched and shutil.which(maven) is None:
        return f"there is no Maven ({maven}) to fetch Kafka with: install Maven"
    return None


def fetch_kafka(cache: Path | None = None, *, maven: str = "mvn", log: Log | None = None) -> Path:
    """The folder with Apache Kafka's jars, fetched with Maven the first time (43 MB, about 6 s).

    Processes that do this at the same time wait for one of them. What is there is complete: the
    folder appears in one step.

    Raises:
        BrokerError: Maven is missing or failed, or the cache cannot be written.
    """
    cache = cache or default_cache()
    target = cache / f"kafka-{KAFKA_VERSION}"
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"kafka-{KAFKA_VERSION}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given back by the system, however we end
            if not target.is_dir():
                (log or logging.getLogger(__name__)).info(
                    f"fetching Apache Kafka {KAFKA_VERSION} with Maven (43 MB, this once)"
                )
                for leftover in cache.glob(f"kafka-{KAFKA_VERSION}.part-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                part = Path(tempfile.mkdtemp(prefix=f"kafka-{KAFKA_VERSION}.part-", dir=cache))
                try:
                    _run_maven(maven, part)
                    (part / "jars").rename(target)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise BrokerError(f"Kafka cannot be kept in {cache}: {_line(str(error))}") from None
    return target


def _run_maven(maven: str, directory: Path) -> None:
    """Let Maven put Kafka and all it needs into ``directory``/jars."""
    (directory / "pom.xml").write_text(_POM)
    jars = directory / "jars"
    command = [
        *(maven, "--batch-mode", "--strict-checksums", "-f", str(directory / "pom.xml")),
        f"{_DEPENDENCY_PLUGIN}:copy-dependencies",
        f"-DoutputDirectory={jars}",
        "-DincludeScope=runtime",
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_FETCH_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise BrokerError(f"there is no Maven ({maven}) to fetch Kafka with: install it") from None
    except subprocess.TimeoutExpired:
        raise BrokerError(
            f"Maven has not fetched Kafka within {_FETCH_TIMEOUT_S:g} s: try again"
        ) from None
    if done.returncode != 0 or not (jars / f"kafka_2.13-{KAFKA_VERSION}.jar").is_file():
        said = (done.stdout + "\n" + done.stderr).splitlines()
        errors = [line.partition("[ERROR]")[2] for line in said if "[ERROR]" in line]
        reason = next(filter(str.strip, errors or said), f"exit status {done.returncode}")
        raise BrokerError(
            f"Maven could not fetch Kafka {KAFKA_VERSION} ({_line(reason)}): is there a network?"
        )


# --------------------------------------------------------------------------- the local Kafka


class LocalKafka:
    """A Kafka of one broker on 127.0.0.1 that lives no longer than its owner.

    Records are kept in ``directory`` and survive `stop` and `start`, which keeps the port. The
    broker's own log is ``directory``/kafka.log.

    Args:
        directory: where records, settings and log go; made if it is not there.
        port: to listen on; 0 picks a free one and stays with it.
        kind: ``apache``, ``mock``, or ``auto``: Apache Kafka where it can run, or else the mock
            cluster, with a warning. A mock keeps 5 MiB per partition, in this process's memory
            and no longer than until `stop`, and picks its own port each time.
        log: takes the progress and the warning.
        cache: where Apache Kafka is fetched to; by default `default_cache`.
        java, maven: the commands.
    """

    def __init__(
        self,
        directory: Path,
        port: int = 0,
        *,
        kind: Kind = "auto",
        log: Log | None = None,
        cache: Path | None = None,
        java: str = "java",
        maven: str = "mvn",
    ) -> None:
        self.directory = directory.absolute()
        self._port = port
        self._kind: Kind = kind
        self._log: Log = log or logging.getLogger(__name__)
        self._cache = cache
        self._java = java
        self._maven = maven
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._mock: _MockCluster | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def kind(self) -> Kind:
        """``apache`` or ``mock``; ``auto`` before the first start has decided."""
        return self._kind

    @property
    def pid(self) -> int | None:
        """Process id of the broker; None where none runs (a mock has no process of its own)."""
        return self._pid

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended since."""
        return self._mock is not None or (self._guard is not None and self._guard.poll() is None)

    @property
    def bootstrap(self) -> str:
        """HOST:PORT for clients; known once started, and kept while an Apache Kafka is stopped."""
        if self._mock is not None:
            return self._mock.bootstrap
        if not self._port:
            raise BrokerError("the local Kafka has no address yet: start it first")
        return f"127.0.0.1:{self._port}"

    @property
    def log_file(self) -> Path:
        """The broker's own log."""
        return self.directory / "kafka.log"

    def start(self, timeout_s: float = 60.0) -> str:
        """Start it and wait until it answers; nothing happens where it runs already.

        Returns:
            HOST:PORT for clients.

        Raises:
            BrokerError: it did not start; nothing is left running.
        """
        if self.running:
            return self.bootstrap
        self.stop()  # of one that has ended by itself, what is left
        jars = self._decide()
        if jars is None:
            self._mock = _MockCluster()
        else:
            try:
                self._start_apache(jars, timeout_s)
            except BaseException:  # Ctrl-C too leaves no process behind
                self.stop()
                raise
        return self.bootstrap

    def stop(self) -> None:
        """Stop it, gently for ten seconds and then for sure; nothing happens where none runs."""
        if self._mock is not None:
            mock, self._mock = self._mock, None
            mock.close()
        if self._guard is not None:
            guard, self._guard, self._pid = self._guard, None, None
            _end_guard(guard)

    def _decide(self) -> Path | None:
        """Settle the kind. The jars of an Apache Kafka, or None for a mock."""
        if self._kind == "mock":
            self._warn_of_mock("as asked")
            return None
        obstacle = apache_obstacle(self._cache, java=self._java, maven=self._maven)
        jars = None
        if obstacle is None:
            try:
                jars = fetch_kafka(self._cache, maven=self._maven, log=self._log)
            except BrokerError as error:
                obstacle = str(error)
        if jars is not None:
            self._kind = "apache"
        elif self._kind == "apache":
            raise BrokerError(f"Apache Kafka cannot run here: {obstacle}")
        else:
            self._kind = "mock"
            self._warn_of_mock(f"{obstacle}")
        return jars

    def _warn_of_mock(self, reason: str) -> None:
        self._log.warning(
            f"this is not a real Kafka but librdkafka's mock cluster ({reason}): it keeps 5 MiB "
            "per partition, in memory; never rely on it for more than a look"
        )

    def _start_apache(self, jars: Path, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        self._port = _claim_port(self._port)
        java = [self._java, *_JVM_FLAGS, "-cp", f"{jars}/*"]
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._claim_directory() as log:
                cluster_id = self._format(java)
                self._write_properties("server.properties", "data")
                self._guard = _start_guard(
                    self.directory, [*java, "kafka.Kafka", "server.properties"], log.fileno()
                )
        except OSError as error:
            raise BrokerError(
                f"Kafka cannot use the directory {self.directory}: {_line(str(error))}"
            ) from None
        assert self._guard.stdout is not None
        self._pid = int(self._guard.stdout.readline() or 0) or None
        self._wait_until_it_answers(cluster_id, timeout_s, deadline)

    def _claim_directory(self) -> BinaryIO:
        """The broker's empty log, locked: broker and guard inherit the lock, and end it.

        Kafka's own lock comes too late: by then a second one has spoilt the first one's metadata.
        """
        log = self.log_file.open("ab")
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.close()
            raise BrokerError(
                f"another Kafka uses {self.directory}: stop it, or give another directory"
            ) from None
        log.truncate(0)
        return log

    def _format(self, java: list[str]) -> str:
        """Format the storage unless it is; return the cluster's id."""
        data, part = self.directory / "data", self.directory / "data.part"
        if not data.is_dir():
            shutil.rmtree(part, ignore_errors=True)
            properties = self._write_properties("format.properties", part.name)
            # Sixteen bytes in base64; an argument must not begin with a dash.
            cluster_id = "K" + secrets.token_urlsafe(16)[1:]
            arguments = ["format", "--standalone", "-t", cluster_id, "-c", properties.name]
            try:
                done = subprocess.run(
                    [*java, "kafka.tools.StorageTool", *arguments],
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    timeout=_FORMAT_TIMEOUT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise BrokerError(
                    f"Kafka has not formatted {self.directory} in {error.timeout:g} s: try again"
                ) from None
            if done.returncode != 0:
                raise BrokerError(
                    f"Kafka cannot format {self.directory}: {_failure_in(done.stdout)}"
                )
            properties.unlink()
            part.rename(data)  # in one step: a format cut short must not look like one
        properties = data / "meta.properties"
        found = re.search(r"^cluster\.id=(\S+)", properties.read_text(), re.MULTILINE)
        if found is None:
            raise BrokerError(
                f"{properties} names no cluster: give another directory, or remove this one"
            )
        return found[1]

    def _write_properties(self, name: str, data: str) -> Path:
        path = self.directory / name
        controller_port = _claim_port(0, taken=self._port)
        path.write_text(
            _PROPERTIES.format(port=self._port, controller_port=controller_port, data=data)
        )
        return path

    def _wait_until_it_answers(self, cluster_id: str, timeout_s: float, deadline: float) -> None:
        assert self._guard is not None
        while time.monotonic() < deadline:
            if self._guard.poll() is not None:
                said = self.log_file.read_text(errors="replace")
                raise BrokerError(
                    f"Kafka ended while starting on port {self._port} of {self.directory}: "
                    f"{_failure_in(said)} (see {self.log_file})"
                )
            if _listens(self._port):
                with suppress(BrokerError):
                    if ping(self.bootstrap, timeout_s=1.0).id == cluster_id:
                        return
            time.sleep(0.02)
        raise BrokerError(
            f"Kafka does not answer at {self.bootstrap} within {timeout_s:g} s: see {self.log_file}"
        )


def _claim_port(port: int, taken: int = 0) -> int:
    """``port`` if it is free; for 0 a free one other than ``taken``.

    Free ones are looked for below the range from which systems give clients their own ports:
    there, one of our clients could come to sit on the port of a broker that is away for a while,
    or even connect to itself.
    """
    if port:
        if (obstacle := _port_obstacle(port)) is not None:
            raise BrokerError(
                f"Kafka cannot listen on 127.0.0.1:{port} ({obstacle}): stop what listens there, "
                "or choose another port"
            )
        return port
    for _ in range(100):
        candidate = 20_000 + secrets.randbelow(12_000)
        if candidate != taken and _port_obstacle(candidate) is None:
            return candidate
    raise BrokerError("Kafka finds no free port between 20000 and 32000 on 127.0.0.1: choose one")


def _port_obstacle(port: int) -> str | None:
    with socket.socket() as probe:
        # As Java does: connections of a broker that has just ended are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            return _line(getattr(error, "strerror", None) or str(error))
    return None


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _failure_in(output: str) -> str:
    """The line of a Java program's output that tells best why it failed."""
    lines = [line for line in output.splitlines() if line.strip()]
    for pattern in (r"^Caused by: ", r"(Exception|Error)(: |$)", r"ERROR|FATAL"):
        telling = [line for line in lines if re.search(pattern, line)]
        if telling:
            return _line(telling[-1])
    return _line(lines[-1]) if lines else "it said nothing"


# --------------------------------------------------------------------------- the guard


def _start_guard(directory: Path, command: list[str], log: int) -> subprocess.Popen[bytes]:
    """Start ``command`` in ``directory`` under a guard, which first prints its process id."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(directory), str(os.getpid()), *command],
        cwd=Path(__file__).parents[1],  # where -m finds this package, installed or not
        stdin=subprocess.PIPE,  # held open as long as we live
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,  # Ctrl-C is for us; and one group to kill
    )


def _end_guard(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    assert guard.stdout is not None
    guard.stdin.close()
    try:
        guard.wait(_GRACE_S + 2.0)
    except BaseException as error:  # Ctrl-C while waiting: no more patience, but no orphan
        with suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)
        guard.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
    finally:
        guard.stdout.close()


def _stand_guard(directory: str, owner: int, command: list[str]) -> int:
    """Run ``command`` until it ends or the owner is gone; return its exit status.

    The owner closes our standard input to have the command stopped, and dying closes it too,
    even by SIGKILL. A process forked off the owner may hold it open by accident, so we look
    every second whether the owner is still our parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        stderr=sys.stderr,
        # In case that somebody kills the guard; safe, since no thread runs here yet.
        preexec_fn=_die_with_parent,  # noqa: PLW1509
    )
    os.write(1, f"{process.pid}\n".encode())

    def watch_owner() -> None:
        while os.getppid() == owner and not select.select([0], [], [], 1.0)[0]:
            pass
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()

    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    threading.Thread(target=watch_owner, daemon=True).start()
    return process.wait()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    os._exit(_stand_guard(sys.argv[1], int(sys.argv[2]), sys.argv[3:]) & 0xFF)
