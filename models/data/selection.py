"""Selection of a data set's samples; a few of its users are a data set of their own."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from infra.arrays import I32, I64
from infra.errors import TrainingError
from models.data.impressions import Impressions, ShownItems
from models.data.interactions import Attribute, Interactions
from models.data.sections import at_least


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Choice of the samples that are used."""

    users: int = 0
    """Users drawn at random, as if there were no others; 0: all."""
    min_history: int = 1
    """Samples that see fewer behaviors are left out."""
    evaluated: int = 0
    """Requests of validation, and of test, at most (drawn at random); 0: all."""
    withheld: float = 0.02
    """Share of the items that a training sample treats as unknown, each sample others, so that row
    0 learns what an unknown item earns (`models.data.withholding`)."""
    seed: int = 0
    """Seed of users, negatives, evaluated and withheld items, and the order of an epoch."""

    def __post_init__(self) -> None:
        at_least("samples.users", self.users, 0)
        at_least("samples.min_history", self.min_history, 0)
        at_least("samples.evaluated", self.evaluated, 0)
        if not 0 <= self.withheld < 1:
            raise TrainingError(f"samples.withheld is {self.withheld:g}; it is from 0 to below 1")


def sample_users(
    interactions: Interactions, impressions: Impressions | None, selection: Selection
) -> tuple[Interactions, Impressions | None]:
    """The data of ``selection.users`` users, as if there were no others: a small data set.

    Users and items are numbered anew by their first behavior; items that only others chose are
    gone, and impressions of them show row 0.
    """
    present = np.unique(interactions.users)
    if selection.users >= len(present):
        return interactions, impressions
    rng = np.random.default_rng([selection.seed, 20])
    kept = np.zeros(len(interactions.user_ids), bool)
    kept[rng.choice(present, selection.users, replace=False)] = True
    rows = np.flatnonzero(kept[interactions.users])
    users, user_of = _renumber(interactions.users[rows], len(interactions.user_ids))
    items, item_of = _renumber(interactions.items[rows], len(interactions.item_ids))
    items_and_unknown = np.append(0, items)
    sampled = replace(
        interactions,
        user_ids=[interactions.user_ids[row] for row in users],
        item_ids=[interactions.item_ids[row] for row in items_and_unknown],
        titles=[interactions.titles[row] for row in items_and_unknown],
        users=user_of[interactions.users[rows]],
        items=item_of[interactions.items[rows]] + np.int32(1),
        times=interactions.times[rows],
        actions=None if interactions.actions is None else interactions.actions[rows],
        dwell_s=None if interactions.dwell_s is None else interactions.dwell_s[rows],
        values=None if interactions.values is None else interactions.values[rows],
        item_attributes=_rows_of(interactions.item_attributes, items_and_unknown),
        user_attributes=_rows_of(interactions.user_attributes, users),
    )
    if impressions is None:
        return sampled, None
    # -1, a user without behaviors, would be the last one.
    mine = np.flatnonzero((impressions.users >= 0) & kept[impressions.users])
    return sampled, ShownItems(
        users=user_of[impressions.users[mine]],
        items=item_of[impressions.items[mine]] + np.int32(1),
        times=impressions.times[mine],
        labels=impressions.labels[mine],
    )


def _renumber(rows: I32, size: int) -> tuple[I64, I32]:
    """Distinct rows by first occurrence, and each old row's new number (-1 for the others)."""
    values, first = np.unique(rows, return_index=True)
    distinct: I64 = values[np.argsort(first)].astype(np.int64)
    number = np.full(size, -1, np.int32)
    number[distinct] = np.arange(len(distinct))
    return distinct, number


def _rows_of(attributes: dict[str, Attribute], rows: I64) -> dict[str, Attribute]:
    return {name: Attribute(each.values, each.rows[rows]) for name, each in attributes.items()}
