"""TLS and mTLS, from settings: whom they let in, and files that are not what they should be."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from infra.errors import SettingsError
from infra.metrics import ScorerMetrics
from infra.settings import ScorerSettings, Settings
from scorer.client import RankClient, Tls
from scorer.http.admin import AdminServer, create_admin_app
from scorer.tls import UNUSABLE, TlsFiles, tls_context
from tests.certificates import Authority, Pair
from tests.scorer.client.serving import in_loop, serving_grpc
from tests.scorer.conftest import World
from tests.scorer.http.serving import Served, echo, serving
from tests.scorer.running import running, until


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def served(authority: Authority) -> Iterator[Served]:
    """A server that asks clients for certificates."""
    pair = authority.pair("server")
    settings = ScorerSettings(
        tls_cert=pair.cert,
        tls_key=pair.key,
        tls_client_ca=authority.certificate,
        lame_duck_s=0,
    )
    with serving(echo, settings) as served:
        yield served


def trusting(authority: Authority) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def test_a_client_with_a_certificate_is_served(served: Served, authority: Authority) -> None:
    context = trusting(authority)
    pair = authority.pair("client")
    context.load_cert_chain(pair.cert, pair.key)
    client = served.client(context)
    client.request("POST", "/x", bytes(100_000))
    assert client.getresponse().read() == b"1.1 POST /x 100000"


def test_a_client_without_a_certificate_is_not(served: Served, authority: Authority) -> None:
    client = served.client(trusting(authority))
    client.connect()  # with TLS 1.3 the server's word comes after the handshake
    with contextlib.suppress(OSError):
        assert client.sock.recv(1) == b""


def test_a_client_that_speaks_no_tls_costs_nobody_else_anything(
    served: Served, authority: Authority
) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while connection.recv(65_536):
            pass
    test_a_client_with_a_certificate_is_served(served, authority)


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
def test_the_protocol_is_what_the_client_prefers_of_both(
    served: Served, authority: Authority, protocol: str
) -> None:
    context = trusting(authority)
    pair = authority.pair("client")
    context.load_cert_chain(pair.cert, pair.key)
    context.set_alpn_protocols([protocol])
    with context.wrap_socket(served.connect(), server_hostname="127.0.0.1") as connection:
        assert connection.selected_alpn_protocol() == protocol


def test_what_is_no_certificate_is_one_line(authority: Authority, tmp_path: Path) -> None:
    good, other = authority.pair("good"), authority.pair("other")
    locked = authority.pair("locked", b"secret")
    noise = tmp_path / "noise.pem"
    noise.write_text("nothing")
    nowhere = tmp_path / "nowhere.pem"
    for settings, said in [
        ({"tls_cert": nowhere}, r"scorer\.tls_cert = .*nowhere\.pem.*No such file"),
        ({"tls_cert": noise}, r"scorer\.tls_cert = .*noise\.pem"),
        ({"tls_cert": good.cert, "tls_key": nowhere}, r"scorer\.tls_key = .*nowhere\.pem"),
        ({"tls_cert": good.cert, "tls_key": other.key}, r"scorer\.tls_key = .*other\.key"),
        ({"tls_cert": locked.cert, "tls_key": locked.key}, "not encrypted"),
        ({"tls_key": good.key}, r"scorer\.tls_key is set without scorer\.tls_cert"),
        ({"tls_client_ca": good.cert}, r"scorer\.tls_client_ca is set without"),
        (
            {"tls_cert": good.cert, "tls_key": good.key, "tls_client_ca": noise},
            r"scorer\.tls_client_ca = .*noise\.pem",
        ),
    ]:
        with pytest.raises(SettingsError, match=said) as error:
            tls_context(ScorerSettings(**settings))
        assert "\n" not in str(error.value)


class Exchange:
    """Files of a server's certificate, which are exchanged, and what was said of it."""

    def __init__(self, authority: Authority, place: Path) -> None:
        self.authority = authority
        self.files = Pair(place / "cert.pem", place / "key.pem")
        self.put(authority.pair("first", days=3))
        self.settings = ScorerSettings(
            tls_cert=self.files.cert, tls_key=self.files.key, lame_duck_s=0
        )
        self.registry = CollectorRegistry()
        self.warnings: list[str] = []
        self.tls = TlsFiles(self.settings, ScorerMetrics(self.registry), self.warn)

    def warn(self, what: str | None) -> None:
        self.warnings = [] if what is None else [what]

    def put(self, pair: Pair) -> None:
        shutil.copy(pair.cert, self.files.cert)
        shutil.copy(pair.key, self.files.key)

    def look_twice(self) -> None:
        self.tls.look()
        self.tls.look()

    def days_left(self) -> float:
        name = "lifelong_scorer_certificate_expiry_timestamp_seconds"
        return ((self.registry.get_sample_value(name) or 0) - time.time()) / 86_400

    def shown(self, port: int) -> str:
        """Whose certificate a new connection gets."""
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            trusting(self.authority).wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            subject = secure.getpeercert()["subject"]  # type: ignore[index]
            return str(subject[0][0][1])


@pytest.fixture
def exchange(authority: Authority, tmp_path: Path) -> Exchange:
    return Exchange(authority, tmp_path)


def test_new_connections_get_the_new_certificate_and_open_ones_stay(exchange: Exchange) -> None:
    with serving(echo, exchange.settings, tls=exchange.tls) as served:
        client = served.client(trusting(exchange.authority))
        client.request("GET", "/")
        assert client.getresponse().read()
        opened = client.sock
        exchange.put(exchange.authority.pair("second", days=60))
        exchange.look_twice()
        assert exchange.shown(served.port) == "second"
        client.request("GET", "/")
        assert client.getresponse().read()
        assert client.sock is opened  # http.client opens another where the server closed one
    assert exchange.days_left() == pytest.approx(60, abs=0.1)


def test_nothing_is_taken_that_was_not_the_same_at_two_looks(exchange: Exchange) -> None:
    with serving(echo, exchange.settings, tls=exchange.tls) as served:
        second = exchange.authority.pair("second")
        shutil.copy(second.cert, exchange.files.cert)
        exchange.tls.look()
        shutil.copy(second.key, exchange.files.key)
        exchange.tls.look()
        assert exchange.shown(served.port) == "first"
        exchange.tls.look()
        assert exchange.shown(served.port) == "second"
    assert not exchange.warnings


@pytest.mark.parametrize("fault", ["another key", "half a file", "no file"])
def test_what_cannot_be_used_leaves_the_certificate_before(exchange: Exchange, fault: str) -> None:
    second = exchange.authority.pair("second")
    with serving(echo, exchange.settings, tls=exchange.tls) as served:
        if fault == "another key":
            shutil.copy(second.cert, exchange.files.cert)
        elif fault == "half a file":
            exchange.files.key.write_bytes(exchange.files.key.read_bytes()[:100])
        else:
            exchange.files.cert.unlink()
        exchange.look_twice()
        assert exchange.warnings == [UNUSABLE]
        assert exchange.shown(served.port) == "first"
        assert exchange.days_left() == pytest.approx(3, abs=0.1)
        exchange.put(second)
        exchange.look_twice()
        assert not exchange.warnings
        assert exchange.shown(served.port) == "second"


def test_other_authorities_of_clients_count_for_new_connections(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    server, ours, theirs = authority.pair("server"), authority.pair("a"), other.pair("b")
    trusted = tmp_path / "trusted.pem"
    shutil.copy(authority.certificate, trusted)
    settings = ScorerSettings(
        tls_cert=server.cert, tls_key=server.key, tls_client_ca=trusted, lame_duck_s=0
    )
    tls = TlsFiles(settings)

    def let_in(served: Served, pair: Pair) -> bool:
        context = trusting(authority)
        context.load_cert_chain(pair.cert, pair.key)
        client = served.client(context)
        try:
            client.request("GET", "/")
            return client.getresponse().read() != b""
        except OSError:
            return False

    with serving(echo, settings, tls=tls) as served:
        assert (let_in(served, ours), let_in(served, theirs)) == (True, False)
        shutil.copy(other.certificate, trusted)
        tls.look()
        tls.look()
        assert (let_in(served, ours), let_in(served, theirs)) == (False, True)


def test_grpc_shows_the_new_certificate_too(exchange: Exchange, world: World) -> None:
    world.settings = world.settings.model_copy(
        update={"tls_cert": exchange.files.cert, "tls_key": exchange.files.key}
    )
    tls = Tls(exchange.authority.certificate)
    with serving_grpc(world, tls=exchange.tls) as port:
        assert grpc_shows(exchange, port) == "first"
        with RankClient(f"grpcs://127.0.0.1:{port}", tls=tls) as client:
            assert client.rank("u", ["item-1"]).items
            exchange.put(exchange.authority.pair("second"))
            exchange.look_twice()
            assert grpc_shows(exchange, port) == "second"
            assert client.rank("u", ["item-1"]).items


def grpc_shows(exchange: Exchange, port: int) -> str:
    context = trusting(exchange.authority)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        return str(secure.getpeercert()["subject"][0][0][1])  # type: ignore[index]


def test_the_admin_port_shows_the_new_certificate_too(exchange: Exchange) -> None:
    settings = exchange.settings
    app = create_admin_app(settings, ScorerMetrics(CollectorRegistry()), CollectorRegistry())
    server = AdminServer(app, settings, exchange.tls.context(("http/1.1",)))
    with in_loop() as run:
        port = run(server.start())
        assert exchange.shown(port) == "first"
        exchange.put(exchange.authority.pair("second"))
        exchange.look_twice()
        assert exchange.shown(port) == "second"
        run(server.stop(1))


def test_a_running_scorer_follows_its_files(exchange: Exchange, settings: Settings) -> None:
    port = settings.scorer.port
    scorer = settings.scorer.model_copy(
        update={"tls_cert": exchange.files.cert, "tls_key": exchange.files.key}
    )
    with running(settings.model_copy(update={"scorer": scorer})):
        until(lambda: answers(exchange, port, "/v2/health/ready")["ready"])
        assert exchange.shown(port) == "first"
        shutil.copy(exchange.authority.pair("second").key, exchange.files.key)
        until(lambda: UNUSABLE in answers(exchange, port, "/v2/health/ready").get("warnings", []))
        exchange.put(exchange.authority.pair("second"))
        until(lambda: exchange.shown(port) == "second")
        until(lambda: not answers(exchange, port, "/v2/health/ready").get("warnings"))


def answers(exchange: Exchange, port: int, path: str) -> dict[str, Any]:
    client = http.client.HTTPSConnection(
        "127.0.0.1", port, timeout=10, context=trusting(exchange.authority)
    )
    with contextlib.closing(client):
        client.request("GET", path)
        answer: dict[str, Any] = json.loads(client.getresponse().read())
        return answer
