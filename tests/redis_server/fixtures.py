"""Redis as a process: one that a session shares, others for what ends or starves them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from infra.store import AS_IT_COMES, StoreOptions
from infra.stores.redis.store import RedisStore
from lifelong.demo.processes import free_port

READY_S = 20.0


@dataclass
class RedisServer:
    """A server, or the first one of a cluster."""

    port: int
    directory: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    cluster: bool = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}" + ("?cluster=1" if self.cluster else "")

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--dir", str(self.directory), "--save", "", *self.options),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + READY_S
        with redis.Redis(port=self.port) as client:
            while True:
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    return
                assert time.monotonic() < deadline, "Redis did not start"
                time.sleep(0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def ask(self, *command: str) -> object:
        """What it answers to a command."""
        with redis.Redis(port=self.port) as client:
            return client.execute_command(*command)


@contextlib.contextmanager
def running(directory: Path, *options: str) -> Iterator[RedisServer]:
    """A server of one's own, with options as on its command line."""
    if shutil.which("redis-server") is None:
        assert not os.environ.get("CI"), "redis-server is missing; .ci/run installs it"
        pytest.skip("redis-server is missing: apt install redis-server")
    server = RedisServer(free_port(), directory, options)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("redis"), "--appendonly", "yes") as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A server that holds nothing."""
    shared_redis.ask("FLUSHALL")
    return shared_redis


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Three servers, each with a third of the slots."""
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(
                running(tmp_path_factory.mktemp("node"), "--cluster-enabled", "yes")
            )
            for _ in range(3)
        ]
        bounds = [0, 5461, 10923, 16384]
        for node, start, stop in zip(nodes, bounds, bounds[1:], strict=False):
            node.ask("CLUSTER", "ADDSLOTSRANGE", str(start), str(stop - 1))
        for node in nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", str(nodes[0].port))
        deadline = time.monotonic() + READY_S
        while not all("cluster_state:ok" in str(node.ask("CLUSTER", "INFO")) for node in nodes):
            assert time.monotonic() < deadline, "the cluster did not come together"
            time.sleep(0.05)
        nodes[0].cluster = True
        yield nodes[0]


def open_redis(
    server: RedisServer, options: StoreOptions = AS_IT_COMES, *, timeout_s: float = 30.0
) -> RedisStore:
    """A store on that server; the machine may be busy."""
    wait_s = 0 if options.read_only else 10
    return RedisStore.open(server.url, options, wait_s=wait_s, timeout_s=timeout_s)
