"""Certificates for tests: an authority, and pairs that it has signed."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)
from cryptography.x509.oid import NameOID

DAY = dt.timedelta(days=1)

HERE: Final[x509.GeneralName] = x509.IPAddress(IPv4Address("127.0.0.1"))


@dataclass
class Pair:
    """A certificate and its key, in files."""

    cert: Path
    key: Path


class Authority:
    """An authority that signs certificates, for 127.0.0.1 unless told otherwise."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
        self._own = self._signed(self._name, self._key.public_key(), authority=True)
        self.certificate = directory / "ca.pem"
        self.certificate.write_bytes(self._own.public_bytes(Encoding.PEM))

    def trust_store(self, password: str) -> Path:
        """A file of the JDK's that trusts this authority."""
        file = self._directory / "trust.p12"
        trusted = [pkcs12.PKCS12Certificate(self._own, b"authority")]
        encryption = BestAvailableEncryption(password.encode())
        file.write_bytes(pkcs12.serialize_java_truststore(trusted, encryption))
        return file

    def pair(
        self,
        name: str,
        password: bytes | None = None,
        days: float = 1,
        host: x509.GeneralName = HERE,
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        certificate = self._signed(subject, key.public_key(), authority=False, days=days, host=host)
        pair.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
        encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
        pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return pair

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        authority: bool,
        days: float = 1,
        host: x509.GeneralName = HERE,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + days * DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([host]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
