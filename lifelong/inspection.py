"""``lifelong inspect``: what is kept of a user, as people and programs can read it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from extractor.state import InterestState
from extractor.system import System
from extractor.systems import load_system
from infra.behaviors import ActionNames
from infra.errors import SettingsError
from infra.records import sealed
from infra.settings import Settings
from infra.store import Store, StoredSequence
from infra.stores import open_store
from lifelong.portrait import name_interests, title_of
from models.bundle import Bundle, Manifest
from models.features import AGE_BUCKETS, DWELL_BUCKETS

MOST_INTERESTS = 10


def run_inspect(settings: Settings, user: str | None, last: int, *, quiet: bool) -> dict[str, Any]:
    """Describe a user, or the bundle and the store's first users; prints unless ``quiet``.

    Raises:
        SettingsError: the store has no such user.
        BundleError, StoreError: the bundle or the store cannot be read.
    """
    bundle, system = load_system(settings, serving=False)
    store = open_store(
        settings.store, read_only=True, actions=settings.events.declared_actions.names
    )
    try:
        if user is None:
            report = _describe_all(bundle, store)
        else:
            report = _describe_user(bundle, system, store, settings, user, last)
    finally:
        store.close()
    if not quiet:
        _show(report)
    return report


def _describe_all(bundle: Bundle, store: Store) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": {
            "name": manifest.name,
            "version": bundle.version,
            "items": manifest.n_items,
            **{letter: getattr(manifest, letter) for letter in ("d", "L", "M")},
            **_offline(manifest),
            "stored": [f"{name} {tensor.dtype}" for name, tensor in manifest.stored.items()],
            **{name: round(value, 4) for name, value in manifest.metrics.items()},
        },
        "users": store.users(b"", 20).users[:20],
    }


def _offline(manifest: Manifest) -> dict[str, Any]:
    """Settings of the offline stage; biases of cross features by what they are of."""
    settings: dict[str, Any] = msgspec.to_builtins(manifest.offline)
    names = {
        "biases": ["unknown", *manifest.actions],
        "dwell_biases": _spans(DWELL_BUCKETS),
        "age_biases": _spans(AGE_BUCKETS),
    }
    for key, values in names.items():
        if biases := settings.pop(key, ()):
            settings[key] = dict(zip(values, biases, strict=True))
    return settings


def _spans(buckets: int) -> list[str]:
    """What buckets of times in powers of two seconds hold."""
    *spans, last = (1 << bucket for bucket in range(buckets - 1))
    return ["none", *(f"below {2 * begin} s" for begin in spans), f"{last} s and more"]


def _describe_user(
    bundle: Bundle, system: System, store: Store, settings: Settings, user: str, last: int
) -> dict[str, Any]:
    sequence = store.sequences([user])[0]
    profile = store.profiles([user], bundle.digest)[0]
    if sequence is None or profile is None:
        raise SettingsError(
            f"user {user!r} is not in the store {settings.store.masked_url}: check the id and the"
            " store, or list some users with `lifelong inspect`"
        )
    actions = settings.events.declared_actions
    report: dict[str, Any] = {
        "user": user,
        "events": sequence.version.count,
        "kept": len(sequence.behaviors),
        "unsealed": sequence.version.count - sealed(sequence.version.count),
        "since": _time(sequence.version.epoch),
        "newest": [
            _describe_behavior(bundle, actions, row) for row in sequence.behaviors[::-1][:last]
        ],
        "interests": None,
    }
    if not system.keeps_state:
        report["interests"] = _describe_state(bundle, system, sequence, system.extract(sequence))
    elif profile.interests is not None:
        state = system.layout.decode(profile.interests, user)
        report["interests"] = _describe_state(bundle, system, sequence, state)
    return report


def _describe_state(
    bundle: Bundle, system: System, sequence: StoredSequence, state: InterestState
) -> dict[str, Any]:
    named = name_interests(bundle, system, sequence, state, MOST_INTERESTS)
    return {
        "bundle": state.bundle.hex(),
        "covers": state.count,
        "waiting": sequence.version.count - state.count,
        **system.summarize(state),
        "largest": [{"share": round(one.share, 4), "typical": one.items} for one in named],
    }


def _describe_behavior(bundle: Bundle, actions: ActionNames, behavior: Any) -> dict[str, Any]:
    row = int(bundle.rows(behavior["item"].reshape(1))[0])
    code = int(behavior["action"])
    return {
        "time": _time(int(behavior["time"])),
        "action": actions.name(code) or f"unknown ({code})",
        "item": title_of(bundle, row) if row else f"unknown ({int(behavior['item']):016x})",
    }


def _show(report: dict[str, Any]) -> None:
    console = Console()
    for name, value in report.items():
        if isinstance(value, dict):
            _show_section(console, name, value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            table = Table(*value[0], title=name, title_justify="left")
            for entry in value:
                table.add_row(*(escape(str(field)) for field in entry.values()))
            console.print(table)
        else:
            _print(console, f"{name}: {_words(value)}")


def _show_section(console: Console, name: str, section: dict[str, Any]) -> None:
    _print(console, f"{name}:")
    for key, value in section.items():
        if key == "largest":
            for interest in value:
                line = f"{interest['share']:6.1%}  {', '.join(interest['typical'])}"
                _print(console, f"    {line}")
        else:
            _print(console, f"  {key}: {_words(value)}")


def _print(console: Console, line: str) -> None:
    """Print a line as it is: ids hold what they like, and a broken line cannot be copied."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")
