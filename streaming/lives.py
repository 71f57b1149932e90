"""Which life of its log a partition's offsets belong to, and where to go on reading.

Kafka can lose the end of a partition's log and give its offsets away again, under the same topic
id: a leader is elected that had not copied all of it, or a disk is lost. Then an offset names
another event than the one that was applied, and a mark from before would hide it. So a source is
the topic's id, the partition, and the life of its log: a number that is raised when the log is
found to end below what the store was fed.

The brokers number the epochs of a partition's leaders, and tell where their log ended with one. The
store keeps the epoch of the last record that it was fed, so that a lost tail is found however far
the log has grown again, and the next life begins at the very record that took the lost one's place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from infra.kafka.logs import LogBounds
from infra.store import Store
from streaming.bookmarks import decode_bookmark


class Life(msgspec.Struct, frozen=True):
    """The present life of a partition's log, as the store keeps it."""

    number: int = 0
    """How often the log lost its tail and went on."""
    begins: int = 0
    """Offset at which this life began."""
    epoch: int = -1
    """Epoch of the leader that took the last record which the store was fed; -1: not known."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where to go on reading a partition."""

    offset: int
    life: Life
    """The log's life, a new one if its tail was lost."""
    cut: range = range(0)
    """Offsets that the store was fed and the log has lost; other events get them."""
    gone: range = range(0)
    """Offsets that Kafka removed before the store was fed them."""


def start(
    life: Life,
    reached: int | None,
    committed: int | None,
    log: LogBounds,
    epoch_end: int | None = None,
) -> Start:
    """Where to go on reading a partition.

    That is where the store stands: it may be older than what the group committed (a backup was
    restored, it was emptied), or know more (another group fed it). What was committed counts where
    it is less: the dead letters of what follows may not be delivered. Marks in the store make what
    is read again harmless.

    Args:
        life: as the store has it.
        reached: offset up to which the store was fed in this life; None: nothing.
        committed: offset that the group committed for this topic's id; None: nothing.
        log: as the broker has it now.
        epoch_end: where the log ended with the epoch of the life; None: not known.
    """
    fed = max(life.begins, 0 if reached is None else reached + 1)
    end = log.end if epoch_end is None else epoch_end
    if epoch_end is None:  # the log does not know it: it is learnt again
        life = msgspec.structs.replace(life, epoch=-1)
    if fed > end:
        begins = max(end, log.beginning)
        new = Life(life.number + 1, begins, life.epoch)
        return Start(begins, new, cut=range(end, fed), gone=range(end, begins))
    wanted = fed if committed is None else max(life.begins, min(fed, committed))
    if wanted >= log.beginning:
        return Start(wanted, life)
    began = fed or committed is not None  # who never read the topic has lost nothing of it
    return Start(log.beginning, life, gone=range(fed if began else log.beginning, log.beginning))


def read_lives(store: Store, topic_id: str, partitions: Iterable[int]) -> dict[int, Life]:
    """The lives of a topic's partitions, as the store has them."""
    return {number: _read(store, _name(topic_id, number)) for number in partitions}


def write_life(store: Store, topic_id: str, partition: int, life: Life) -> None:
    """Keep a partition's life in the store."""
    store.put_bookmark(_name(topic_id, partition), msgspec.json.encode(life))


def _read(store: Store, name: str) -> Life:
    kept = store.get_bookmark(name)
    return Life() if kept is None else decode_bookmark(kept, name, Life)


def _name(topic_id: str, partition: int) -> str:
    return f"life/{topic_id}/{partition}"
