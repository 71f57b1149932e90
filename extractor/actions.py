"""What a bundle's network sees of the actions of a user's behaviors, whichever the system is.

A stored behavior holds its action's code, which the settings declare; a bundle has rows of its own,
and its states hold those. Where the network sees neither actions nor rates, nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from extractor.state import InterestState
from infra.arrays import F32, U8, U32, Array
from infra.store import Behaviors, StoredSequence
from models.bundle import RATED, RECENT_ACTIONS, Bundle


def action_rows(bundle: Bundle, behaviors: Behaviors) -> U8:
    """u8[n]: the behaviors' actions as rows of the bundle's."""
    return bundle.action_rows(np.ascontiguousarray(behaviors["action"]))


def action_tensors(bundle: Bundle, actions: U8) -> dict[str, Array]:
    """What a state keeps of its behaviors' actions (`models.bundle.Manifest.of_actions`).

    Args:
        actions: u8[<= L], rows of the behaviors that the state covers, newest last.
    """
    tensors: dict[str, Array] = {}
    if bundle.manifest.sees_actions:
        tensors[RECENT_ACTIONS] = actions[max(len(actions) - bundle.manifest.M, 0) :]
    if bundle.manifest.rates is not None:
        tensors[RATED] = _count(bundle, actions)
    return tensors


def with_actions(
    bundle: Bundle, states: Iterable[InterestState], sequences: Iterable[StoredSequence]
) -> Iterator[InterestState]:
    """States with what is kept of actions beside what the system keeps, one for each sequence."""
    for state, sequence in zip(states, sequences, strict=True):
        actions = action_rows(bundle, sequence.behaviors[-bundle.manifest.L :])
        yield replace(state, tensors={**state.tensors, **action_tensors(bundle, actions)})


def recent_actions(bundle: Bundle, state: InterestState | None, newer: U8) -> F32 | None:
    """Embeddings of the actions of the M newest behaviors, f32[<= M, d]; None: none are seen.

    Args:
        newer: u8[n], rows of the actions of the behaviors newer than the state.
    """
    if bundle.actions is None:
        return None
    if state is not None:
        newer = np.concatenate((state.tensors[RECENT_ACTIONS], newer))
    return bundle.actions[newer[max(len(newer) - bundle.manifest.M, 0) :]]


def user_rate(bundle: Bundle, state: InterestState | None, newer: U8) -> F32 | None:
    """The user's rate, f32[]; None: none is seen.

    It covers more than the last L behaviors where the state covers L, as the history does.
    """
    rates = bundle.manifest.rates
    if rates is None:
        return None
    counted = _count(bundle, newer)
    if state is not None:
        counted = counted + state.tensors[RATED]
    return rates.of_users(counted[0], counted[1])


def _count(bundle: Bundle, actions: U8) -> U32:
    """u32[2]: positive behaviors, and behaviors that count."""
    rates = bundle.manifest.rates
    assert rates is not None
    kinds = rates.kinds(("", *bundle.manifest.actions))
    return np.array([np.count_nonzero(kind[actions]) for kind in kinds], np.uint32)
