"""The systems that the services serve, one module each, chosen by a bundle's manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.errors import BundleIncompatible, hint

if TYPE_CHECKING:
    from extractor.system import System
    from models.bundle import Bundle

SYSTEMS = ("encode",)
"""Names of systems as manifests have them."""


def open_system(bundle: Bundle) -> System:
    """The system that a bundle is of, ready to extract and to feed.

    Raises:
        BundleIncompatible: the services do not serve it, or not with such settings.
    """
    name = bundle.manifest.system
    if name == "encode":
        from extractor.systems.encode import EncodeSystem

        return EncodeSystem(bundle)
    raise BundleIncompatible(
        f"{bundle.path} is of system {name!r}, which is not served; {hint(name, SYSTEMS)}"
    )
