"""Divisions: which samples are for training, validation and test. Sections of a TOML file."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal, TypeAlias

import numpy as np

from infra.arrays import I8, Bools
from infra.errors import TrainingError
from models.data.interactions import Interactions
from models.data.protocols import DrawnSamples
from models.data.requests import Sequences
from models.data.sections import TaggedSection, at_least

Part = Literal["training", "validation", "test"]

PARTS: Final[tuple[Part, ...]] = ("training", "validation", "test")


class ByTime(TaggedSection, frozen=True, tag="time"):
    """Division that holds out the last samples of all; those of one time are never divided."""

    validation: float = 0.1
    """Share of the samples, right before the test."""
    test: float = 0.1
    """Share of the samples, the latest."""

    def __post_init__(self) -> None:
        for key in ("validation", "test"):
            if not 0 < getattr(self, key) < 1:
                raise TrainingError(
                    f"split.{key} is {getattr(self, key)}; it is a share between 0 and 1"
                )
        if self.validation + self.test >= 1:
            raise TrainingError(
                f"split.validation and split.test are {self.validation + self.test:g} together; "
                "leave a share for training"
            )


class LastOfUser(TaggedSection, frozen=True, tag="last"):
    """Division that holds out the last samples of each user."""

    validation: int = 1
    """Samples of each user right before their test."""
    test: int = 1
    """Samples of each user, the latest."""

    def __post_init__(self) -> None:
        at_least("split.validation", self.validation, 1)
        at_least("split.test", self.test, 1)


Division: TypeAlias = ByTime | LastOfUser


def divide(sequences: Sequences, drawn: DrawnSamples, division: Division) -> tuple[I8, Bools]:
    """Each sample's part, i8[S] (0, 1, 2), and the behaviors of the training part, bool[N]."""
    size = len(drawn.cut)
    part = np.zeros(size, np.int8)
    if isinstance(division, ByTime):
        ordered = np.sort(drawn.times)
        validation = ordered[int(size * (1 - division.validation - division.test))]
        test = ordered[int(size * (1 - division.test))]
        part += drawn.times >= validation
        part += (drawn.times >= test) & (test > validation)
        return part, sequences.times < validation
    last = np.append(drawn.start[1:] != drawn.start[:-1], True)
    ends = np.flatnonzero(last)
    from_end = np.repeat(ends, np.diff(ends, prepend=-1)) - np.arange(size)
    part += from_end < division.validation + division.test
    part += from_end < division.test
    held_out = np.flatnonzero(part)
    until = np.full(len(sequences.items), len(sequences.items), np.int64)
    np.minimum.at(until, drawn.start[held_out], drawn.target[held_out])
    return part, np.arange(len(until)) < until[sequences.start]


def training_first(
    interactions: Interactions, sequences: Sequences, learned: Bools
) -> tuple[Interactions, Sequences, int]:
    """The interactions with those of the training part in front.

    Each user's training part is the beginning of their sequence, so the sequences stay as they are,
    but for the positions.
    """
    first = np.empty(len(learned), bool)
    first[sequences.position] = learned
    order = np.argsort(~first, kind="stable")
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    ordered = replace(
        interactions,
        users=interactions.users[order],
        items=interactions.items[order],
        times=interactions.times[order],
        actions=None if interactions.actions is None else interactions.actions[order],
        dwell_s=None if interactions.dwell_s is None else interactions.dwell_s[order],
        values=None if interactions.values is None else interactions.values[order],
    )
    n_training = int(np.count_nonzero(learned))
    return ordered, replace(sequences, position=number[sequences.position]), n_training
