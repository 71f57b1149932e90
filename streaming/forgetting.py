"""What Kafka has of users who are forgotten: their dead letters, and tombstones of them.

Deleting in the store is `infra.store.Store.forget`'s.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from infra.errors import BrokerError
from infra.kafka.admin import set_topic_config, topic_config, topic_partitions
from infra.kafka.clients import producer_config
from infra.schema_registry import SchemaRegistry
from infra.settings import BrokerSettings, Settings
from streaming.events.decoder import EventDecoder
from streaming.letters import ANSWER_S, Letter, holds_removed, letters, log

SCRUB_S: Final = 120.0
"""Time in which Kafka must have compacted the topic: its cleaner looks every 15 s."""


class Removed(NamedTuple):
    """What became of letters of users who are forgotten."""

    of: dict[str, int]
    """Letters by user."""
    unknown: int
    """Letters that are left of which nobody can tell whose they are: no key, and a payload that
    cannot be read and names none of the users."""
    keyless: int
    """Letters of the users that are left, since an earlier version wrote them without a key."""

    def with_those(self, other: Removed) -> Removed:
        """What became of these and of other letters of the same users."""
        of = {user: count + other.of[user] for user, count in self.of.items()}
        return Removed(of, self.unknown + other.unknown, self.keyless + other.keyless)


def remove(readers: Sequence[Settings], users: Sequence[str]) -> Removed:
    """Take the letters of users away: a tombstone for each. From now on nobody is shown one, or
    sends it again; Kafka itself is rid of it when it compacts the topic, see `scrub`.

    A letter is a user's if that is its key, or a user in its payload: one of several events goes
    for all of them. In a payload that cannot be read a user's id is looked for as a word.

    Args:
        readers: of the sources whose letters are in one topic, `Settings.reading`.
        users: whose letters are to go.

    Raises:
        BrokerError: Kafka cannot be reached, or the topic is not there, or takes no tombstone.
        RegistryError: a Schema Registry cannot be asked what letters hold.
    """
    broker, whose = readers[0].broker, _Owners(readers, users)
    found = Removed(dict.fromkeys(users, 0), 0, 0)
    tombstones: list[tuple[int, bytes]] = []
    for letter in letters(broker):
        owner = whose.owner(letter)
        if owner is None:
            continue
        if owner not in found.of:
            found = found._replace(unknown=found.unknown + 1)
        elif letter.own_key is None:
            found = found._replace(keyless=found.keyless + 1)
        else:
            found.of[owner] += 1
            tombstones.append((letter.at.partition, letter.own_key))
    _send_tombstones(broker, broker.dead_letter_topic, tombstones)
    return found


def send_user_tombstones(broker: BrokerSettings, users: Sequence[str]) -> int:
    """Send a tombstone for each user to the topic of events: what a compacted one has of them goes.

    Returns:
        How many.

    Raises:
        BrokerError: Kafka cannot be reached, or the topic takes none.
    """
    _send_tombstones(broker, broker.topic, [(None, user.encode()) for user in users])
    return len(users)


def scrub(broker: BrokerSettings, *, wait_s: float = SCRUB_S) -> float:
    """Have Kafka compact the dead-letter topic now, so that its segments hold none of what was
    removed. Segments that are open are closed for it, by settings of the topic that are put back.

    Returns:
        Seconds after which Kafka deletes the files that it has replaced.

    Raises:
        BrokerError: it cannot be reached, the topic is not compacted, we may not change its
            settings, or it has not happened within ``wait_s``.
    """
    topic = broker.dead_letter_topic
    before = topic_config(broker, topic)
    if "compact" not in before["cleanup.policy"].value:
        raise BrokerError(
            f"topic {topic} is not compacted, letters go by its retention: set its cleanup.policy"
            " to compact,delete (docs/forgetting.md)"
        )
    deleted_s = int(before["file.delete.delay.ms"].value) / 1000
    if not holds_removed(broker):
        return deleted_s
    changed = {"segment.ms": "1", "max.compaction.lag.ms": "1", "min.cleanable.dirty.ratio": "0"}
    set_topic_config(broker, topic, changed)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            # A segment is closed by the record after it.
            _send_tombstones(
                broker, topic, [(n, b"scrub") for n in range(topic_partitions(broker, topic))]
            )
            if not holds_removed(broker):
                return deleted_s
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"Kafka has not compacted topic {topic} within {wait_s:g} s: see that"
                    " log.cleaner.enable is true, and what its log says of the cleaner"
                )
            time.sleep(1.0)
    finally:
        given = {name: before[name].value if before[name].given else None for name in changed}
        set_topic_config(broker, topic, given)


class _Owners:
    """Tells whose a letter is."""

    def __init__(self, readers: Sequence[Settings], users: Sequence[str]) -> None:
        self._decoders = {
            one.broker.topic: EventDecoder(one.events, SchemaRegistry(one.registry))
            for one in readers
        }
        self._users = set(users)
        words = b"|".join(re.escape(user.encode()) for user in sorted(users, key=len, reverse=True))
        self._named = re.compile(rb"(?<![\w-])(?:" + words + rb")(?![\w-])")

    def owner(self, letter: Letter) -> str | None:
        """One of the users; "": nobody can tell; None: another one."""
        key = None if letter.key is None else letter.key.decode("utf-8", "replace")
        if key in self._users:
            return key
        decoder = self._decoders.get(letter.source.topic)
        told: list[str | None] = [None]
        if decoder is not None:
            told = decoder.users_of(letter.key, letter.value, letter.headers)
        for user in told:
            if user in self._users:
                return user
        if None not in told:
            return None
        if (named := self._named.search(letter.value or b"")) is not None:
            return named[0].decode()
        return "" if key is None else None


def _send_tombstones(
    broker: BrokerSettings, topic: str, keys: Sequence[tuple[int | None, bytes]]
) -> None:
    """Send tombstones, each to its partition or, with None, to that of its key."""
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer(
        producer_config(broker) | {"message.timeout.ms": int(ANSWER_S * 1000)}, logger=log
    )
    for partition, key in keys:
        place = {} if partition is None else {"partition": partition}
        while True:
            try:
                producer.produce(topic, None, key, on_delivery=delivered, **place)
            except BufferError:
                producer.poll(0.1)
                continue
            except KafkaException as error:
                failures.append(error.args[0])
            break
    producer.flush()
    if failures:
        raise BrokerError(
            f"{len(failures)} of {len(keys)} tombstones not delivered to topic {topic}"
            f" ({failures[0].str()}): is it there, and may we write to it?"
        )
