"""The listening socket of the scorer, which all its processes share."""

from __future__ import annotations

import os
import socket
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
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (settings.host, settings.port), family=family, backlog=BACKLOG
        )
    except OSError as error:
        what = error.strerror  # of create_server, with the address once more
        if error.errno is not None and not isinstance(error, socket.gaierror):
            what = os.strerror(error.errno)
        raise SettingsError(
            f"scorer.host = {settings.host!r}, scorer.port = {settings.port}: cannot listen there "
            f"({what}); choose others, or stop what listens there"
        ) from error
    for level, option, value in OPTIONS:
        listener.setsockopt(level, option, value)
    return listener
