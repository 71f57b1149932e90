"""``lifelong forget``: users deleted from store and dead letters, and a receipt of what was there
and what is left until when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
from rich.console import Console

from infra.errors import LifelongError, SettingsError
from infra.kafka.admin import TopicSetting, topic_config, topic_partitions
from infra.settings import BrokerSettings, Settings
from infra.store import Held, Identity, wall_clock_ms
from infra.stores import lmdb_place, open_as_it_is, open_store
from infra.stores.lmdb_files import compact, require_unused
from streaming.forgetting import Removed, remove, scrub, send_user_tombstones
from streaming.letters import holds_removed

FORGET_BATCH: Final = 1000
"""Users deleted in one transaction."""

T = TypeVar("T")
U = TypeVar("U")

_LEFT_BY_STORE: Final = {
    "lmdb": "pages of its file that are free hold what was deleted until they are used again;"
    " `lifelong store compact` writes the file anew, workers and scorers stopped (or --scrub)",
    "redis": "its AOF and RDB files hold what was deleted until they are rewritten (or --scrub);"
    " those of replicas are theirs",
    "aerospike": "blocks of its devices hold what was deleted until the server writes over them,"
    " and a cold start may bring segments back, which nothing refers to; they go by their TTL",
    "memory": None,
}
"""What deleted records leave behind, by the store's scheme."""


@dataclass(frozen=True, slots=True)
class ForgetOptions:
    """How users are forgotten."""

    letters: bool = True
    """Whether dead letters are taken away, too; otherwise Kafka is not asked for anything."""
    scrub: bool = False
    """Whether files of store and dead-letter topic are written anew, without what was deleted."""
    hash_ids: bool = False
    """Whether the receipt names users by a hash of the store's id and theirs."""


def run_forget(
    settings: Settings, users: Sequence[str], options: ForgetOptions | None = None
) -> dict[str, Any]:
    """Delete users, and keep out what they did before now; the receipt.

    The store comes first: whatever fails afterwards, it is done there, and doing all of it again
    does no harm.
    """
    options = options or ForgetOptions()
    users = list(dict.fromkeys(users))
    identity = _identity(settings)
    scheme = _scheme(settings)
    readers = settings.readers()
    if options.scrub:
        _require_scrubbing(settings, scheme)
    # Asked before anything is deleted: whoever mistypes the broker tries again.
    lettered = _by_letter_topic(readers) if options.letters else []
    now_ms = wall_clock_ms()
    held = _delete(settings, identity, users, now_ms)
    problems: list[str] = []

    def attempt(work: Callable[[], T], otherwise: U) -> T | U:
        """What is done of the rest, though some of it fails: the receipt tells of all."""
        try:
            return work()
        except LifelongError as error:
            problems.append(str(error))
            return otherwise

    removed = Removed(dict.fromkeys(users, 0), 0, 0) if options.letters else None
    of_topics = [attempt(partial(remove, of, users), None) for of in lettered]
    for found in of_topics:
        removed = None if found is None or removed is None else removed.with_those(found)
    tombstones = 0
    if options.letters and settings.broker.forget_tombstones:
        sending = [partial(send_user_tombstones, one.broker, users) for one in readers]
        tombstones = sum(attempt(send, 0) for send in sending)
    left = _left_in_store(identity, scheme, now_ms)
    if options.scrub and scheme != "memory":
        left[0]["until"] = attempt(lambda: _scrub_store(settings, identity, scheme), None)
    for (first, *_), found in zip(lettered, of_topics, strict=True):
        of_topic = attempt(partial(_left_in_kafka, first.broker, found, now_ms), [])
        if options.scrub:
            attempt(partial(_scrub_topic, first.broker, of_topic), None)
        left += of_topic
    receipt = {
        "store": {"id": identity.id, "name": identity.name, "url": settings.store.masked_url},
        "at": _moment(now_ms),
        "until_ms": now_ms,
        "deleted": sum(one is not None for one in held),
        "unknown": sum(one is None for one in held),
        "letters": None if removed is None else sum(removed.of.values()),
        "tombstones": tombstones,
        "users": [
            {
                "user": _hashed(identity, user) if options.hash_ids else user,
                "stored": None if one is None else msgspec.to_builtins(one),
                "letters": None if removed is None else removed.of[user],
            }
            for user, one in zip(users, held, strict=True)
        ],
        "left": left,
        "problems": problems,
    }
    _tell(receipt)
    return receipt


def _scheme(settings: Settings) -> str:
    scheme = settings.store.url.partition("://")[0]
    return "redis" if scheme == "rediss" else scheme


def _require_scrubbing(settings: Settings, scheme: str) -> None:
    """Make sure that the store's files can be written anew, before anything is deleted."""
    if scheme == "lmdb":
        require_unused(lmdb_place(settings.store)[0])
    elif scheme == "aerospike":
        raise SettingsError(f"--scrub: nobody can ask that of Aerospike: {_LEFT_BY_STORE[scheme]}")


def _identity(settings: Settings) -> Identity:
    """The store's: whoever mistypes it must not be told that all is deleted."""
    reader = open_store(settings.store, read_only=True)
    identity = reader.identity
    reader.close()
    if identity is None:
        raise SettingsError(
            f"store.url: {settings.store.masked_url} was made by an earlier version; start a worker"
            " of this one, which brings it up to date"
        )
    return identity


def _delete(
    settings: Settings, identity: Identity, users: Sequence[str], now_ms: int
) -> list[Held | None]:
    """Delete users from the store; what was held of each."""
    store = open_as_it_is(settings.store, identity)
    held: list[Held | None] = []
    try:
        for start in range(0, len(users), FORGET_BATCH):
            some = users[start : start + FORGET_BATCH]
            held += store.held(some)
            store.forget(some, now_ms)
    finally:
        store.close()
    return held


def _left_in_store(identity: Identity, scheme: str, now_ms: int) -> list[dict[str, Any]]:
    mark = {
        "where": "store",
        "what": "a mark: the user's id, when they were deleted, and how far sources were applied,"
        " so that earlier events stay out",
        "until": _moment(now_ms + round(identity.ttl_s * 1000)) if identity.ttl_s else None,
    }
    told = _LEFT_BY_STORE[scheme]
    return [{"where": "files of the store", "what": told, "until": None}, mark] if told else [mark]


def _scrub_store(settings: Settings, identity: Identity, scheme: str) -> str:
    """Write the store's files anew; since when nothing is left in them."""
    if scheme == "lmdb":
        compact(lmdb_place(settings.store)[0])
    else:
        from infra.stores.redis.store import RedisStore

        store = open_as_it_is(settings.store, identity)
        try:
            assert isinstance(store, RedisStore)
            store.rewrite_files()
        finally:
            store.close()
    return _moment(wall_clock_ms())


def _by_letter_topic(readers: Sequence[Settings]) -> list[list[Settings]]:
    """Who reads which sources, by the topic of their dead letters, where that is there."""
    found: dict[str, list[Settings]] = {}
    for one in readers:
        found.setdefault(one.broker.dead_letter_topic, []).append(one)
    return [of for topic, of in found.items() if topic_partitions(of[0].broker, topic)]


def _left_in_kafka(
    broker: BrokerSettings, removed: Removed | None, now_ms: int
) -> list[dict[str, Any]]:
    topic = broker.dead_letter_topic
    config = topic_config(broker, topic)
    retention_ms = int(config["retention.ms"].value)
    # A segment goes once its last record is old enough.
    gone_ms = now_ms + retention_ms + int(config["segment.ms"].value)
    until = None if retention_ms < 0 else _moment(gone_ms)
    left: list[dict[str, Any]] = []
    if holds_removed(broker):
        what = "letters, until its retention ends: it is not compacted"
        if "compact" in config["cleanup.policy"].value:
            what = f"letters, until Kafka compacts it ({_compacted(config)}; or --scrub)"
        left.append({"where": f"files of topic {topic}", "what": what, "until": until})
    found = removed or Removed({}, 0, 0)
    for count, what in (
        (found.keyless, "letters of these users that an earlier version wrote without a key"),
        (found.unknown, "letters of which nobody can tell whose they are"),
    ):
        if count:
            where = f"topic {topic}"
            left.append({"where": where, "what": what, "count": count, "until": until})
    return left


def _scrub_topic(broker: BrokerSettings, left: list[dict[str, Any]]) -> None:
    """Have Kafka's files written anew, and note it in what is left."""
    deleted_s = scrub(broker)
    for one in left:
        if one["where"].startswith("files of topic"):
            one["what"] = "letters, in files that Kafka has replaced and is about to delete"
            one["until"] = _moment(wall_clock_ms() + round(1000 * deleted_s))


def _compacted(config: dict[str, TopicSetting]) -> str:
    lag_s = int(config["max.compaction.lag.ms"].value) / 1000
    if lag_s > 3_000_000_000:
        return "when min.cleanable.dirty.ratio is reached"
    return f"within {lag_s:,.0f} s of the next letter"


def _hashed(identity: Identity, user: str) -> str:
    return "sha256:" + hashlib.sha256(f"{identity.id}:{user}".encode()).hexdigest()


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


def _tell(receipt: dict[str, Any]) -> None:
    letters = (
        "letters not looked at" if receipt["letters"] is None else f"{receipt['letters']:,} letters"
    )
    counted = f"{receipt['deleted']:,} deleted, {receipt['unknown']:,} unknown, {letters}"
    lines = [f"{counted}; events up to now stay out"]
    for one in receipt["left"]:
        until = "no time is set" if one["until"] is None else f"until {one['until']}"
        lines.append(f"left in {one['where']} ({until}): {one['what']}")
    console = Console(stderr=True)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
