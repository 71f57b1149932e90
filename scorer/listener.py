"""The scorer's addresses: the listening socket that all its processes share, and other ports."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Final

from infra.errors import SettingsError
from infra.settings import ScorerSettings

BACKLOG: Final = 2048
"""Connections the kernel holds while every process is busy."""

LOST_S: Final = 30
"""Time after which a connection is given up whose other end does not acknowledge what is sent."""

OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", socket.TCP_KEEPCNT), 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", socket.TCP_KEEPCNT), LOST_S * 1000),
)
"""Options that accepted connections inherit: a client whose machine is gone is noticed."""


def listen(settings: ScorerSettings) -> socket.socket:
    """The socket of ``settings``, bound and listening.

    Raises:
        SettingsError: it is taken, or no address of this machine.
    """
    try:
        listener = socket.create_server(
            (settings.host, settings.port), family=_family(settings.host), backlog=BACKLOG
        )
    except OSError as error:
        raise _taken(settings, "host", "port", error) from error
    for level, option, value in OPTIONS:
        listener.setsockopt(level, option, value)
    return listener


@contextlib.contextmanager
def reserved(settings: ScorerSettings) -> Iterator[None]:
    """Keep ``scorer.grpc_port`` and ``admin_port``, where there are such, for the processes of this
    scorer.

    Each process binds a socket of its own there (SO_REUSEPORT: gRPC takes none that is open
    already), and the kernel spreads connections over those that listen. So a stranger on the port
    would get a share of them, rather than either an error; that is found out here.

    Raises:
        SettingsError: one is taken, or no address of this machine.
    """
    with contextlib.ExitStack() as held:
        if settings.grpc_port:
            held.enter_context(_held(settings, "host", "grpc_port"))
        if settings.admin_port:
            held.enter_context(_held(settings, "admin_host", "admin_port"))
        yield


@contextlib.contextmanager
def _held(settings: ScorerSettings, host: str, port: str) -> Iterator[None]:
    address = getattr(settings, host), getattr(settings, port)
    with socket.socket(_family(address[0])) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            # Of its own, this fails where anybody is; the holder would share with another scorer.
            socket.create_server(address, family=_family(address[0])).close()
            holder.bind(address)
        except OSError as error:
            raise _taken(settings, host, port, error) from error
        yield


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _taken(settings: ScorerSettings, host: str, name: str, error: OSError) -> SettingsError:
    what = error.strerror  # of create_server, with the address once more
    if error.errno is not None and not isinstance(error, socket.gaierror):
        what = os.strerror(error.errno)
    port = getattr(settings, name)
    return SettingsError(
        f"scorer.{host} = {getattr(settings, host)!r}, scorer.{name} = {port}: cannot listen there "
        f"({what}); choose others, or stop what listens there"
    )
