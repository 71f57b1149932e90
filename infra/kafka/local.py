"""A Kafka on this machine, for as long as a program needs one.

`LocalKafka` runs Apache Kafka itself: fetched once with Maven, one process that is broker and
controller (KRaft), bound to 127.0.0.1. Where Java or Maven is missing, librdkafka's mock cluster
takes its place, and says so.

    with LocalKafka(Path(".lifelong/kafka")) as kafka:
        create_topic(kafka.bootstrap, "behaviors", 8)
"""

from __future__ import annotations

import fcntl
import logging
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Literal, Self

from infra.errors import BrokerError, one_line
from infra.kafka.admin import ping
from infra.kafka.jars import apache_obstacle, fetch_kafka
from infra.kafka.mock import MockCluster
from infra.processes import end_guard, start_guard
from infra.telemetry import Log

_FORMAT_TIMEOUT_S: Final = 60.0

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

# Relative paths (the broker runs in its directory), since Kafka's log.dirs splits at commas.
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
# A broker that was killed and started again must wait until its own old session has ended; by
# default nine seconds.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# By default no member of a group may be missed within six seconds; on one machine it can be.
group.min.session.timeout.ms=1000

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
        java, maven: the commands that run them.
        properties: further settings of Apache Kafka, over ours.
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
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self._port = port
        self._kind: Kind = kind
        self._log: Log = log or logging.getLogger(__name__)
        self._cache = cache
        self._java = java
        self._maven = maven
        self._properties = dict(properties or {})
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._mock: MockCluster | None = None

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
        self.stop()  # what is left of one that has ended by itself
        jars = self._decide()
        if jars is None:
            self._mock = MockCluster()
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
            end_guard(guard)

    def _decide(self) -> Path | None:
        """Settle which kind is started; the jars of Apache Kafka, or None for a mock."""
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
                self._guard = start_guard(
                    self.directory, [*java, "kafka.Kafka", "server.properties"], log.fileno()
                )
        except OSError as error:
            raise BrokerError(
                f"Kafka cannot use the directory {self.directory}: {one_line(error)}"
            ) from None
        assert self._guard.stdout is not None
        self._pid = int(self._guard.stdout.readline() or 0) or None
        self._wait_until_it_answers(cluster_id, timeout_s, deadline)

    def _claim_directory(self) -> BinaryIO:
        """The broker's log, emptied and locked; broker and guard inherit the lock and end it.

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
        ours = _PROPERTIES.format(port=self._port, controller_port=controller_port, data=data)
        more = "".join(f"{key}={value}\n" for key, value in self._properties.items())
        path.write_text(ours + more)  # the last of two settings counts
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
            return one_line(getattr(error, "strerror", None) or str(error))
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
            return one_line(telling[-1])
    return one_line(lines[-1]) if lines else "it said nothing"
