"""The address of an Aerospike store: servers, namespace and credentials, read from its URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from infra.errors import SettingsError


@dataclass(frozen=True, slots=True)
class AerospikeAddress:
    """An Aerospike store's place, from ``aerospike://[USER:PASSWORD@]HOST:PORT[,HOST:PORT]/NAMESPACE``."""

    hosts: tuple[tuple[str, int], ...]
    namespace: str
    prefix: str = ""
    """Put before the names of the sets (``?set=PREFIX``), so that two stores share a namespace."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{hosts}/{self.namespace}"

    @classmethod
    def parse(cls, url: str) -> AerospikeAddress:
        """The address that a URL spells.

        Raises:
            SettingsError: the URL is not of that form.
        """
        parts = urlsplit(url)
        credentials, _, places = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        prefix = query.pop("set", "")
        hosts: list[tuple[str, int]] = []
        for place in places.split(","):
            host, _, port = place.rpartition(":")
            if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
                raise _bad_url(f"{place!r} is not HOST:PORT")
            hosts.append((host.strip("[]"), int(port)))
        namespace = parts.path.strip("/")
        if parts.scheme != "aerospike" or not namespace or "/" in namespace:
            raise _bad_url("the namespace is missing" if not namespace else "it has another form")
        if query:
            raise _bad_url(f"{next(iter(query))!r} is not an option of it")
        return cls(
            hosts=tuple(hosts),
            namespace=namespace,
            prefix=prefix,
            user=unquote(user) if credentials else None,
            password=unquote(password) if credentials else None,
        )


def _bad_url(why: str) -> SettingsError:
    return SettingsError(
        f"store.url: {why}; write aerospike://[USER:PASSWORD@]HOST:PORT[,HOST:PORT]/NAMESPACE"
    )
