"""Where a scorer is, what it speaks there, and what is shown to it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from infra.errors import one_line
from scorer.client.errors import ScorerError

Protocol = Literal["json", "binary", "grpc"]
"""json: ``/v1/rank``. binary, grpc: the Open Inference Protocol, tensors as bytes."""

PORTS: Final = {"http": 80, "https": 443, "grpc": 80, "grpcs": 443}
"""Schemes, and the ports they have where a URL names none."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom a client trusts, and what it shows; files in PEM."""

    ca: Path | None = None
    """Authorities of scorers' certificates; None: those that the system trusts."""
    certificate: Path | None = None
    """The client's own, and those between it and its authority; None: none is shown."""
    key: Path | None = None
    """Of that certificate, not encrypted; None: it is in the same file."""

    def context(self) -> ssl.SSLContext:
        """The same for Python's own sockets.

        Raises:
            ScorerError: a file cannot be read, or is not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (OSError, ValueError) as error:  # of which an SSLError is one
            files = [str(one) for one in (self.ca, self.certificate, self.key) if one is not None]
            raise ScorerError(
                f"no TLS with {', '.join(files)}: {one_line(error)}; name files in PEM, a"
                " certificate with its own key"
            ) from None
        return context


@dataclass(frozen=True, slots=True)
class Address:
    """A scorer's address, as its URL has it."""

    url: str
    host: str
    port: int
    path: str
    """In front of all of a scorer's own, without a slash at its end."""
    protocol: Protocol
    secure: bool

    @classmethod
    def of(cls, url: str, protocol: Protocol | None = None) -> Address:
        """Read a URL.

        Args:
            url: http, https, grpc or grpcs (with TLS) ://HOST:PORT.
            protocol: what to speak; None: grpc where the URL says so, else json.

        Raises:
            ScorerError: it is none, or not one of the protocol.
        """
        parts = urlsplit(url)
        if parts.scheme not in PORTS or not parts.hostname:
            raise ScorerError(
                f"{url!r} is not the URL of a scorer; use http://HOST:PORT or grpc://HOST:PORT"
            )
        try:
            port = parts.port or PORTS[parts.scheme]
        except ValueError:
            raise ScorerError(f"{url!r} has no valid port; use http://HOST:PORT") from None
        calls = parts.scheme.startswith("grpc")
        protocol = protocol or ("grpc" if calls else "json")
        if calls != (protocol == "grpc"):
            ours = "grpc://HOST:PORT, of scorer.grpc_port" if not calls else "http://HOST:PORT"
            raise ScorerError(f"{url!r} is no URL for protocol {protocol!r}; use {ours}")
        return cls(
            url,
            parts.hostname,
            port,
            parts.path.rstrip("/"),
            protocol,
            parts.scheme.endswith("s"),
        )

    @property
    def authority(self) -> str:
        """Host and port, as headers and gRPC name them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def shown(key: str | None) -> dict[str, str]:
    """The header that shows a key, or token.

    Raises:
        ScorerError: the key can be in none.
    """
    if key is None:
        return {}
    if not (key.isascii() and key.isprintable() and key.strip() == key and key):
        raise ScorerError("the key may have printable ASCII alone, and no space around it")
    return {"authorization": f"Bearer {key}"}


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is there to ask for its password")
