"""Redis servers of the tests' own: real ones, started here."""

from .fixtures import (
    RedisServer,
    open_redis,
    redis_cluster,
    redis_server,
    running,
    shared_redis,
)

__all__ = ["RedisServer", "open_redis", "redis_cluster", "redis_server", "running", "shared_redis"]
