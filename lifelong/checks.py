"""``lifelong check``: is everything there that worker and scorer need, and if not, what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console

from extractor.systems import load_system
from infra.behaviors import partition_source
from infra.errors import LISTED, BrokerError, LifelongError, StoreFull
from infra.kafka.admin import (
    ping,
    require_topic,
    standings,
    topic_config,
    topic_id,
    topic_partitions,
)
from infra.kafka.logs import LogBounds
from infra.kafka.transactions import open_transactions
from infra.schema_registry import SchemaRegistry
from infra.settings import Settings
from infra.store import LOW, Store, wall_clock_ms
from infra.stores import open_as_it_is, open_store
from streaming.events.conversion import Conversion
from streaming.events.formats import open_format, with_preset
from streaming.lives import read_lives, start


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; ``problem`` is None where nothing has failed."""

    name: str
    detail: str
    problem: str | None = None
    warning: bool = False
    """Whether it may become a failure if it stays as it is; ``detail`` says what."""

    @property
    def status(self) -> str:
        """The worst of it, in a word."""
        if self.problem is not None:
            return "failed"
        return "warning" if self.warning else "ok"


class Warned(str):
    """A detail that is worth a warning."""

    __slots__ = ()


MARKS: Final = {
    "ok": "[green]ok[/]  ",
    "warning": "[yellow]warn[/]",
    "failed": "[red]FAIL[/]",
}


NEEDS: Final = {
    "topic": ("broker",),
    "dead letters": ("broker",),
    "progress": ("broker", "topic", "store"),
}
"""Which checks must have gone well before one is worth asking."""

OF_A_SOURCE: Final = {"topic", "dead letters", "progress"}
"""Which checks are of one source."""

WRITTEN: Final = 65_536
"""Bytes of the write that is tried: more than any record of a user."""


def run_checks(settings: Settings, *, quiet: bool) -> dict[str, Any]:
    """Run every check, also after one has failed; prints unless ``quiet``."""
    checks: dict[str, Callable[[Settings], str]] = {
        "settings": _check_settings,
        "broker": _check_broker,
        "topic": _check_topic,
        "dead letters": _check_dead_letters,
        "store": _check_store,
        "progress": _check_progress,
        "bundle": _check_bundle,
    }
    if settings.registry.url is not None:
        checks["registry"] = _check_registry
    # Of several sources each is looked at, under its name.
    sources = {f" {one.name}": settings.reading(one.name) for one in settings.sources}
    findings: list[Finding] = []
    for name, check in checks.items():
        each = sources if sources and name in OF_A_SOURCE else {"": settings}
        for of, chosen in each.items():
            # Each question would wait as long as the first, and be answered the same.
            needs = {need + of if need in OF_A_SOURCE else need for need in NEEDS.get(name, ())}
            lacking = [one.name for one in findings if one.name in needs and one.problem]
            if lacking:
                why = "does not answer" if lacking[0] == "broker" else "is not as it should be"
                told = f"not looked at, since the {lacking[0]} {why}"
                findings.append(Finding(name + of, "", told))
            else:
                findings.append(_run(name + of, check, chosen))
    if not quiet:
        console = Console()
        for finding in findings:
            console.print(f"{MARKS[finding.status]}  {finding.name:<13}", end="")
            # Not broken at the terminal's width: what is shown here gets copied.
            console.print(
                finding.problem or finding.detail, markup=False, highlight=False, soft_wrap=True
            )
    return {
        "ok": all(finding.problem is None for finding in findings),
        "checks": [
            {
                "name": one.name,
                "ok": one.problem is None,
                "status": one.status,
                "detail": one.problem or one.detail,
            }
            for one in findings
        ],
    }


def _run(name: str, check: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        detail = check(settings)
        return Finding(name, detail, warning=isinstance(detail, Warned))
    except LifelongError as error:
        return Finding(name, "", str(error))


def _check_settings(settings: Settings) -> str:
    said = (
        f"broker {settings.broker.bootstrap}, store {settings.store.masked_url},"
        f" bundle {settings.bundle.path}"
    )
    for events in settings.sources or [settings.events]:
        laid = with_preset(events)
        Conversion(laid)
        open_format(laid, SchemaRegistry(settings.registry))
    if settings.sources:
        said += ", sources " + ", ".join(
            f"{one.name} ({one.format} in {one.topic})" for one in settings.sources
        )
    return said


def _check_registry(settings: Settings) -> str:
    registry = SchemaRegistry(settings.registry)
    registry.require("registry.url")
    subjects = registry.subjects()
    said = f"{settings.registry.url} answers, has {len(subjects)} subjects"
    topics = [one.topic for one in settings.sources] or [settings.broker.topic]
    named = [one for one in subjects for topic in topics if one.startswith(f"{topic}-")]
    # Producers may name subjects by records alone.
    return f"{said}; of the topics: {', '.join(sorted(named)[:LISTED]) or 'none by their names'}"


def _check_broker(settings: Settings) -> str:
    ping(settings.broker)
    return f"{settings.broker.bootstrap} answers"


def _check_topic(settings: Settings) -> str:
    return _describe_topic(settings, settings.broker.topic)


def _check_dead_letters(settings: Settings) -> str:
    topic = settings.broker.dead_letter_topic
    said = _describe_topic(settings, topic)
    if "not there yet" in said:
        return said
    try:
        policy = topic_config(settings.broker, topic)["cleanup.policy"].value
    except BrokerError:
        return f"{said}; whether it is compacted, Kafka does not tell"
    if "compact" not in policy:
        return Warned(
            f"{said}; it is not compacted: letters of users who are forgotten stay in Kafka's files"
            " until its retention ends (docs/forgetting.md)"
        )
    return f"{said}, compacted"


def _describe_topic(settings: Settings, topic: str) -> str:
    broker = settings.broker
    if not broker.create_topics:
        require_topic(broker, topic)
    partitions = topic_partitions(broker, topic)
    if not partitions:
        return f"{topic} is not there yet, a worker will create it: {broker.partitions} partitions"
    return f"{topic}: {partitions} partitions"


def _check_store(settings: Settings) -> str:
    actions = settings.events.declared_actions.names
    store = open_store(settings.store, read_only=True, actions=actions)
    try:
        store.ping()
        empty = store.empty()
        identity = store.identity
    finally:
        store.close()
    said = f"{settings.store.masked_url} answers, {'is empty' if empty else 'has users'}"
    if identity is None:  # opening it for writing would bring it up to date
        return f"{said}; made by an earlier version, a worker will bring it up to date"
    full, cautions = _check_writes(open_as_it_is(settings.store, identity))
    said = (
        f"{said}; {identity.name}, id {identity.id}, layout {identity.layout}, keeps"
        f" {identity.length} behaviors per user, last opened with ttl_s {identity.ttl_s:g}; {full}"
    )
    return Warned("; ".join([said, *cautions])) if cautions else said


def _check_writes(store: Store) -> tuple[str, Sequence[str]]:
    """Write as much as a user's largest record takes, ask what only workers need, and tell how much
    room is left, and what the store may lose.
    """
    try:
        cautions = store.cautions()
        store.ping()
        store.put_bookmark("check", bytes(WRITTEN))
        store.put_bookmark("check", None)
        room = store.room()
    finally:
        store.close()
    if room is None:
        return "how full it is, it does not tell", cautions
    if room.share >= LOW:
        raise StoreFull(f"the store has used {room.share:.0%} of what it may have, {room.told}")
    return f"{room.share:.0%} full", cautions


def _check_progress(settings: Settings) -> str:
    """Hold what the store was fed against the topic's logs, as a worker does that starts."""
    broker, topic = settings.broker, settings.broker.topic
    numbers = range(topic_partitions(broker, topic))
    if not numbers:
        return f"{topic} is not there yet"
    identity = topic_id(broker, topic)
    store = open_store(settings.store, read_only=True)
    try:
        lives = read_lives(store, identity, numbers)
        keys = [partition_source(topic, identity, n, lives[n].number).key for n in numbers]
        reached = dict(zip(numbers, store.positions(keys), strict=True))
    finally:
        store.close()
    # After the store, which workers go on feeding: else a log would seem to end below it.
    partitions = standings(broker, broker.group, topic)
    behind, trouble, held = 0, [], {}
    for number in sorted(reached.keys() & partitions.keys()):  # not if it was deleted meanwhile
        log, stable, committed = partitions[number]
        bounds = LogBounds(log.start, stable, log.stop)
        begin = start(lives[number], reached[number], committed, bounds)
        behind += log.stop - begin.offset
        if stable < log.stop:
            held[number] = stable
        for offsets, what in ((begin.gone, "are gone from Kafka"), (begin.cut, "were cut off")):
            if offsets:
                span = f"{offsets.start} to {offsets.stop - 1}"
                trouble.append(f"offsets {span} of partition {number} {what}")
    if trouble:
        more = f" (and {len(trouble) - 1} more)" if len(trouble) > 1 else ""
        raise BrokerError(
            f"{trouble[0]}{more}: a worker goes on behind them; see docs/losses.md for what that"
            " costs"
        )
    whose = _describe_held(settings, held)
    said = (
        f"{behind} events of {topic} are not in the store yet{whose}; a log that lost its tail and"
        " has grown again is found by workers alone"
    )
    # No failure: a moment does not tell a transaction that stays from one under way.
    return Warned(said) if held else said


def _describe_held(settings: Settings, held: Mapping[int, int]) -> str:
    """What open transactions hold back, by the partition's number from which offset on; raises
    `BrokerError` where one has for longer than a worker allows.
    """
    topic, most_s = settings.broker.topic, settings.worker.held_max_s
    said = ""
    transactions = open_transactions(settings.broker) if held else []
    for number, offset in held.items():
        of = [one for one in transactions if (topic, number) in one.partitions]
        oldest = min(of, key=lambda one: one.since_ms, default=None)
        whose = "an open transaction, of which no broker tells whose it is,"
        if oldest is not None:
            since_s = max(0, wall_clock_ms() - oldest.since_ms) / 1000
            whose = f"a transaction of {oldest.producer}, open for {since_s:.0f} s,"
            if since_s > most_s:
                raise BrokerError(
                    f"{whose} holds back partition {number} from offset {offset} on, for longer"
                    f" than worker.held_max_s = {most_s:g}: end that producer, or abort its"
                    " transaction (docs/runbooks/partition-held.md)"
                )
        said += f"; {whose} holds back partition {number} from offset {offset} on"
    return said


def _check_bundle(settings: Settings) -> str:
    bundle, _ = load_system(settings)
    signed = "" if settings.bundle.public_key is None else " signed,"
    return (
        f"{bundle.manifest.name} {bundle.version[:8]}: {bundle.manifest.n_items} items,"
        f"{signed} checksums, {len(bundle.golden)} golden requests and {len(bundle.sequences)}"
        " golden sequences agree"
    )
