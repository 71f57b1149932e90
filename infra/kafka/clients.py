"""Configuration of confluent-kafka's clients for the broker that the settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.kafka.logins import broker_secret, check_files

if TYPE_CHECKING:
    from infra.settings import BrokerSettings


def client_config(broker: BrokerSettings | str) -> dict[str, Any]:
    """Configuration of a confluent-kafka client for ``broker``: its settings, or HOST:PORT.

    Raises:
        BrokerError: a file of certificates, of a key or of a secret is missing, or no such.
    """
    config: dict[str, Any] = {
        "client.id": "lifelong",
        "log.connection.close": False,  # brokers close idle connections; that is no news
    }
    if isinstance(broker, str):
        return config | {"bootstrap.servers": broker}
    check_files(broker)
    config |= {
        "bootstrap.servers": broker.bootstrap,
        "security.protocol": broker.security_protocol,
        "sasl.mechanism": broker.sasl_mechanism,
        "sasl.username": broker.sasl_username,
        "sasl.password": broker_secret(broker, "sasl_password"),
        "ssl.ca.location": broker.ca_file,
        "ssl.certificate.location": broker.cert_file,
        "ssl.key.location": broker.key_file or broker.cert_file,
        "ssl.key.password": broker_secret(broker, "key_password"),
    }
    if broker.sasl_mechanism == "OAUTHBEARER":
        extensions = ",".join(f"{name}={value}" for name, value in broker.oauth_extensions.items())
        config |= {
            "sasl.oauthbearer.method": "oidc",  # librdkafka's own, which renews tokens by itself
            "sasl.oauthbearer.token.endpoint.url": broker.oauth_token_url,
            "sasl.oauthbearer.client.id": broker.oauth_client_id,
            "sasl.oauthbearer.client.secret": broker_secret(broker, "oauth_client_secret"),
            "sasl.oauthbearer.scope": broker.oauth_scope,
            "sasl.oauthbearer.extensions": extensions or None,
            "https.ca.location": broker.oauth_ca_file,
        }
    return {
        name: value if isinstance(value, bool) else str(value)
        for name, value in config.items()
        if value is not None
    }


def producer_config(broker: BrokerSettings | str) -> dict[str, Any]:
    """Configuration of a confluent-kafka producer of events for ``broker``."""
    return client_config(broker) | {
        # librdkafka's own default (CRC32) puts keys elsewhere than the Java and aiokafka clients.
        "partitioner": "murmur2_random",
        # A retry after a lost acknowledgement must not send an event twice.
        "enable.idempotence": True,
        # A topic that is deleted, or mistyped, is not made by whoever writes to it.
        "allow.auto.create.topics": False,
        "linger.ms": 5,
    }


def bootstrap_of(broker: BrokerSettings | str) -> str:
    """HOST:PORT of ``broker``, as given."""
    return broker if isinstance(broker, str) else broker.bootstrap
