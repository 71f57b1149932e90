"""A bundle's directory as it is found at a moment: which bundle it holds, and whether all of it.

A directory may be replaced by another, a link to it switched, or its files may come one by one. So
one that is not whole is no error, and nothing here raises. Sizes are looked at, not content: that
is verified when the bundle is loaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from infra.errors import BundleError, one_line
from models.bundle.manifest import MANIFEST, Manifest, decode_manifest, digest_of, read_manifest
from models.bundle.signing import SIGNATURE


class Found(NamedTuple):
    """What was found. Two that are equal are of one directory, which has not changed meanwhile."""

    path: Path
    """The directory itself, where the path that was looked at is a link to it."""
    digest: bytes | None
    """Of the bundle (`models.bundle.Bundle.digest`); None: there is none."""
    lacking: str | None
    """What is not there yet of it; None: each of its files has the size that it should have."""
    stamp: tuple[object, ...] = ()
    """Another where any of it has changed."""


def look(path: Path) -> Found:
    """What a directory holds now. Costs as many system calls as a bundle has files."""
    place = Path(os.path.realpath(path))
    try:
        raw = read_manifest(place)
    except (BundleError, OSError) as error:
        return Found(place, None, one_line(error))
    digest = digest_of(raw)
    try:
        manifest = decode_manifest(place, raw)
    except BundleError:
        if _is_json(raw):
            return Found(place, digest, None)  # whoever loads it says what is wrong with it
        return Found(place, None, f"{place / MANIFEST} is not whole", (digest,))
    return _look_at_files(place, digest, manifest)


def _look_at_files(place: Path, digest: bytes, manifest: Manifest) -> Found:
    lacking = None
    stamps: list[object] = []
    sizes = {name: entry.size for name, entry in sorted(manifest.files.items())}
    for name, size in {**sizes, SIGNATURE: 0}.items():
        try:
            found = (place / name).stat()
        except OSError:
            stamps.append(name)
            if name in sizes:
                lacking = lacking or f"{place / name} is absent"
            continue
        stamps.append((name, found.st_ino, found.st_size, found.st_mtime_ns))
        if found.st_size < size:
            lacking = lacking or f"{place / name} has {found.st_size} of {size} bytes"
    return Found(place, digest, lacking, tuple(stamps))


def _is_json(raw: bytes) -> bool:
    try:
        msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return False
    return True
