"""TLS of the listening socket: what is shown to clients, and what is asked of them."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from infra.errors import SettingsError, one_line
from infra.settings import ScorerSettings

PROTOCOLS: Final = ("h2", "http/1.1")
"""What is offered in the handshake (ALPN), the preferred one first."""


def tls_context(
    settings: ScorerSettings, protocols: Sequence[str] = PROTOCOLS
) -> ssl.SSLContext | None:
    """The TLS that the settings ask for; None: none.

    Args:
        settings: of the scorer.
        protocols: what is offered in the handshake.

    Raises:
        SettingsError: a file is missing, or is not what it should be.
    """
    if settings.tls_cert is None:
        for name in ("tls_key", "tls_client_ca"):
            if getattr(settings, name) is not None:
                raise SettingsError(f"scorer.{name} is set without scorer.tls_cert; set both")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(protocols)
    _read("tls_cert", settings.tls_cert)
    if settings.tls_key is not None:
        _read("tls_key", settings.tls_key)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        key = f", scorer.tls_key = {str(settings.tls_key)!r}" if settings.tls_key else ""
        raise SettingsError(
            f"scorer.tls_cert = {str(settings.tls_cert)!r}{key}: no certificate in PEM with its "
            f"own key, not encrypted ({one_line(error)})"
        ) from None
    if settings.tls_client_ca is not None:
        _read("tls_client_ca", settings.tls_client_ca)
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except ssl.SSLError as error:
            raise SettingsError(
                f"scorer.tls_client_ca = {str(settings.tls_client_ca)!r}: no certificates in PEM "
                f"({one_line(error)})"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _read(name: str, path: Path) -> None:
    """Raise an error that names the setting where its file cannot be read."""
    try:
        path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"scorer.{name} = {str(path)!r}: cannot be read ({error.strerror}); name a file in PEM"
        ) from None


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is there to ask for its password")
