"""Both of Kafka's clients against a real broker that asks who they are, and what is told of whom it
turns away. One broker is started for all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from confluent_kafka import Producer
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from pydantic import SecretStr

from infra.errors import BrokerError
from infra.kafka.admin import create_topic, ping
from infra.kafka.clients import producer_config
from infra.kafka.connections import mend_connections
from infra.kafka.jars import apache_obstacle
from infra.kafka.transactions import open_transactions
from infra.settings import BrokerSettings
from streaming.app import _credentials
from tests.certificates import Authority
from tests.guarded_kafka import GuardedKafka, give_password, guarded_kafka

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedKafka]:
    if (obstacle := apache_obstacle()) is not None:
        pytest.skip(f"Apache Kafka cannot run here: {obstacle}")
    with guarded_kafka(tmp_path_factory.mktemp("guarded")) as kafka:
        create_topic(kafka.settings("plain"), "events", 1)
        yield kafka


@pytest.fixture(autouse=True)
def _sound(request: pytest.FixtureRequest) -> Iterator[None]:
    """The token server as it was, after each test."""
    yield
    tokens = request.getfixturevalue("guarded").tokens
    tokens.answer, tokens.audience, tokens.lifetime_s = None, "kafka", 3600


def send(broker: BrokerSettings, value: str) -> None:
    producer = Producer(producer_config(broker))
    producer.produce("events", value)
    assert producer.flush(20) == 0


def consumer_of(broker: BrokerSettings) -> AIOKafkaConsumer:
    """aiokafka's consumer as Faust makes it."""
    consumer = AIOKafkaConsumer(
        "events",
        bootstrap_servers=broker.bootstrap,
        auto_offset_reset="earliest",
        metadata_max_age_ms=500,
        **credentials_to_aiokafka_auth(_credentials(broker)),
    )
    mend_connections(consumer._client, 10.0, broker)
    return consumer


async def read_until(consumer: AIOKafkaConsumer, value: str) -> None:
    async with asyncio.timeout(20):
        async for message in consumer:
            if message.value.decode() == value:
                return


async def consume(broker: BrokerSettings, value: str) -> None:
    consumer = consumer_of(broker)
    await consumer.start()
    try:
        await read_until(consumer, value)
    finally:
        await consumer.stop()


@pytest.mark.parametrize(
    ("listener", "changes"),
    [
        ("tls", {}),
        ("mutual", {}),
        ("passwords", {"sasl_mechanism": "PLAIN"}),
        ("passwords", {"sasl_mechanism": "SCRAM-SHA-256"}),
        ("passwords", {"sasl_mechanism": "SCRAM-SHA-512"}),
        ("tokens", {}),
    ],
)
async def test_the_worker_reads_what_a_producer_sent(
    guarded: GuardedKafka, listener: str, changes: dict[str, Any]
) -> None:
    broker = guarded.settings(listener, **changes)
    value = f"{listener} {changes}"
    await asyncio.to_thread(send, broker, value)
    await consume(broker, value)


@pytest.mark.parametrize("listener", ["mutual", "passwords", "tokens"])
def test_brokers_tell_of_open_transactions_whoever_we_are(
    guarded: GuardedKafka, tmp_path: Path, listener: str
) -> None:
    broker = guarded.settings(listener)
    if (password := broker.sasl_password) is not None:
        (tmp_path / "password").write_text(password.get_secret_value())
        named = SecretStr(f"file:{tmp_path / 'password'}")
        broker = broker.model_copy(update={"sasl_password": named})
    assert open_transactions(broker) == []


def told(broker: BrokerSettings) -> str:
    """Why a broker cannot be reached, as `lifelong check` has it; a busy machine is waited for."""
    line = ""
    for patience_s in (0.5, 2.0, 8.0):
        with pytest.raises(BrokerError) as raised:
            ping(broker, timeout_s=patience_s)
        line = str(raised.value)
        if "did not answer" not in line:
            break
    assert "\n" not in line
    assert "right" not in line
    return line


@pytest.mark.parametrize(
    ("listener", "changes", "says"),
    [
        ("passwords", {"sasl_password": "wrong"}, "refused the login"),
        ("passwords", {"sasl_password": "wrong", "sasl_mechanism": "PLAIN"}, "refused the login"),
        ("tls", {"ca_file": None}, "authority that is not in the system's authorities"),
        ("expired", {}, "has expired: renew it"),
        ("elsewhere", {}, "is another host's"),
        ("mutual", {"cert_file": None, "key_file": None, "key_password": None}, "without one"),
        ("mutual", {"key_password": "wrong"}, "broker.key_password is not the key's"),
        ("tokens", {"oauth_client_secret": "wrong"}, "invalid_client no client by this"),
        ("tokens", {"oauth_token_url": "http://127.0.0.1:1/token"}, "Connection refused"),
        (
            "tokens",
            {"sasl_mechanism": "PLAIN", "sasl_username": "a", "sasl_password": "b"},
            "OAUTH",
        ),
    ],
)
def test_each_fault_has_a_line_of_its_own(
    guarded: GuardedKafka, listener: str, changes: dict[str, Any], says: str
) -> None:
    assert says in told(guarded.settings(listener, **changes))


def test_files_that_do_not_fit_are_told(guarded: GuardedKafka, tmp_path: Path) -> None:
    stranger = Authority(tmp_path)
    pair, other = stranger.pair("stranger"), stranger.pair("other")
    own = {"key_password": None, "cert_file": pair.cert, "key_file": pair.key}
    mutual, tls = guarded.settings("mutual", **own), guarded.settings("tls")
    assert f"refuses our certificate {pair.cert}" in told(mutual)
    assert "is not the key of" in told(mutual.model_copy(update={"key_file": other.key}))
    assert str(stranger.certificate) in told(
        tls.model_copy(update={"ca_file": stranger.certificate})
    )
    assert "no certificates in PEM" in told(tls.model_copy(update={"ca_file": pair.key}))
    assert "there is no file" in told(mutual.model_copy(update={"cert_file": tmp_path / "none"}))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, b"hello"), "answers with 200, but no JSON"),
        ((503, b"busy"), "answers with 503"),
        ((200, b"{}"), "no access_token"),
        ((400, b'{"error": "invalid_scope"}'), "correct broker.oauth_scope"),
    ],
)
def test_what_a_token_server_answers_instead_of_a_token_is_told(
    guarded: GuardedKafka, answer: tuple[int, bytes], says: str
) -> None:
    guarded.tokens.answer = answer
    assert says in told(guarded.settings("tokens"))


def test_a_token_that_the_broker_refuses_is_told(guarded: GuardedKafka) -> None:
    guarded.tokens.audience = "another"
    assert "refuses the tokens of" in told(guarded.settings("tokens"))


async def test_tokens_are_fetched_over_tls(guarded: GuardedKafka) -> None:
    tls = {"oauth_token_url": f"{guarded.tokens.tls_url}/token"}
    line = await asyncio.to_thread(told, guarded.settings("tokens", **tls))
    assert "certificate verify failed" in line
    broker = guarded.settings("tokens", **tls, oauth_ca_file=guarded.authority.certificate)
    await asyncio.to_thread(send, broker, "by a token over TLS")
    await consume(broker, "by a token over TLS")


async def test_the_worker_reads_on_while_tokens_expire(guarded: GuardedKafka) -> None:
    """The broker ends a connection whose token has expired."""
    guarded.tokens.lifetime_s = 2
    consumer = consumer_of(guarded.settings("tokens"))
    asked = len(guarded.tokens.given)
    await consumer.start()
    try:
        for number in range(5):
            await asyncio.to_thread(send, guarded.settings("plain"), f"lives {number}")
            await read_until(consumer, f"lives {number}")
            await asyncio.sleep(1)
    finally:
        await consumer.stop()
    assert len(guarded.tokens.given) - asked >= 3


@pytest.mark.long
async def test_a_producer_sends_on_while_tokens_expire(guarded: GuardedKafka) -> None:
    """librdkafka looks once a second whether a token is to be renewed, which it is when a fifth of
    its life is left: that is to be more than a second.
    """
    guarded.tokens.lifetime_s = 12
    producer = Producer(producer_config(guarded.settings("tokens")))
    for _ in range(30):
        producer.produce("events", "again")
        assert await asyncio.to_thread(producer.flush, 1) == 0
        await asyncio.sleep(1)
    assert len(guarded.tokens.given) >= 3


async def test_a_password_that_was_exchanged_counts_for_the_next_connection(
    guarded: GuardedKafka, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    broker = guarded.settings("passwords", sasl_username="bob", sasl_password=f"file:{password}")

    def exchange(new: str) -> None:
        give_password(guarded.settings("plain").bootstrap, "bob", new)
        password.write_text(f"{new}\n")

    await asyncio.to_thread(exchange, "the first")
    consumer = consumer_of(broker)
    await consumer.start()
    try:
        await asyncio.to_thread(exchange, "the second")
        for connection in list(consumer._client._conns.values()):
            connection.close()
        await asyncio.to_thread(send, broker, "by the second password")
        await read_until(consumer, "by the second password")
    finally:
        await consumer.stop()
    password.unlink()
    with pytest.raises(BrokerError, match=r"broker.sasl_password: .* cannot be read"):
        ping(broker)
