"""The check: what is in the store against what the broker took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tests.chaos.ledger import CAUSES, Ledger, Numbers


@dataclass(frozen=True)
class Found:
    """What differs: all 0 but `destroyed` where nothing is wrong."""

    lost: int
    """Events that Kafka still holds, or held until they were read, and that no sequence has."""
    doubled: int
    """Events that stand more than once, each time more counted."""
    foreign: int
    """Events that stand where they should not: aborted, or of another user."""
    disordered: int
    """Events that stand after a newer one of their user and partition."""
    destroyed: dict[str, int]
    """Events that Kafka destroyed before they were read, by cause."""


def compare(ledger: Ledger, stored: Sequence[Numbers]) -> Found:
    """Compare the stored events of all users, by their index, with the ledger."""
    numbers, owners = _flat(stored)
    known = (numbers >= 0) & (numbers < ledger.sent)
    sound = known.copy()
    sound[known] = (ledger.users[numbers[known]] == owners[known]) & (
        ledger.committed[numbers[known]]
    )
    foreign = int((~sound).sum())
    numbers, owners = numbers[sound], owners[sound]
    times = np.bincount(numbers, minlength=len(ledger.users))
    missing = ledger.committed & (times == 0)
    return Found(
        lost=int((missing & (ledger.destroyed == 0)).sum()),
        doubled=int(np.maximum(times - 1, 0).sum()),
        foreign=foreign,
        disordered=_disordered(ledger, numbers, owners),
        destroyed={
            cause: int((missing & (ledger.destroyed == number)).sum())
            for number, cause in enumerate(CAUSES, 1)
        },
    )


def destroyed_where(ledger: Ledger, stored: Sequence[Numbers]) -> list[str]:
    """Where the events lay that Kafka destroyed before they were read, a line a partition."""
    numbers, _ = _flat(stored)
    numbers = numbers[(numbers >= 0) & (numbers < ledger.sent)]
    missing = ledger.committed & (ledger.destroyed > 0)
    missing[numbers] = False
    places = np.stack((ledger.destroyed, ledger.topics, ledger.partitions), axis=1)[missing]
    offsets = ledger.offsets[missing]
    lines = []
    for place in np.unique(places, axis=0):
        there = offsets[(places == place).all(axis=1)]
        cause, topic, partition = place
        lines.append(
            f"{CAUSES[cause - 1]}: topic {topic}, partition {partition}, {len(there):,} of offsets"
            f" {there.min()} to {there.max()}"
        )
    return lines


def _flat(stored: Sequence[Numbers]) -> tuple[Numbers, npt.NDArray[np.int64]]:
    owners = np.repeat(np.arange(len(stored)), [len(one) for one in stored])
    return np.concatenate([*stored, np.empty(0, np.int64)]), owners


def _disordered(ledger: Ledger, numbers: Numbers, owners: npt.NDArray[np.int64]) -> int:
    """Steps back within the events of one user from one partition of one topic.

    A step to the same event is a doubled one, and counted there.
    """
    topics, partitions = ledger.topics[numbers], ledger.partitions[numbers]
    order = np.lexsort((np.arange(len(numbers)), partitions, topics, owners))
    same = np.ones(max(0, len(order) - 1), np.bool_)
    for key in (topics, partitions, owners):
        same &= np.diff(key[order]) == 0
    return int((same & (np.diff(numbers[order]) < 0)).sum())
