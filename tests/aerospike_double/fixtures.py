"""What tests ask for: a server, real where AEROSPIKE_HOST is set, and stores on it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import aerospike
import pytest
from aerospike import exception

from infra.store import wall_clock_ms
from infra.stores.aerospike.store import AerospikeStore

from .server import AerospikeDouble

SETS = ("sequence", "segment", "interest", "position")


@dataclass(frozen=True)
class AerospikeServer:
    """Where a server for tests is; its sets are empty when a test begins."""

    host: str
    port: int
    namespace: str
    double: AerospikeDouble | None
    """None: it is a real server, which knows no faults on order."""

    @property
    def url(self) -> str:
        return f"aerospike://{self.host}:{self.port}/{self.namespace}"

    def advance(self, seconds: float) -> None:
        """Let so much time go by on the server."""
        if self.double is not None:
            self.double.advance(seconds)
        else:
            time.sleep(seconds)


@pytest.fixture
def aerospike_server() -> Iterator[AerospikeServer]:
    """The real server at AEROSPIKE_HOST, AEROSPIKE_PORT, AEROSPIKE_NAMESPACE, or the double."""
    host = os.environ.get("AEROSPIKE_HOST")
    if host is None:
        # As on a server that has been in use: making an index takes the client two seconds.
        with AerospikeDouble(indexes={"sequence-due": ("sequence", "due")}) as double:
            yield AerospikeServer(double.host, double.port, double.namespace, double)
        return
    port = int(os.environ.get("AEROSPIKE_PORT", "3000"))
    namespace = os.environ.get("AEROSPIKE_NAMESPACE", "test")
    _truncate(host, port, namespace)
    yield AerospikeServer(host, port, namespace, None)


@pytest.fixture
def double(aerospike_server: AerospikeServer) -> AerospikeDouble:
    """The double, for faults that a real server does not do on order: `tests.conftest` deselects
    the tests that ask for it where AEROSPIKE_HOST names one.
    """
    assert aerospike_server.double is not None
    return aerospike_server.double


def open_aerospike(
    server: AerospikeServer,
    *,
    length: int = 1000,
    ttl_s: float = 0,
    wait_s: float = 10,
    timeout_s: float = 5,
    clock: Callable[[], int] = wall_clock_ms,
) -> AerospikeStore:
    """A store on that server."""
    return AerospikeStore.open(
        server.url, length=length, ttl_s=ttl_s, wait_s=wait_s, timeout_s=timeout_s, clock=clock
    )


def _truncate(host: str, port: int, namespace: str) -> None:
    client = aerospike.client({"hosts": [(host, port)]}).connect()
    try:
        for name in SETS:
            with contextlib.suppress(exception.AerospikeError):
                client.truncate(namespace, name, 0)
        # Records written in the millisecond of a truncation go with it.
        time.sleep(0.05)
    finally:
        client.close()
