r"""Who made a bundle: a signature of its manifest, which has the sha256 of every other file.

``manifest.json.sig`` beside the manifest is the ed25519 signature of its bytes (RFC 8032), 64
bytes as they are, so that OpenSSL makes and checks it, too::

    openssl genpkey -algorithm ed25519 -out signing.pem
    openssl pkey -in signing.pem -pubout -out signing.pub.pem
    openssl pkeyutl -verify -rawin -pubin -inkey signing.pub.pem -in manifest.json \
        -sigfile manifest.json.sig
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from infra.errors import BundleUntrusted, SettingsError, one_line
from infra.files import replacing
from models.bundle.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE: Final = f"{MANIFEST}.sig"

ADVICE: Final = "make one with `openssl genpkey -algorithm ed25519`"

MAX_KEY_BYTES: Final = 65_536
"""Of a file of keys; one takes a hundred."""

PUBLIC_KEY: Final = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


def sign(path: Path, key: Path) -> None:
    """Sign a bundle; a signature that is there is replaced.

    Args:
        path: the bundle's directory, which the caller has verified.
        key: PEM file with an ed25519 key, not encrypted.

    Raises:
        SettingsError: the key cannot be used, or the signature not be written.
        BundleError: there is no bundle.
    """
    signature = private_key(key).sign(read_manifest(path))
    try:
        with replacing(path / SIGNATURE) as file:
            file.write(signature)
    except OSError as error:
        raise SettingsError(
            f"{path / SIGNATURE} cannot be written ({error.strerror}); sign a copy"
        ) from error


def check_signature(path: Path, raw: bytes, public_key: Path) -> None:
    """Refuse a bundle that none of the keys has signed. To be done before its manifest is parsed.

    Args:
        path: the bundle's directory.
        raw: its manifest.
        public_key: PEM file of ed25519 keys.

    Raises:
        BundleUntrusted: it has no signature, or one that is of none of the keys.
        SettingsError: the keys cannot be used.
    """
    from cryptography.exceptions import InvalidSignature

    keys = _public_keys(public_key)
    file = path / SIGNATURE
    try:
        with file.open("rb") as opened:
            signature = opened.read(MAX_KEY_BYTES)
    except OSError as error:
        raise BundleUntrusted(
            f"{path} is not signed, and bundle.public_key asks for it: {SIGNATURE} cannot be read"
            f" ({error.strerror}); sign it (`lifelong sign`), or take one that is"
        ) from None
    for key in keys:
        try:
            key.verify(signature, raw)
        except InvalidSignature:
            continue
        return
    raise BundleUntrusted(
        f"{file} is no signature of {MANIFEST} by bundle.public_key = {str(public_key)!r}: the"
        " bundle was changed since, or somebody else has signed it; do not use it"
    )


def private_key(file: Path) -> Ed25519PrivateKey:
    """The key in a file.

    Raises:
        SettingsError: there is none that signs bundles.
    """
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _parsed("--key", file, lambda text: load_pem_private_key(text, password=None))
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise SettingsError(f"--key {file}: is no ed25519 key; {ADVICE}")
    return key


def _public_keys(file: Path) -> list[Ed25519PublicKey]:
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    def parse(text: bytes) -> list[Any]:
        return [load_pem_public_key(one) for one in PUBLIC_KEY.findall(text)]

    keys: list[Any] = _parsed("bundle.public_key =", file, parse)
    if not keys or not all(isinstance(key, ed25519.Ed25519PublicKey) for key in keys):
        raise SettingsError(
            f"bundle.public_key = {str(file)!r}: holds no ed25519 public key; name a file in PEM,"
            " as `openssl pkey -pubout` writes it"
        )
    return keys


def _parsed(name: str, file: Path, parse: Callable[[bytes], Any]) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        with file.open("rb") as opened:
            return parse(opened.read(MAX_KEY_BYTES))
    except OSError as error:
        raise SettingsError(f"{name} {file}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(
            f"{name} {file}: no key in PEM that is not encrypted: {one_line(error)}; {ADVICE}"
        ) from None
