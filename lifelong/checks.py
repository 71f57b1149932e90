"""``lifelong check``: is everything there that worker and scorer need, and if not, what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from extractor.systems import load_system
from infra.errors import BrokerError, LifelongError
from infra.kafka.admin import ping, topic_partitions
from infra.settings import Settings
from infra.stores import open_store


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; ``problem`` is None where all is well."""

    name: str
    detail: str
    problem: str | None = None


def run_checks(settings: Settings, *, quiet: bool) -> dict[str, Any]:
    """Run every check, also after one has failed; prints unless ``quiet``."""
    checks: dict[str, Callable[[Settings], str]] = {
        "settings": _check_settings,
        "broker": _check_broker,
        "topic": _check_topic,
        "dead letters": _check_dead_letters,
        "store": _check_store,
        "bundle": _check_bundle,
    }
    findings: list[Finding] = []
    for name, check in checks.items():
        if name in {"topic", "dead letters"} and findings[1].problem is not None:
            # Each question would wait as long as the first, and be answered the same.
            findings.append(Finding(name, "", "not looked at, since the broker does not answer"))
        else:
            findings.append(_run(name, check, settings))
    if not quiet:
        console = Console()
        for finding in findings:
            mark = "[green]ok[/]  " if finding.problem is None else "[red]FAIL[/]"
            console.print(f"{mark}  {finding.name:<13}", end="")
            # Not broken at the terminal's width: what is shown here gets copied.
            console.print(
                finding.problem or finding.detail, markup=False, highlight=False, soft_wrap=True
            )
    return {
        "ok": all(finding.problem is None for finding in findings),
        "checks": [
            {"name": one.name, "ok": one.problem is None, "detail": one.problem or one.detail}
            for one in findings
        ],
    }


def _run(name: str, check: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        return Finding(name, check(settings))
    except LifelongError as error:
        return Finding(name, "", str(error))


def _check_settings(settings: Settings) -> str:
    return (
        f"broker {settings.broker.bootstrap}, store {settings.store.masked_url},"
        f" bundle {settings.bundle.path}"
    )


def _check_broker(settings: Settings) -> str:
    ping(settings.broker)
    return f"{settings.broker.bootstrap} answers"


def _check_topic(settings: Settings) -> str:
    return _describe_topic(settings, settings.broker.topic)


def _check_dead_letters(settings: Settings) -> str:
    return _describe_topic(settings, settings.broker.dead_letter_topic)


def _describe_topic(settings: Settings, topic: str) -> str:
    partitions = topic_partitions(settings.broker, topic)
    if not partitions:
        raise BrokerError(
            f"topic {topic!r} is not on {settings.broker.bootstrap}: create it, or start a local"
            " Kafka with `lifelong broker`"
        )
    return f"{topic}: {partitions} partitions"


def _check_store(settings: Settings) -> str:
    actions = settings.events.declared_actions.names
    store = open_store(settings.store, read_only=True, actions=actions)
    try:
        store.ping()
        some = len(store.users(b"", 1).users)
        identity = store.identity
    finally:
        store.close()
    if identity is not None:  # otherwise opening it would bring it up to date
        # As it is: looking must not be what gives it other names of actions for good.
        as_it_is = settings.store.model_copy(update={"ttl_s": identity.ttl_s})
        open_to_write = open_store(as_it_is, actions=identity.actions)
        try:
            open_to_write.ping()
        finally:
            open_to_write.close()
    said = f"{settings.store.masked_url} answers, {'has users' if some else 'is empty'}"
    if identity is None:
        return f"{said}; made by an earlier version, a worker will bring it up to date"
    return (
        f"{said}; {identity.name}, id {identity.id}, layout {identity.layout}, keeps"
        f" {identity.length} behaviors per user, last opened with ttl_s {identity.ttl_s:g}"
    )


def _check_bundle(settings: Settings) -> str:
    bundle, _ = load_system(settings)
    return (
        f"{bundle.manifest.name} {bundle.version[:8]}: {bundle.manifest.n_items} items,"
        f" checksums, {len(bundle.golden)} golden requests and {len(bundle.sequences)} golden"
        " sequences agree"
    )
