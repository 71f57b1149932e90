"""The systems that the services serve, one module each, chosen by a bundle's manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from infra.errors import BundleIncompatible, BundleMissing, SettingsError, hint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from extractor.system import System
    from infra.behaviors import ActionNames
    from infra.settings import Settings
    from models.bundle import Bundle, Manifest


def _open_encode(bundle: Bundle) -> System:
    from extractor.systems.encode import EncodeSystem

    return EncodeSystem(bundle)


def _open_sdim(bundle: Bundle) -> System:
    from extractor.systems.sdim import SDIMSystem

    return SDIMSystem(bundle)


def _open_twin(bundle: Bundle) -> System:
    from extractor.systems.twin import TWINSystem

    return TWINSystem(bundle)


SYSTEMS: Final[Mapping[str, Callable[[Bundle], System]]] = {
    "encode": _open_encode,
    "sdim": _open_sdim,
    "twin": _open_twin,
}
"""The systems that the services serve, by their names in manifests."""


def load_system(settings: Settings, *, serving: bool = True) -> tuple[Bundle, System]:
    """The bundle that the settings name, and its system; neither is warm yet.

    Args:
        serving: also repeat the golden sequences; who only looks into states need not wait for the
            kernels to be compiled.

    Raises:
        BundleError: there is none, or it cannot be used.
        SettingsError: the store keeps fewer behaviors than the bundle's states are made of, or the
            bundle's network sees an action that is not declared.
    """
    from models.bundle import Bundle

    if settings.bundle.path is None:
        raise BundleMissing("bundle.path is not set; name the directory of a model bundle")
    bundle = Bundle.load(
        settings.bundle.path,
        pinned=settings.bundle.version,
        max_read_bytes=settings.bundle.max_read_bytes,
        public_key=settings.bundle.public_key,
    )
    if settings.store.length < bundle.manifest.L:
        raise SettingsError(
            f"store.length = {settings.store.length} is less than the {bundle.manifest.L} behaviors"
            f" (L) that the bundle {bundle.manifest.name} was trained on; raise it, or take another"
            " bundle"
        )
    check_actions(bundle.manifest, settings.events.declared_actions)
    bundle = bundle.declaring(settings.events.declared_actions)
    system = open_system(bundle)
    if serving:
        from extractor.systems.golden import check_sequences

        check_sequences(bundle, system)
    return bundle, system


def check_actions(manifest: Manifest, declared: ActionNames) -> None:
    """Refuse settings under which no behavior could have an action that the network tells apart.

    Raises:
        SettingsError: the network sees actions, or rates of them, and one is not declared.
    """
    if not manifest.needs_actions:
        return
    lacking = [name for name in manifest.actions if name not in declared.codes]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise SettingsError(
            f"events.action_names lacks {lacking[0]!r}{more}, which the bundle {manifest.name} was"
            " trained on; add what is missing at its end, or take another bundle"
        )


def open_system(bundle: Bundle) -> System:
    """The system that a bundle is of, ready to extract and to feed.

    Raises:
        BundleIncompatible: the services do not serve it, or not with such settings.
    """
    name = bundle.manifest.system
    if name not in SYSTEMS:
        raise BundleIncompatible(
            f"{bundle.path} is of system {name!r}, which is not served; {hint(name, SYSTEMS)}"
        )
    return SYSTEMS[name](bundle)
