"""TLS of the listening sockets: what is shown to clients, what is asked of them, and files that are
exchanged under a running process.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from infra.errors import SettingsError, one_line
from infra.files import mark
from infra.metrics import ScorerMetrics
from infra.settings import ScorerSettings
from infra.telemetry import get_logger

PROTOCOLS: Final = ("h2", "http/1.1")
"""What is offered in the handshake (ALPN), the preferred one first."""

UNUSABLE: Final = (
    "the certificate, its key or the clients' authorities were exchanged for what cannot be used;"
    " those before stay, and the log says why"
)

log = get_logger(__name__)


class Pems(NamedTuple):
    """What the files hold."""

    certificate: bytes
    """With those between it and its authority."""
    key: bytes
    client_ca: bytes | None

    @property
    def expires_at(self) -> float:
        """When the first of the certificates expires, seconds since epoch."""
        from cryptography import x509

        chain = x509.load_pem_x509_certificates(self.certificate)
        return min(one.not_valid_after_utc.timestamp() for one in chain)


class TlsFiles:
    """The TLS of a process, which follows its files: new connections get what they hold now, and
    keep what they got. Files that cannot be used leave those before in service.

    Args:
        settings: of the scorer.
        metrics: where it is told when the certificate expires; None: nowhere.
        warn: told what a person should know of the files; None: nothing any more.

    Raises:
        SettingsError: a file is missing, or is not what it should be.
    """

    def __init__(
        self,
        settings: ScorerSettings,
        metrics: ScorerMetrics | None = None,
        warn: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._warn = warn
        self._shown: list[_Shown] = []
        # Before the files are read: what changes meanwhile is seen at the next look.
        self._taken = self._seen = self._tried = self._marks()
        tls_context(settings)  # which says what is wrong with them
        self.pems = self._read()
        """What is shown to new connections; None: no TLS."""

    def context(self, protocols: Sequence[str] = PROTOCOLS) -> ssl.SSLContext | None:
        """What a server is made with; it shows to each connection what was last taken. None: no
        TLS.
        """
        context = tls_context(self._settings, protocols)
        if context is not None:
            shown = _Shown(protocols, context)
            context.sni_callback = shown.switch
            self._shown.append(shown)
        return context

    def look(self) -> None:
        """Take what the files hold if they were exchanged, and not since the look before: one may
        be there before the others. To be called now and then.
        """
        marks, before = self._marks(), self._seen
        self._seen = marks
        if marks != before or marks == self._tried:
            return
        self._tried = marks
        if marks == self._taken:  # put back
            self._warn(None)
            return
        try:
            contexts = [tls_context(self._settings, shown.protocols) for shown in self._shown]
            pems = self._read()
        except SettingsError as error:
            self._warn(UNUSABLE)
            log.warning("certificate not exchanged, the one before stays", error=str(error))
            return
        for shown, context in zip(self._shown, contexts, strict=True):
            assert context is not None
            shown.context = context
        self._taken, self.pems = marks, pems
        self._warn(None)
        log.info("certificate exchanged", expires_at=None if pems is None else pems.expires_at)

    def _read(self) -> Pems | None:
        certificate, authorities = self._settings.tls_cert, self._settings.tls_client_ca
        if certificate is None:
            return None
        try:
            pems = Pems(
                certificate.read_bytes(),
                (self._settings.tls_key or certificate).read_bytes(),
                None if authorities is None else authorities.read_bytes(),
            )
        except OSError as error:  # a moment ago it could be read
            raise SettingsError(f"{error.filename}: cannot be read ({error.strerror})") from None
        if self._metrics is not None:
            self._metrics.certificate_expiry.set(pems.expires_at)
        return pems

    def _marks(self) -> tuple[object, ...]:
        settings = self._settings
        files = (settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        return tuple(mark(file) for file in files if file is not None)


class _Shown:
    """A context that a server has, and the one that takes its place in handshakes."""

    def __init__(self, protocols: Sequence[str], context: ssl.SSLContext) -> None:
        self.protocols = protocols
        self.context = context

    def switch(self, connection: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called in each handshake, whether the client names a server or not."""
        connection.context = self.context


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
