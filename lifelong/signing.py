"""``lifelong sign``: a bundle is verified, then signed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.bundle import SIGNATURE, sign, verify


def run_sign(bundle: Path, key: Path, *, quiet: bool) -> dict[str, Any]:
    """Sign a bundle that is whole and does what it did when it was exported.

    Raises:
        BundleError: it is not.
        SettingsError: the key cannot be used.
    """
    verified = verify(bundle)
    sign(bundle, key)
    if not quiet:
        print(f"{bundle}: {verified.manifest.name} is whole and signed ({SIGNATURE})")
    return {"bundle": str(bundle), "name": verified.manifest.name, "signed": True}
