"""TLS and mTLS, from settings: whom they let in, and files that are not what they should be."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.settings import ScorerSettings
from scorer.tls import tls_context
from tests.scorer.certificates import Authority
from tests.scorer.http.serving import Served, echo, serving


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
