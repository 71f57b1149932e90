"""A way to a Kafka broker that can fall silent: connections stay open, and give nothing."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from infra.settings import Settings

_HOST: Final = "127.0.0.1"
_LENGTH: Final = struct.Struct(">i")


@dataclass(eq=False)
class _Connection:
    """A client's connection, and the one to the broker that was made for it."""

    client: socket.socket
    broker: socket.socket
    silent: bool = False
    """Whether all that comes is thrown away; once it has been, the two are out of step for ever."""

    def close(self) -> None:
        for end in (self.client, self.broker):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class SilentProxy:
    """Passes on what a client and a broker on this machine say to each other, until told not to.

    The broker names itself in its answers; there it is given the proxy's port, so that whoever
    begins here stays here.

    Args:
        bootstrap: HOST:PORT of the broker, on 127.0.0.1.
    """

    def __init__(self, bootstrap: str) -> None:
        self._port = int(bootstrap.rpartition(":")[2])
        self._listener = socket.create_server((_HOST, 0))
        self.bootstrap = f"{_HOST}:{self._listener.getsockname()[1]}"
        self._silent_to: bytes | None = None
        self._connections: set[_Connection] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        _start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections):
            connection.close()

    def fall_silent(self) -> None:
        """Throw away all that comes from now on, through connections that are there or to come."""
        with self._lock:
            self._silent_to = b""
            for connection in self._connections:
                connection.silent = True

    def fall_silent_to(self, client_id: bytes) -> None:
        """The same, for clients whose id has that in it, from what each asks next."""
        self._silent_to = client_id

    def speak(self) -> None:
        """Pass on what comes through new connections. The others stay open, and silent."""
        self._silent_to = None

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                try:
                    broker = socket.create_connection((_HOST, self._port))
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    connection = _Connection(client, broker, self._silent_to == b"")
                    self._connections.add(connection)
                _start(self._ask, connection)
                _start(self._answer, connection)

    def _ask(self, connection: _Connection) -> None:
        with contextlib.suppress(OSError):
            while said := connection.client.recv(1 << 16):
                if self._silent_to is not None and self._silent_to in said:
                    connection.silent = True
                if not connection.silent:
                    connection.broker.sendall(said)
        self._end(connection)

    def _answer(self, connection: _Connection) -> None:
        port = int(self.bootstrap.rpartition(":")[2])
        theirs, ours = (_HOST.encode() + _LENGTH.pack(one) for one in (self._port, port))
        with contextlib.suppress(OSError), connection.broker.makefile("rb") as answers:
            while len(length := answers.read(_LENGTH.size)) == _LENGTH.size:
                answer = answers.read(*_LENGTH.unpack(length))
                if not connection.silent:
                    connection.client.sendall(length + answer.replace(theirs, ours))
        self._end(connection)

    def _end(self, connection: _Connection) -> None:
        """Close both ends; a silent one is left to its client, which hears nothing of it."""
        if not connection.silent:
            connection.close()
            self._connections.discard(connection)


def behind(proxy: SilentProxy, settings: Settings) -> Settings:
    """The same settings, with the broker reached through a proxy."""
    broker = settings.broker.model_copy(update={"bootstrap": proxy.bootstrap})
    return settings.model_copy(update={"broker": broker})


def _start(run: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=run, args=arguments, daemon=True).start()
