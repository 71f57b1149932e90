"""An Apache Kafka that asks who one is, for tests: one broker that listens in every way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography import x509

from infra.kafka.local import LocalKafka, _claim_port
from infra.settings import BrokerSettings
from tests.certificates import Authority, Pair
from tests.infra.kafka.steps import script
from tests.token_server import AUDIENCE, TokenServer, token_server

LISTENERS: Final = {
    "plain": "PLAINTEXT",
    "tls": "SSL",
    "mutual": "SSL",
    "expired": "SSL",
    "elsewhere": "SSL",
    "passwords": "SASL_SSL",
    "tokens": "SASL_SSL",
}
"""The listeners' names and how they speak."""

REAUTHENTICATION_MS: Final = 60_000
"""Kafka ends the connection of one whose token has expired only where this is set."""

_LOGIN: Final = "org.apache.kafka.common.security"


@dataclass
class GuardedKafka:
    """The broker's addresses, and what one needs to enter."""

    ports: dict[str, int]
    authority: Authority
    client: Pair
    """A certificate that it accepts; its key is encrypted with ``secret``."""
    tokens: TokenServer

    def settings(self, listener: str, **changes: Any) -> BrokerSettings:
        """Settings by which one enters, with some changed."""
        sound: dict[str, Any] = {
            "bootstrap": f"127.0.0.1:{self.ports[listener]}",
            "security_protocol": LISTENERS[listener],
        }
        if listener != "plain":
            sound["ca_file"] = self.authority.certificate
        if listener == "mutual":
            sound |= {
                "cert_file": self.client.cert,
                "key_file": self.client.key,
                "key_password": "secret",
            }
        if listener == "passwords":
            sound |= {
                "sasl_mechanism": "SCRAM-SHA-512",
                "sasl_username": "ann",
                "sasl_password": "right",
            }
        if listener == "tokens":
            sound |= {
                "sasl_mechanism": "OAUTHBEARER",
                "oauth_token_url": f"{self.tokens.url}/token",
                "oauth_client_id": "lifelong",
                "oauth_client_secret": "right",
            }
        return BrokerSettings.model_validate(sound | changes)


@contextmanager
def guarded_kafka(directory: Path) -> Iterator[GuardedKafka]:
    """The broker, for as long as it is needed."""
    ports = {name: _claim_port(0) for name in LISTENERS}
    controller = _claim_port(0)
    addresses = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
    authority = Authority(directory)
    with token_server(authority.pair("login")) as tokens:
        properties = {
            "listeners": f"{addresses},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": addresses,
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
            "listener.security.protocol.map": ",".join(
                f"{name}:{how}" for name, how in {**LISTENERS, "CONTROLLER": "PLAINTEXT"}.items()
            ),
            "inter.broker.listener.name": "plain",
            # Who is refused is told at once.
            "connection.failed.authentication.delay.ms": "0",
            "connections.max.reauth.ms": str(REAUTHENTICATION_MS),
            "ssl.keystore.type": "PEM",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(authority.certificate),
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.passwords.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.passwords.plain.sasl.jaas.config": f"{_LOGIN}.plain.PlainLoginModule"
            ' required user_ann="right";',
            **{
                f"listener.name.passwords.{how}.sasl.jaas.config": f"{_LOGIN}.scram"
                ".ScramLoginModule required;"
                for how in ("scram-sha-256", "scram-sha-512")
            },
            "listener.name.tokens.sasl.enabled.mechanisms": "OAUTHBEARER",
            "listener.name.tokens.oauthbearer.sasl.jaas.config": f"{_LOGIN}.oauthbearer"
            ".OAuthBearerLoginModule required;",
            "listener.name.tokens.oauthbearer.sasl.server.callback.handler.class": f"{_LOGIN}"
            ".oauthbearer.OAuthBearerValidatorCallbackHandler",
            "sasl.oauthbearer.jwks.endpoint.url": f"{tokens.url}/keys",
            "sasl.oauthbearer.expected.audience": AUDIENCE,
        }
        here = authority.pair("broker")
        elsewhere = authority.pair("elsewhere", host=x509.DNSName("kafka.elsewhere.example"))
        for name in LISTENERS:
            pair = {"expired": authority.pair("expired", days=-0.5), "elsewhere": elsewhere}
            store = directory / f"{name}-store.pem"
            of = pair.get(name, here)
            store.write_text(of.key.read_text() + of.cert.read_text())
            properties[f"listener.name.{name}.ssl.keystore.location"] = str(store)
        allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={tokens.url}/keys"
        java = script(directory / "java", f'exec java {allowed} "$@"')
        with LocalKafka(
            directory / "kafka", ports["plain"], kind="apache", java=java, properties=properties
        ) as kafka:
            give_password(kafka.bootstrap, "ann", "right")
            yield GuardedKafka(
                ports, authority, authority.pair("client", password=b"secret"), tokens
            )


def give_password(bootstrap: str, user: str, password: str) -> None:
    """Let a user enter by SCRAM with a password, and no longer with another one; a broker has the
    password of PLAIN from its own settings.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for how in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
        given = UserScramCredentialUpsertion(
            user, ScramCredentialInfo(how, 4096), password.encode()
        )
        (done,) = admin.alter_user_scram_credentials([given]).values()
        done.result(20)
