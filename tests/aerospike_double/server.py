"""A server on a socket that the real Aerospike client takes for a cluster of one node."""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final, Self

from .gate import Gate
from .namespace import (
    INDEX_FOUND,
    INDEX_NOT_FOUND,
    INDEX_NOT_READABLE,
    NO_NAMESPACE,
    OK,
    PARTITIONS,
    Namespace,
    Record,
)
from .wire import (
    FIELD_BATCH,
    FIELD_DIGEST,
    FIELD_INDEX_RANGE,
    FIELD_MAX_RECORDS,
    FIELD_NAMESPACE,
    FIELD_PARTITIONS,
    FIELD_SET,
    INFO,
    INFO1_BATCH,
    MESSAGE,
    SECURITY,
    Message,
    Particle,
    Reply,
    Request,
    frame,
    frame_header,
    pack_last,
    pack_partition_done,
    pack_reply,
    parse_batch,
    parse_index_range,
    parse_message,
)

BUILD: Final = "8.1.2.0"
FEATURES: Final = (
    "batch-any;batch-index;blob-bits;cdt-list;cdt-map;cluster-stable;float;partition-query;"
    "peers;pipelining;pquery;pscans;query-show;relaxed-sc;replicas;replicas-all;sindex-exists;"
    "truncate-namespace"
)
NODE: Final = "BB9020011AC4202"
OTHER_NODE: Final = "BB9020011AC4203"
ALL, EVEN, ODD = b"\xff", b"\xaa", b"\x55"
"""Partitions that a node serves, as a byte of its bitmap repeats it."""
SECURITY_NOT_ENABLED: Final = 52
CHUNK: Final = 128 << 10
"""A query's answer goes out in frames of about this size."""

Fault = Callable[[Request], "int | None"]


class AerospikeDouble:
    """One node, one namespace, on 127.0.0.1; with `join`, one of two.

    Faults a test can order: `go_away` and `come_back`, ``fault`` (a function that may answer any
    record's command with a result code instead of carrying it out, or do something behind the
    client's back first), ``delay_s`` before every answer but info's, ``info_delay_s`` before those,
    ``builds`` (an index that is made is not readable until `finish_indexes`), `drop_index`, `kill`
    (which loses what was not flushed), `advance` for the clock, and ``gate`` (which lets commands
    in by so many at a time, see `Gate`).

    >>> with AerospikeDouble() as server:
    ...     server.host
    '127.0.0.1'
    """

    def __init__(
        self,
        *,
        namespace: str = "test",
        default_ttl: int = 0,
        nsup_period: int = 120,
        indexes: dict[str, tuple[str, str]] | None = None,
        build: str = BUILD,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.namespace = namespace
        self.build = build
        self.data = Namespace(namespace, default_ttl=default_ttl, nsup_period=nsup_period)
        self.data.indexes.update(indexes or {})
        self.fault: Fault | None = None
        self.security_code = SECURITY_NOT_ENABLED
        """The answer to a login. 52: this server has no security, as the community edition."""
        self.delay_s = self.info_delay_s = 0.0
        self.gate: Gate | None = None
        self.refuses_data = False
        """Listens and answers info, as a server that is still starting, but no data command."""
        self.up_since = time.monotonic() - 1000
        """As one that has been in use; `come_back` starts another."""
        self.builds = False
        self.tells_config = True
        self.fullness = {
            "stop_writes": "false",
            "data_avail_pct": "99",
            "data_used_pct": "0",
            "storage-engine.stop-writes-avail-pct": "5",
            "storage-engine.stop-writes-used-pct": "70",
        }
        """What it says of the namespace's room, by the names of server 7 and later."""
        self.info_log: list[str] = []
        self._node = NODE
        self._serves = ALL
        self._peers = ""
        self._lock = threading.RLock()
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()

    def join(self, other: AerospikeDouble) -> None:
        """Be a cluster of two: this node has the even partitions from now on, the other one the odd
        ones. Clients that connect later know.
        """
        other._node = OTHER_NODE
        self._serves, other._serves = EVEN, ODD
        self._peers = f"[{OTHER_NODE},,[{other.host}:{other.port}]]"
        other._peers = f"[{NODE},,[{self.host}:{self.port}]]"

    def come_back(self) -> None:
        """Start anew, on the same port as before."""
        self.up_since = time.monotonic()
        self._listen()

    def _listen(self) -> None:
        assert self._listener is None, "the server is there already"
        listener = socket.create_server((self.host, self.port), backlog=64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accept, listener)

    def go_away(self) -> None:
        """Stop listening and cut every connection; the records stay."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        threads, self._threads = self._threads, []
        for thread in threads:
            thread.join(timeout=5)

    def kill(self, *set_names: str) -> None:
        """`go_away`, and lose what these sets hold since the last ``data.flush``: devices flush
        each by itself, so that of two records the later may be kept and the earlier lost.
        """
        self.go_away()
        for name in set_names:
            self.data.lose(name)

    def drop_index(self, name: str) -> None:
        """Lose an index, as by a restart whose directory of metadata is gone."""
        with self._lock:
            del self.data.indexes[name]

    def finish_indexes(self) -> None:
        """End the building of indexes, those that are made from now on included."""
        with self._lock:
            self.builds = False
            self.data.building.clear()

    def advance(self, seconds: float) -> None:
        """Put the clock forward, so that records expire."""
        self.data.advanced_s += seconds

    def records(self, set_name: str) -> list[Record]:
        """What a set holds now, for a test to look at."""
        with self._lock:
            return [
                record
                for digest, record in self.data.records.items()
                if record.set == set_name and self.data.live(digest) is not None
            ]

    def _start(self, work: Callable[[socket.socket], None], sock: socket.socket) -> None:
        thread = threading.Thread(target=work, args=(sock,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections.add(connection)
            if self._listener is not listener:
                connection.close()
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while True:
                    kind, size = frame_header(_read(connection, 8))
                    self._answer(connection, kind, _read(connection, size))
            except (OSError, EOFError):
                pass
            finally:
                with self._lock:
                    self._connections.discard(connection)

    def _answer(self, connection: socket.socket, kind: int, body: bytes) -> None:
        if kind == INFO:
            if self.info_delay_s:
                time.sleep(self.info_delay_s)
            connection.sendall(frame(INFO, self._info(body)))
        elif kind == SECURITY:
            connection.sendall(frame(SECURITY, bytes([0, self.security_code]) + bytes(14)))
        elif kind == MESSAGE:
            if self.refuses_data:
                raise EOFError
            if self.gate is not None:
                self.gate.arrive()
            if self.delay_s:
                time.sleep(self.delay_s)
            message = parse_message(body)
            if message.info1 & INFO1_BATCH:
                connection.sendall(frame(MESSAGE, self._batch(message)))
            elif FIELD_PARTITIONS in message.fields:
                self._query(connection, message)
            else:
                reply = self._execute(message.request())
                connection.sendall(frame(MESSAGE, pack_reply(reply)))
        else:
            raise EOFError

    # Data commands

    def _execute(self, request: Request) -> Reply:
        if request.namespace != self.namespace:
            return Reply(NO_NAMESPACE)
        # Without the lock: a fault may be another client's command that comes in between.
        if self.fault is not None and (code := self.fault(request)) is not None:
            return Reply(code)
        with self._lock:
            return self.data.execute(request)

    def _batch(self, message: Message) -> bytes:
        rows, respond_all = parse_batch(message.fields[FIELD_BATCH])
        parts: list[bytes] = []
        for index, request in rows:
            reply = self._execute(request)
            parts.append(pack_reply(reply, index=index, fields={FIELD_DIGEST: request.digest}))
            if reply.code not in (OK, 2) and not respond_all:
                break
        return b"".join(parts) + pack_last()

    def _query(self, connection: socket.socket, message: Message) -> None:
        if message.fields[FIELD_NAMESPACE].decode() != self.namespace:
            connection.sendall(frame(MESSAGE, pack_last(NO_NAMESPACE)))
            return
        set_name = message.fields.get(FIELD_SET, b"").decode()
        wanted = message.fields[FIELD_PARTITIONS]
        partitions = struct.unpack(f"<{len(wanted) // 2}H", wanted)
        room = -1
        if FIELD_MAX_RECORDS in message.fields:
            (room,) = struct.unpack(">Q", message.fields[FIELD_MAX_RECORDS])
        with self._lock:
            found = self._find(message, set_name, partitions)
        if isinstance(found, int):
            connection.sendall(frame(MESSAGE, pack_last(found)))
            return
        names = [operation.bin for operation in message.operations]
        parts: list[bytes] = []
        size = 0
        for partition in partitions:
            for digest, record in found.get(partition, ()):
                if room == 0:
                    break
                room -= 1
                parts.append(self._row(set_name, digest, record, names))
                size += len(parts[-1])
            else:
                parts.append(pack_partition_done(partition))
            if size > CHUNK:
                connection.sendall(frame(MESSAGE, b"".join(parts)))
                parts = []
                size = 0
        connection.sendall(frame(MESSAGE, b"".join(parts) + pack_last()))

    def _find(
        self, message: Message, set_name: str, partitions: tuple[int, ...]
    ) -> dict[int, list[tuple[bytes, Record]]] | int:
        """The records by partition, or a result code."""
        if FIELD_INDEX_RANGE in message.fields:
            bin_name, low, high = parse_index_range(message.fields[FIELD_INDEX_RANGE])
            target = set_name, bin_name
            name = next((n for n, of in self.data.indexes.items() if of == target), None)
            if name is None:
                return INDEX_NOT_FOUND
            if name in self.data.building:
                return INDEX_NOT_READABLE
            return self.data.select(set_name, bin_name, low, high)
        found: dict[int, list[tuple[bytes, Record]]] = {}
        for partition, digest, record in self.data.scan(set_name):
            found.setdefault(partition, []).append((digest, record))
        return found

    def _row(self, set_name: str, digest: bytes, record: Record, names: list[str]) -> bytes:
        chosen: list[tuple[str, Particle | None]] = [
            (name, value) for name, value in record.bins.items() if not names or name in names
        ]
        fields = {
            FIELD_NAMESPACE: self.namespace.encode(),
            FIELD_SET: set_name.encode(),
            FIELD_DIGEST: digest,
        }
        reply = Reply(OK, record.generation, record.void_time, chosen)
        return pack_reply(reply, fields=fields)

    # Info commands

    def _info(self, body: bytes) -> bytes:
        lines = []
        for command in body.decode().splitlines():
            self.info_log.append(command)
            lines.append(f"{command}\t{self._info_value(command)}\n")
        return "".join(lines).encode()

    def _info_value(self, command: str) -> str:
        name, _, arguments = command.partition(":")
        if name.startswith("sindex-"):
            return self._index(name, _arguments(arguments))
        if name == "get-config":
            return self._config(_arguments(arguments))
        nodes = 2 if self._peers else 1
        owned = base64.b64encode(self._serves * (PARTITIONS // 8)).decode()
        values = {
            "node": self._node,
            "build": self.build,
            "edition": "Aerospike Community Edition",
            "features": FEATURES,
            "partitions": str(PARTITIONS),
            "partition-generation": "1",
            "peers-generation": "1",
            "rebalance-generation": "1",
            "cluster-name": "null",
            "namespaces": self.namespace,
            f"namespace/{self.namespace}": ";".join("=".join(one) for one in self.fullness.items()),
            "status": "ok",
            "statistics": f"cluster_size={nodes};uptime={int(time.monotonic() - self.up_since)}",
            "user-agent-set": "ok",
            # regime, replicas, and one bit per partition that this node masters
            "replicas": f"{self.namespace}:0,1,{owned}",
            # generation, default port, peers
            "peers-clear-std": f"1,{self.port},[{self._peers}]",
            "peers-clear-alt": f"1,{self.port},[{self._peers}]",
            "service-clear-std": f"{self.host}:{self.port}",
        }
        return values.get(name, "ERROR:4:unrecognized command")

    def _config(self, arguments: dict[str, str]) -> str:
        if arguments.get("context") != "namespace" or not self.tells_config:
            return "ERROR:4:unrecognized command"
        if arguments.get("id") != self.namespace:
            return "ERROR:20:namespace not found"
        values = {
            "default-ttl": self.data.default_ttl,
            "max-record-size": self.data.max_record,
            "nsup-period": self.data.nsup_period,
            "replication-factor": 1,
            "strong-consistency": "false",
        }
        return ";".join(f"{name}={value}" for name, value in values.items())

    def _index(self, command: str, arguments: dict[str, str]) -> str:
        if self.build < "8.1":
            if "ns" not in arguments:
                return "ERROR:4:missing 'ns'"
            bin_name, _, _ = arguments.get("indexdata", "").partition(",")
            arguments |= {"namespace": arguments["ns"], "bin": bin_name}
        if arguments.get("namespace") != self.namespace:
            return "ERROR:20:namespace not found"
        name = arguments.get("indexname", "")
        with self._lock:
            indexes = self.data.indexes
            if command == "sindex-create":
                target = (arguments["set"], arguments["bin"])
                if name in indexes or target in indexes.values():
                    return f"ERROR:{INDEX_FOUND}:index already exists"
                indexes[name] = target
                if self.builds:
                    self.data.building.add(name)
                return "ok"
            if command == "sindex-exists":
                return str(name in indexes).lower()
            if name not in indexes:
                return f"ERROR:{INDEX_NOT_FOUND}:no index"
            if command == "sindex-delete":
                del indexes[name]
                return "ok"
            done = 0 if name in self.data.building else 100
            return f"entries=0;load_pct={done};state=RW"


def refuse_writes(code: int, set_name: str | None = None) -> Fault:
    """A fault: every write (to that set) ends with this result code, as on a full device."""

    def fault(request: Request) -> int | None:
        hit = request.writes and set_name in (None, request.set)
        return code if hit else None

    return fault


def _arguments(packed: str) -> dict[str, str]:
    return dict(re.findall(r"([\w-]+)=([^;]*)", packed))


def _read(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
