"""Configuration of confluent-kafka's clients for the broker that the settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.errors import BrokerError

if TYPE_CHECKING:
    from infra.settings import BrokerSettings


def client_config(broker: BrokerSettings | str) -> dict[str, Any]:
    """Configuration of a confluent-kafka client for ``broker``: its settings, or HOST:PORT.

    Raises:
        BrokerError: the file of certificate authorities is missing.
    """
    config: dict[str, Any] = {
        "client.id": "lifelong",
        "log.connection.close": False,  # brokers close idle connections; that is no news
    }
    if isinstance(broker, str):
        return config | {"bootstrap.servers": broker}
    config["bootstrap.servers"] = broker.bootstrap
    config["security.protocol"] = broker.security_protocol
    if broker.sasl_mechanism is not None:
        config["sasl.mechanism"] = broker.sasl_mechanism
    if broker.sasl_username is not None:
        config["sasl.username"] = broker.sasl_username
    if broker.sasl_password is not None:
        config["sasl.password"] = broker.sasl_password.get_secret_value()
    if broker.ca_file is not None:
        if not broker.ca_file.is_file():  # OpenSSL's words for this name no file
            raise BrokerError(f"broker.ca_file: there is no file {broker.ca_file}: correct it")
        config["ssl.ca.location"] = str(broker.ca_file)
    return config


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
