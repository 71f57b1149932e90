"""What tests ask for: a server, real where AEROSPIKE_HOST is set, and stores on it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import aerospike
import pytest
from aerospike import exception

from infra.store import AS_IT_COMES, STATES, StoreOptions
from infra.stores.aerospike.layout import due_bins
from infra.stores.aerospike.store import AerospikeStore

from .server import AerospikeDouble

SETS = ("sequence", "segment", "state", "position")
INDEXES = {f"sequence-{name}": ("sequence", name) for name in due_bins(STATES + 1)}


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
        # As on a server that has been in use.
        with AerospikeDouble(indexes=dict(INDEXES)) as double:
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
    options: StoreOptions = AS_IT_COMES,
    *,
    wait_s: float = 10,
    timeout_s: float = 30,  # the machine may be busy
) -> AerospikeStore:
    """A store on that server."""
    if options.read_only:
        wait_s = 0
    return AerospikeStore.open(server.url, options, wait_s=wait_s, timeout_s=timeout_s)


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
