"""Who we are to a Kafka, and whom we trust to be it: certificates and tokens.

Both clients are given the same settings. librdkafka takes files' names and asks for tokens itself;
for aiokafka there are the context and the tokens here. They also tell what is wrong where
librdkafka's words do not: it has one text for an unknown authority, an expired certificate and
another host's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from infra.errors import BrokerError, SettingsError, one_line
from infra.secrets import read_secret

if TYPE_CHECKING:
    from infra.settings import BrokerSettings

ANSWER_S: Final = 5.0
"""Patience with a broker's handshake, and with a server of tokens."""

FRESH: Final = 0.8
"""Share of its life for which a token is used; librdkafka renews its own then, too."""


def broker_secret(broker: BrokerSettings, name: str) -> str | None:
    """A secret of the settings of the broker; None: it is not set.

    Raises:
        BrokerError: its file cannot be read. It may be there again later, as a broker may.
    """
    secret = getattr(broker, name)
    try:
        return None if secret is None else read_secret(f"broker.{name}", secret)
    except SettingsError as error:
        raise BrokerError(str(error)) from None


def check_files(broker: BrokerSettings) -> None:
    """Look whether the files of certificates and keys are there and fit together.

    Raises:
        BrokerError: they do not; OpenSSL's words for it name no file.
    """
    if broker.security_protocol.endswith("SSL") and (broker.ca_file or broker.cert_file):
        tls_context(broker)
    if broker.oauth_ca_file is not None:
        _authorities("oauth_ca_file", broker.oauth_ca_file)


def tls_context(broker: BrokerSettings) -> ssl.SSLContext:
    """What brokers' certificates are verified with and, where one is set, our own.

    Raises:
        BrokerError: as `check_files`.
    """
    context = _authorities("ca_file", broker.ca_file)
    cert, key = broker.cert_file, broker.key_file
    if cert is None:
        return context
    # Asked for a password that it needs and was not given, OpenSSL would ask at the terminal.
    password = broker_secret(broker, "key_password") or ""
    for name, file in (("cert_file", cert), ("key_file", key)):
        if file is not None:
            _require(name, file)
    where = "broker.cert_file" if key is None else f"broker.key_file: {key}"
    try:
        context.load_cert_chain(cert, key, lambda: password)
    except ssl.SSLError as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            raise BrokerError(f"{where} is not the key of {cert}: correct one of them") from None
        raise BrokerError(
            f"{where} and {cert} hold no certificate with its key in PEM, or broker.key_password"
            f" is not the key's ({one_line(error)}): correct it"
        ) from None
    return context


def _authorities(name: str, file: Path | None) -> ssl.SSLContext:
    """A context that trusts the authorities in a file of a setting; None: those of the system."""
    if file is not None:
        _require(name, file)
    try:
        return ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        raise BrokerError(
            f"broker.{name}: {file} holds no certificates in PEM: correct it"
        ) from None


def _require(name: str, file: Path) -> None:
    try:
        file.open("rb").close()
    except FileNotFoundError:
        raise BrokerError(f"broker.{name}: there is no file {file}: correct it") from None
    except OSError as error:
        raise BrokerError(
            f"broker.{name}: {file} cannot be read ({error.strerror}): correct its permissions"
        ) from None


def aiokafka_login(broker: BrokerSettings) -> dict[str, Any]:
    """How a client of aiokafka enters, as it is told when it is made, in an event loop.

    Raises:
        BrokerError: as `check_files` and `broker_secret`.
    """
    tls = broker.security_protocol.endswith("SSL")
    tokens = broker.sasl_mechanism == "OAUTHBEARER"
    return {
        "security_protocol": broker.security_protocol,
        "ssl_context": tls_context(broker) if tls else None,
        "sasl_mechanism": broker.sasl_mechanism or "PLAIN",  # of no account without SASL
        "sasl_plain_username": broker.sasl_username,
        "sasl_plain_password": broker_secret(broker, "sasl_password"),
        "sasl_oauth_token_provider": Tokens(broker) if tokens else None,
    }


class Tokens(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no annotations
    """Tokens for aiokafka, by OAuth's grant for clients; one serves all while it is fresh."""

    def __init__(self, broker: BrokerSettings) -> None:
        self._broker = broker
        self._token = ""
        self._stale_at = 0.0
        self._asking = asyncio.Lock()

    async def token(self) -> str:
        """A token that is fresh; raises `KafkaConnectionError` where there is none."""
        async with self._asking:
            if time.monotonic() >= self._stale_at:
                began = time.monotonic()
                try:
                    self._token, life_s = await asyncio.to_thread(fetch_token, self._broker)
                except BrokerError as error:
                    # To aiokafka a connection that failed, which it tries again.
                    raise KafkaConnectionError(str(error)) from None
                self._stale_at = began + FRESH * life_s
            return self._token

    def extensions(self) -> dict[str, str]:
        """What brokers are told beside the token."""
        return dict(self._broker.oauth_extensions)


def fetch_token(broker: BrokerSettings) -> tuple[str, float]:
    """A new token, and the seconds that it lives.

    Raises:
        BrokerError: the server does not answer, or refuses, or a file cannot be read.
    """
    import httpx

    url, client = broker.oauth_token_url, broker.oauth_client_id
    secret = broker_secret(broker, "oauth_client_secret")
    assert url is not None
    assert client is not None
    assert secret is not None
    form = {"grant_type": "client_credentials"}
    if broker.oauth_scope is not None:
        form["scope"] = broker.oauth_scope
    context = _authorities("oauth_ca_file", broker.oauth_ca_file)
    try:
        answer = httpx.post(url, data=form, auth=(client, secret), timeout=ANSWER_S, verify=context)
    except httpx.HTTPError as error:
        raise BrokerError(
            f"no token from {url} ({one_line(error)}): correct broker.oauth_token_url or"
            " broker.oauth_ca_file, or see why that server does not answer"
        ) from None
    try:
        told: Any = answer.json()
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise BrokerError(
            f"{url} answers with {answer.status_code}, but no JSON: correct broker.oauth_token_url,"
            " or see what is wrong with that server"
        )
    if not answer.is_success:
        why = " ".join(str(told.get(key, "")) for key in ("error", "error_description")).strip()
        whose = (
            "broker.oauth_scope"
            if told.get("error") == "invalid_scope"
            else "broker.oauth_client_id or broker.oauth_client_secret"
        )
        raise BrokerError(
            f"{url} refuses us a token ({answer.status_code} {one_line(why)}): correct {whose}"
        )
    try:
        return str(told["access_token"]), float(told["expires_in"])
    except (KeyError, TypeError, ValueError):
        raise BrokerError(
            f"{url} answers with no access_token and expires_in: correct broker.oauth_token_url"
        ) from None


def certificate_fault(broker: BrokerSettings) -> str | None:
    """What is wrong with the certificate that a broker shows, and what to do; None: nothing that is
    seen.
    """
    context = tls_context(broker)
    for address in broker.bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            with socket.create_connection((host, int(port)), ANSWER_S) as plain:
                context.wrap_socket(plain, server_hostname=host.strip("[]")).close()
        except ssl.SSLCertVerificationError as error:
            said = one_line(error.verify_message).rstrip(".")
            if "expired" in said:
                return f"the certificate of Kafka at {address} has expired: renew it there"
            if "mismatch" in said:
                return (
                    f"the certificate of Kafka at {address} is another host's ({said}): correct"
                    " broker.bootstrap, or the certificate there"
                )
            trusted = broker.ca_file or "the system's authorities (set broker.ca_file)"
            return (
                f"the certificate of Kafka at {address} is of an authority that is not in {trusted}"
                f" ({said}): correct broker.ca_file"
            )
        except OSError:
            continue
    return None
