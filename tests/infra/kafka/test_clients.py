"""Configurations of clients."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.partitioner import DefaultPartitioner
from confluent_kafka import Producer

from infra.errors import BrokerError
from infra.kafka.admin import create_topic, ping, topic_partitions
from infra.kafka.clients import client_config, producer_config
from infra.kafka.local import LocalKafka
from infra.settings import BrokerSettings
from tests.certificates import Authority
from tests.infra.kafka.steps import one_line, produce


def test_keys_land_where_the_java_client_puts_them(mock_kafka: LocalKafka) -> None:
    create_topic(mock_kafka.bootstrap, "events", 8)
    keys = [f"user-{number}" for number in range(100)]

    landed = produce(mock_kafka.bootstrap, "events", keys)

    partitions = list(range(8))
    assert landed == {
        key: DefaultPartitioner()(key.encode(), partitions, partitions) for key in keys
    }


def test_a_producer_makes_no_topic(mock_kafka: LocalKafka) -> None:
    """The mock makes what it is asked for, as a broker with auto.create.topics.enable."""
    producer = Producer(producer_config(mock_kafka.bootstrap) | {"message.timeout.ms": 300})
    producer.produce("nowhere", b"event")
    producer.flush(10)
    assert topic_partitions(mock_kafka.bootstrap, "nowhere") == 0


def test_settings_become_the_configuration_of_a_client(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("lifelong", password=b"of the key")
    (tmp_path / "password").write_text("secret\n")
    settings = BrokerSettings(
        bootstrap="kafka.example:9093",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="lifelong",
        sasl_password=f"file:{tmp_path / 'password'}",
        ca_file=authority.certificate,
        cert_file=pair.cert,
        key_file=pair.key,
        key_password="of the key",
    )

    config = client_config(settings)

    assert config["bootstrap.servers"] == "kafka.example:9093"
    assert config["security.protocol"] == "SASL_SSL"
    assert config["sasl.mechanism"] == "SCRAM-SHA-512"
    assert config["sasl.username"] == "lifelong"
    assert config["sasl.password"] == "secret"
    assert config["ssl.ca.location"] == str(authority.certificate)
    assert config["ssl.certificate.location"] == str(pair.cert)
    assert config["ssl.key.location"] == str(pair.key)
    assert config["ssl.key.password"] == "of the key"


def test_a_missing_file_of_authorities_is_named(tmp_path: Path) -> None:
    settings = BrokerSettings(security_protocol="SSL", ca_file=tmp_path / "missing.pem")

    with pytest.raises(BrokerError) as error:
        ping(settings, timeout_s=0.2)

    assert "missing.pem" in one_line(error)
