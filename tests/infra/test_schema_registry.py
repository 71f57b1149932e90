import ssl
import uuid
from pathlib import Path
from typing import Any

import pytest

from infra.errors import RegistryUnavailable, SchemaUnknown, SettingsError
from infra.schema_registry import SchemaRegistry
from infra.settings import RegistrySettings
from tests.certificates import Authority
from tests.schema_registry import RegistryDouble, guid_of, registry_double

SCHEMA = {"schema": '{"type": "string"}', "schemaType": "AVRO"}


def opened(double: RegistryDouble, **settings: Any) -> SchemaRegistry:
    return SchemaRegistry(RegistrySettings(url=double.url, **settings))


def why(registry: SchemaRegistry) -> str:
    with pytest.raises(RegistryUnavailable) as caught:
        registry.schema(1)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_schema_is_found_by_its_id_by_its_guid_and_as_a_version(
    registry: RegistryDouble,
) -> None:
    registry.register("clicks-value", SCHEMA)
    client = opened(registry)
    assert client.schema(1).schema_str == SCHEMA["schema"]
    assert client.schema(uuid.UUID(guid_of(1))).schema_str == SCHEMA["schema"]
    assert client.version("clicks-value", 1).schema_str == SCHEMA["schema"]
    assert client.subjects() == ["clicks-value"]


def test_what_is_not_registered_is_unknown_and_not_an_outage(registry: RegistryDouble) -> None:
    client = opened(registry)
    with pytest.raises(SchemaUnknown, match="Schema 7 not found"):
        client.schema(7)
    with pytest.raises(SchemaUnknown):
        client.version("clicks-value", 1)


def test_a_server_that_is_no_registry_is_an_outage_and_not_an_unknown_schema(
    registry: RegistryDouble,
) -> None:
    client = SchemaRegistry(RegistrySettings(url=f"{registry.url}/elsewhere"))
    assert "is it a Schema Registry?" in why(client)


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_registry_that_refuses_or_fails_is_an_outage(
    registry: RegistryDouble, status: int
) -> None:
    registry.fails_with = status
    assert f"answers {status} (store is away)" in why(opened(registry))


def test_an_error_that_may_pass_is_met_by_asking_again(registry: RegistryDouble) -> None:
    registry.fails_with = 503
    why(opened(registry))
    assert len(registry.asked) == 3


def test_nobody_there_is_an_outage() -> None:
    double = RegistryDouble()
    double.port = 9  # discard: nobody listens
    assert "cannot be reached: ConnectError" in why(opened(double))


def test_where_one_does_not_answer_the_next_is_asked(registry: RegistryDouble) -> None:
    registry.register("clicks-value", SCHEMA)
    client = SchemaRegistry(RegistrySettings(url=f"http://127.0.0.1:9, {registry.url}"))
    assert client.schema(1).schema_str == SCHEMA["schema"]


def test_a_slow_registry_is_waited_for_no_longer_than_set(registry: RegistryDouble) -> None:
    registry.takes_s = 1.0
    assert "ReadTimeout" in why(opened(registry, timeout_s=0.05))


def test_what_became_of_questions_is_counted(registry: RegistryDouble) -> None:
    outcomes: list[str] = []
    client = SchemaRegistry(RegistrySettings(url=registry.url), outcomes.append)
    with pytest.raises(SchemaUnknown):
        client.schema(1)
    registry.register("clicks-value", SCHEMA)
    client.schema(1)
    registry.fails_with = 400
    with pytest.raises(RegistryUnavailable):
        client.schema(2)
    assert outcomes == ["unknown", "found", "failed"]


def test_a_password_may_be_in_a_file(registry: RegistryDouble, tmp_path: Path) -> None:
    registry.register("clicks-value", SCHEMA)
    registry.wants_password("reader", "hunter2")
    assert "check registry.username" in why(opened(registry))
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    assert opened(registry, username="reader", password_file=file).schema(1)
    assert opened(registry, username="reader", password="hunter2").schema(1)
    assert opened(registry, username="reader", password=f"file:{file}").schema(1)


def test_a_token_is_read_anew_when_it_is_renewed(registry: RegistryDouble, tmp_path: Path) -> None:
    registry.register("clicks-value", SCHEMA)
    file = tmp_path / "token"
    file.write_text("old")
    client = opened(registry, token_file=file)
    registry.wants = "Bearer new"
    assert "answers 401" in why(client)
    file.write_text("new")
    assert client.schema(1)


def test_a_registry_over_tls_may_want_a_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, client = authority.pair("registry"), authority.pair("reader")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate))
    tls.load_cert_chain(server.cert, server.key)
    tls.verify_mode = ssl.CERT_REQUIRED
    with registry_double(tls) as double:
        double.register("clicks-value", SCHEMA)
        assert "cannot be reached" in why(opened(double))
        entered = {"cert_file": client.cert, "key_file": client.key}
        assert opened(double, ca_file=authority.certificate, **entered).schema(1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": None},
        {"ca_file": Path("/nowhere/ca.pem")},
        {"username": "reader", "password_file": Path("/nowhere/password")},
    ],
)
def test_what_cannot_be_set_so_is_said_before_anything_is_asked(wrong: dict[str, Any]) -> None:
    settings = RegistrySettings(**{"url": "http://127.0.0.1:9", **wrong})
    with pytest.raises(SettingsError, match="registry"):
        SchemaRegistry(settings).require("format avro")


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "registry:8081"},
        {"username": "reader"},
        {"password": "hunter2"},
        {"username": "reader", "password": "hunter2", "token": "t"},
        {"key_file": Path("key.pem")},
    ],
)
def test_settings_that_do_not_fit_together_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be URLs|need|takes one"):
        RegistrySettings(**wrong)
