"""The official client behind calls that take pipelines of any length, check each answer, and raise
errors that say what to do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from infra.errors import (
    SettingsError,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreUnavailable,
    one_line,
)
from infra.store import AS_IT_COMES, StoreOptions
from infra.stores.outages import Outages
from infra.stores.redis.address import RedisAddress
from infra.stores.redis.layout import Command

TIMEOUT_S: Final = 3.0
"""How long workers wait for an answer."""

AT_ONCE: Final = 2000
"""Commands in one pipeline: their answers are held by the server until they are read."""

Info = dict[str, Any]
"""What a server says of itself."""


class RedisClient:
    """A Redis, or a cluster of them. Safe to use from threads."""

    def __init__(
        self,
        address: RedisAddress,
        options: StoreOptions = AS_IT_COMES,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Connect to nothing yet, but to find a cluster's nodes.

        Raises:
            StoreUnavailable, SettingsError: none of them answers, or it refuses the credentials.
        """
        self.address = address
        self._read_only = options.read_only
        self._timeout_s = timeout_s
        self._outages = Outages(options.interrupted, options.clock)
        self._lives: set[str] = set()
        """Of servers that were looked at: names that change when what they hold may have."""
        try:
            self._redis: Any = _connected(address, timeout_s)  # typed in parts only
        except (RedisError, OSError) as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Disconnect; the client is unusable afterwards."""
        self._redis.close()

    def run(self, commands: Sequence[Command], *, writing: bool = False) -> list[Any]:
        """The answers to commands, each of one slot; many in flight together.

        Raises:
            StoreError, SettingsError: one was not carried out. Others may have been.
        """
        if writing:
            self._check_writing()
        answers: list[Any] = []
        for start in range(0, len(commands), AT_ONCE):
            some = commands[start : start + AT_ONCE]
            try:
                if len(some) == 1:
                    found = [self._redis.execute_command(*some[0])]
                else:
                    pipeline = self._redis.pipeline(transaction=False)
                    for command in some:
                        pipeline.execute_command(*command)
                    found = pipeline.execute()
            except (RedisError, OSError) as error:
                raise self._failed(error) from error
            self._outages.answered()
            answers += found
        return answers

    def servers(self, section: str) -> list[Info]:
        """What each server that takes writes says of itself."""
        try:
            return [one.info(section) for one in self._asked()]
        except (RedisError, OSError) as error:
            raise self._failed(error) from error

    def configured(self, name: str) -> list[str | None]:
        """A value of each such server's configuration; None: it does not tell."""
        try:
            return [one.config_get(name).get(name) for one in self._asked()]
        except ResponseError:  # a hosted one, mostly
            return [None]
        except (RedisError, OSError) as error:
            raise self._failed(error) from error

    def rewrite_files(self, wait_s: float) -> None:
        """Have each such server write its AOF and its RDB file anew, those that it has."""
        deadline = time.monotonic() + wait_s
        try:
            for server in self._asked():
                _rewrite_files(server, deadline)
        except ResponseError as error:
            raise StoreUnavailable(
                f"the Redis at {self.address} does not write its files anew ({one_line(error)}):"
                " have it do so with BGREWRITEAOF and BGSAVE"
            ) from error
        except (RedisError, OSError) as error:
            raise self._failed(error) from error

    def look_for_restarts(self) -> None:
        """Find out whether servers were started anew, or others took their place, which may lack
        what was acknowledged last.
        """
        uptimes = {}
        known, first = set(self._lives), not self._lives
        for server, replication in zip(
            self.servers("server"), self.servers("replication"), strict=True
        ):
            # Another one after each start without a full disk file, and after each failover.
            life = f"{server['run_id']} {replication.get('master_replid', '')}"
            uptimes[life] = server["uptime_in_seconds"] if first or life in known else 0
        self._lives |= uptimes.keys()
        self._outages.looked(uptimes)

    def _asked(self) -> list[Any]:
        """A client of each server that takes writes."""
        if not self.address.cluster:
            return [self._redis]
        return [self._redis.get_redis_connection(node) for node in self._redis.get_primaries()]

    def _check_writing(self) -> None:
        if self._read_only:
            raise StoreUnavailable(
                f"the store at the Redis at {self.address} was opened for reading alone"
            )

    def _failed(self, error: Exception) -> StoreError | SettingsError:
        failure = _failure(self.address, error, self._timeout_s)
        if isinstance(failure, StoreUnavailable) and not isinstance(error, ResponseError):
            self._outages.failed(failure)
        return failure


def _rewrite_files(server: Any, deadline: float) -> None:
    """Have a server write its AOF and its RDB file anew, and wait until it has."""

    def settled() -> Info:
        while True:
            info: Info = server.info("persistence")
            if not any(info.get(name) for name in _UNDER_WAY):
                return info
            if time.monotonic() > deadline:
                raise StoreUnavailable("a Redis is still writing its files anew: look at it later")
            time.sleep(0.05)

    info = settled()  # what began before the deletion has it not, and two do not run at once
    done = []
    if info.get("aof_enabled"):
        server.bgrewriteaof()
        done.append("aof_last_bgrewrite_status")
        settled()
    if info.get("rdb_saves") or server.config_get("save").get("save"):
        server.bgsave()
        done.append("rdb_last_bgsave_status")
    info = settled()
    if any(info.get(status) != "ok" for status in done):
        raise StoreUnavailable("a Redis could not write its files anew: see its log")


_UNDER_WAY: Final = (
    "aof_rewrite_in_progress",
    "aof_rewrite_scheduled",
    "rdb_bgsave_in_progress",
)
"""Of INFO: whether files are being written."""


def _connected(address: RedisAddress, timeout_s: float) -> Any:
    options: dict[str, Any] = {
        "username": address.user,
        "password": address.password,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "socket_keepalive": True,
        "protocol": 2,  # the answers that all versions have
        # A command in doubt is repeated by who sent it, and an outage is never papered over.
        "retry": Retry(NoBackoff(), 0),
    }
    if address.tls:
        options |= {"ssl": True, "ssl_ca_certs": address.ca}
    if address.cluster:
        nodes = [ClusterNode(host, port) for host, port in address.hosts]  # type: ignore[no-untyped-call]
        return RedisCluster(startup_nodes=nodes, **options)
    host, port = address.hosts[0]
    return redis.Redis(host=host, port=port, db=address.database, **options)


def _failure(
    address: RedisAddress, error: Exception, timeout_s: float
) -> StoreError | SettingsError:
    """The error that one of the client's becomes, in one line."""
    server = f"the Redis at {address}"
    told = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, OutOfMemoryError):
        return StoreFull(f"{server} has no room left: raise its maxmemory, or set store.ttl_s")
    if isinstance(error, (AuthenticationError, AuthenticationWrongNumberOfArgsError)):
        return SettingsError(f"{server} refuses the user or password in store.url: {told}")
    if isinstance(error, NoPermissionError):
        return SettingsError(f"{server} does not let the user in store.url do that: {told}")
    if isinstance(error, BusyLoadingError):
        return StoreUnavailable(f"{server} is loading its data; retry")
    if isinstance(error, ReadOnlyError):
        return StoreUnavailable(f"{server} is a replica, which takes no writes: name its primary")
    if isinstance(error, (ClusterDownError, ClusterError, RedisClusterException)):
        return StoreUnavailable(f"{server} is no cluster that is whole ({told}): check its nodes")
    if isinstance(error, (redis.exceptions.TimeoutError, TimeoutError)):
        return StoreUnavailable(
            f"{server} did not answer within {timeout_s:g} s: it hangs, is overloaded, or the"
            " network drops what is sent; retry"
        )
    if isinstance(error, ResponseError):
        return _refused(server, told)
    return StoreUnavailable(
        f"{server} cannot be reached ({told}): check that it runs and that store.url is right"
    )


def _refused(server: str, told: str) -> StoreError | SettingsError:
    """The error that a server's own words become, of which the client has no class."""
    if "MISCONF" in told:
        return StoreUnavailable(
            f"{server} takes no writes, since it cannot save them to its disk ({told}): look at its"
            " log, and whether the disk is full"
        )
    if "WRONGTYPE" in told:
        return StoreCorrupt(
            f"{server} has something else under a key of the store ({told}): give the store a"
            " database or a prefix of its own"
        )
    if "DB index" in told or "SELECT is not allowed" in told:
        return SettingsError(f"store.url: {server} does not have that database ({told})")
    return StoreUnavailable(f"{server} did not carry out a command: {told}")
