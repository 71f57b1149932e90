"""The ledger: what the broker took, event by event, and what became of it there.

Every event has a number. It is the event's time too (`time_of`), and so can be read back from a
stored sequence; no event carries an id, so that only the marks can tell repetitions.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

CAUSES: Final = ("retention", "truncation", "deletion")
"""Ways in which Kafka loses events, by the names that workers give them."""

EPOCH_MS: Final = 1_700_000_000_000
"""Time of event 0."""

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def time_of(number: int) -> int:
    """The time of an event, ms since epoch."""
    return EPOCH_MS + number


class Ledger:
    """Where each event went; written by the producer's thread, read by the others.

    Args:
        users: of each event that may be sent, by number: an index.
    """

    def __init__(self, users: npt.NDArray[np.int32]) -> None:
        self.users = users
        self.topics = np.zeros(len(users), np.int16)
        """Which topic of the name took the event: 0, and one more each time it is made anew."""
        self.partitions = np.full(len(users), -1, np.int16)
        """-1: the broker took it not, or not yet."""
        self.offsets = np.zeros(len(users), np.int64)
        self.aborted = np.zeros(len(users), np.bool_)
        self.destroyed = np.zeros(len(users), np.int8)
        """Whether the event, once taken, is there no more (it may have been read before): 0, or the
        place of the cause in `CAUSES`, from 1."""
        self.topic = 0
        self.sent = 0

    def take(self, count: int) -> range:
        """The next so many numbers."""
        first, self.sent = self.sent, self.sent + count
        assert self.sent <= len(self.users), "more events than users were drawn for"
        return range(first, self.sent)

    @property
    def left(self) -> int:
        """How many more can be sent."""
        return len(self.users) - self.sent

    def delivered(self, error: Any, message: Any) -> None:
        """What the producer calls once the broker took an event, or failed to."""
        if error is None:
            number = message.timestamp()[1] - EPOCH_MS
            self.topics[number] = self.topic
            self.offsets[number] = message.offset()
            self.partitions[number] = message.partition()

    def abort(self, numbers: range) -> None:
        """These were sent in a transaction that is aborted."""
        self.aborted[numbers.start : numbers.stop] = True

    def destroy(self, cause: str, partition: int, first: int, end: int) -> int:
        """Of the topic as it is, offsets [first, end) of a partition are gone; how many events."""
        gone = self._held(partition) & (self.offsets >= first) & (self.offsets < end)
        self.destroyed[gone] = CAUSES.index(cause) + 1
        return int(gone.sum())

    def renew_topic(self) -> None:
        """The topic is deleted, and made anew."""
        gone = self.committed & (self.topics == self.topic) & (self.destroyed == 0)
        self.destroyed[gone] = CAUSES.index("deletion") + 1
        self.topic += 1

    @property
    def committed(self) -> Mask:
        """Which events whoever reads committed ones could have read."""
        committed: Mask = (self.partitions >= 0) & ~self.aborted
        return committed

    def newest(self) -> list[int]:
        """The newest event that each partition still holds."""
        found = []
        for partition in range(self.partitions.max() + 1):
            held = np.flatnonzero(self._held(partition))
            if len(held):
                found.append(int(held[-1]))
        return found

    def offsets_of(self, partition: int, numbers: range) -> Numbers:
        """Offsets of those of the events that lie in a partition."""
        within = slice(numbers.start, numbers.stop)
        found: Numbers = self.offsets[within][self.partitions[within] == partition]
        return found

    def _held(self, partition: int) -> Mask:
        here = (self.partitions == partition) & (self.topics == self.topic)
        held: Mask = here & ~self.aborted & (self.destroyed == 0)
        return held
