"""The numbered producer: events by number into the topic, their places into the ledger."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from confluent_kafka import Producer

from infra.errors import LifelongError
from infra.kafka.clients import producer_config
from infra.settings import BrokerSettings
from tests.chaos.ledger import Ledger, time_of

PATIENCE_S: Final = 90.0
"""Longest that an event may take: a broker is away for some seconds at most."""


class NotTaken(LifelongError):
    """The broker did not take what was sent, so that nothing can be said of the run."""


def name_of(user: int) -> str:
    """The user's id."""
    return f"u{user:05}"


class NumberedProducer:
    """Sends the next events of the ledger."""

    def __init__(self, broker: BrokerSettings, ledger: Ledger) -> None:
        self._broker = broker
        self._ledger = ledger

    def send(self, count: int, *, a_second: float = 0, codec: str = "none") -> range:
        """Send so many events, and return their numbers once the broker has them.

        Raises:
            NotTaken: it does not take them.
        """
        numbers = self._ledger.take(count)
        with self._producer({"compression.type": codec}) as producer:
            self._produce(producer, numbers, a_second)
        return numbers

    def send_in_transaction(
        self, count: int, *, commit: bool, meanwhile: Callable[[], object] = lambda: None
    ) -> range:
        """Send so many events in one transaction, and commit or abort it.

        ``meanwhile`` is called when the log has all of them, while the transaction is open.
        """
        numbers = self._ledger.take(count)
        with self._producer({"transactional.id": f"{self._broker.topic}.numbered"}) as producer:
            producer.init_transactions(PATIENCE_S)
            producer.begin_transaction()
            self._produce(producer, numbers, 0)
            # The log holds them, whatever becomes of the transaction.
            producer.flush(PATIENCE_S)
            meanwhile()
            if commit:
                producer.commit_transaction(PATIENCE_S)
            else:
                self._ledger.abort(numbers)
                producer.abort_transaction(PATIENCE_S)
        return numbers

    @contextmanager
    def _producer(self, changes: dict[str, str]) -> Iterator[Producer]:
        """A producer of its own each time: what happens to topics in between is news to none."""
        producer = Producer(
            producer_config(self._broker)
            | {
                "message.timeout.ms": int(PATIENCE_S * 1000),
                "transaction.timeout.ms": int(PATIENCE_S * 1000),
                "topic.metadata.refresh.interval.ms": 2000,
                "log_level": 0,  # a broker that is away is no news here
            }
            | changes
        )
        yield producer
        if producer.flush(PATIENCE_S):
            raise NotTaken(f"Kafka took no more events within {PATIENCE_S:.0f} s")

    def _produce(self, producer: Producer, numbers: range, a_second: float) -> None:
        began = time.monotonic()
        for number in numbers:
            user = name_of(int(self._ledger.users[number]))
            event = {
                "user_id": user,
                "item_id": f"i{number % 500}",
                "action": "click",
                "event_time": time_of(number),
            }
            while True:
                try:
                    producer.produce(
                        self._broker.topic,
                        json.dumps(event).encode(),
                        user.encode(),
                        on_delivery=self._ledger.delivered,
                        timestamp=time_of(number),
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
            if a_second:
                ahead = (number - numbers.start) / a_second - (time.monotonic() - began)
                if ahead > 0.01:
                    time.sleep(ahead)
