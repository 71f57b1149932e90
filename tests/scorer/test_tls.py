"""TLS and mTLS, with certificates made here; clients in Python, curl and the JDK."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from infra.errors import SettingsError
from infra.settings import ScorerSettings
from scorer.tls import tls_context
from tests.scorer.http.serving import Served, echo, serving

DAY = datetime.timedelta(days=1)


@dataclass
class Pair:
    """A certificate and its key, in files."""

    cert: Path
    key: Path


class Authority:
    """An authority that signs certificates for 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
        own = self._signed(self._name, self._key.public_key(), authority=True)
        self.certificate = directory / "ca.pem"
        self.certificate.write_bytes(own.public_bytes(Encoding.PEM))

    def pair(self, name: str, password: bytes | None = None) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        certificate = self._signed(subject, key.public_key(), authority=False)
        pair.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
        encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
        pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return pair

    def _signed(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )


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
    with pytest.raises(OSError):  # noqa: PT011  # an alert of TLS, or a reset
        client.request("GET", "/")
        client.getresponse()


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
            tls_context(ScorerSettings(**settings))  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
