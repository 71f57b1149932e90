"""The address of a Redis store: servers, database and credentials, read from its URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from infra.errors import SettingsError

PORT: Final = 6379

FORM: Final = "redis[s]://[USER:PASSWORD@]HOST[:PORT][/DATABASE][?prefix=NAME&cluster=1&ca=FILE]"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A Redis store's place; the URL's form is `FORM`."""

    hosts: tuple[tuple[str, int], ...]
    """Several: nodes of one cluster, of which any will do."""
    database: int = 0
    prefix: str = "lifelong"
    """With which all keys begin, so that two stores share a database."""
    cluster: bool = False
    tls: bool = False
    ca: str | None = None
    """File of the authorities that may have signed the server's certificate; None: the system's."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return hosts if self.cluster else f"{hosts}/{self.database}"

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """The address that a URL spells.

        >>> str(RedisAddress.parse("redis://:secret@cache/2?prefix=shop"))
        'cache:6379/2'

        Raises:
            SettingsError: the URL is not of that form.
        """
        parts = urlsplit(url)
        credentials, _, places = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        prefix, cluster = query.pop("prefix", "lifelong"), query.pop("cluster", "0")
        ca = query.pop("ca", None)
        hosts = tuple(_host(place) for place in places.split(","))
        database = parts.path.strip("/") or "0"
        if parts.scheme not in {"redis", "rediss"}:
            raise _bad_url("it has another form")
        if query:
            raise _bad_url(f"{next(iter(query))!r} is not an option of it")
        if cluster not in {"0", "1"}:
            raise _bad_url("cluster is 0 or 1")
        if not (database.isascii() and database.isdigit()):
            raise _bad_url(f"{database!r} is not the number of a database")
        if not prefix or "{" in prefix:  # which names what lies together in a cluster
            raise _bad_url("prefix is empty, or has a {")
        if ca is not None and parts.scheme == "redis":
            raise _bad_url("ca goes with rediss://")
        clustered = cluster == "1" or len(hosts) > 1
        if clustered and database != "0":
            raise _bad_url("a cluster has database 0 alone")
        return cls(
            hosts=hosts,
            database=int(database),
            prefix=prefix,
            cluster=clustered,
            tls=parts.scheme == "rediss",
            ca=ca,
            user=unquote(user) or None,
            password=unquote(password) if password else None,
        )


def _host(place: str) -> tuple[str, int]:
    host, port = place, str(PORT)
    if not place.endswith("]") and ":" in place:
        host, _, port = place.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise _bad_url(f"{place!r} is not HOST or HOST:PORT")
    return host.strip("[]"), int(port)


def _bad_url(why: str) -> SettingsError:
    return SettingsError(f"store.url: {why}; write {FORM}")
