"""``lifelong fetch``: a bundle from a URL, checked, and in its place in one step."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from infra.errors import BundleCorrupt, BundleMissing, SettingsError, one_line
from models.bundle import MANIFEST, verify

CHUNK: Final = 1 << 20
TIMEOUT_S: Final = 60.0
"""Without a byte."""


def run_fetch(url: str, target: Path, sha256: str) -> dict[str, Any]:
    """Fetch an archive (.tar, .tar.gz) of a bundle, and put the bundle at ``target``.

    What is there already is replaced once the new one is whole: do so where nobody reads it, or
    switch a link.

    Args:
        sha256: of the archive, in hexadecimal digits.

    Raises:
        SettingsError: the URL is not one that can be fetched.
        BundleMissing: it cannot be fetched.
        BundleCorrupt: it is another file, or no bundle.
    """
    if not url.startswith(("https://", "http://")):
        raise SettingsError(f"{url!r} is no address to fetch from: give https://...")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _beside(target) as folder, tempfile.TemporaryFile(dir=folder) as archive:
        found = _download(url, archive)
        if found != sha256.lower():
            raise BundleCorrupt(
                f"{url} has the sha256 {found} and not {sha256}: it is another file; correct one"
                " of them"
            )
        bundle = _unpack(url, archive, folder / "new")
        verified = verify(bundle)
        if target.exists():
            target.rename(folder / "old")
        bundle.rename(target)
    return {"bundle": str(target), "name": verified.manifest.name, "bytes": _size(target)}


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder in the same file system, which goes at the end."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download(url: str, into: BinaryIO) -> str:
    """Its sha256."""
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310  # http, see above
            while chunk := answer.read(CHUNK):
                digest.update(chunk)
                into.write(chunk)
    except OSError as error:
        raise BundleMissing(f"{url} cannot be fetched: {one_line(error)}") from error
    into.seek(0)
    return digest.hexdigest()


def _unpack(url: str, archive: BinaryIO, folder: Path) -> Path:
    """The bundle's folder: the archive's root, or the only folder in it."""
    try:
        with tarfile.open(fileobj=archive) as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise BundleCorrupt(f"{url} cannot be unpacked: {one_line(error)}") from error
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and not (folder / MANIFEST).exists() else folder


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
