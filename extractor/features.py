"""What a bundle's network sees of a user's behaviors beside their items, whichever the system is.

A stored behavior holds its action's code, which the settings declare, and its dwell time; a bundle
has rows of its own for what its network sees of them (`models.bundle.combinations`), and its states
hold those. Where the network sees no features and no rates, nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from extractor.state import InterestState
from infra.arrays import F32, U32, Array
from infra.store import Behaviors, StoredSequence
from models.bundle import RATED, RECENT_FEATURES, Bundle


def feature_tensors(bundle: Bundle, behaviors: Behaviors, now_ms: int = 0) -> dict[str, Array]:
    """What a state keeps of its behaviors' features (`models.bundle.Manifest.of_features`).

    Args:
        behaviors: BEHAVIOR[<= L], those that the state covers, newest last.
        now_ms: for which moment, where the state is of one request alone; ages are as of it.
    """
    tensors: dict[str, Array] = {}
    if bundle.features is not None:
        newest = behaviors[max(len(behaviors) - bundle.manifest.M, 0) :]
        kind = bundle.combinations.dtype
        tensors[RECENT_FEATURES] = bundle.feature_rows(newest, now_ms).astype(kind)
    if bundle.manifest.rates is not None:
        tensors[RATED] = _count(bundle, behaviors)
    return tensors


def with_features(
    bundle: Bundle, states: Iterable[InterestState], sequences: Iterable[StoredSequence]
) -> Iterator[InterestState]:
    """States with what is kept of features beside what the system keeps, one for each sequence."""
    for state, sequence in zip(states, sequences, strict=True):
        of_features = feature_tensors(bundle, sequence.behaviors[-bundle.manifest.L :])
        yield replace(state, tensors={**state.tensors, **of_features})


def recent_features(
    bundle: Bundle, state: InterestState | None, newer: Behaviors, now_ms: int
) -> F32 | None:
    """Embeddings of the features of the M newest behaviors, f32[<= M, d]; None: none are seen.

    Args:
        newer: BEHAVIOR[n], those newer than the state.
        now_ms: the moment for which to score.
    """
    if bundle.features is None:
        return None
    rows = bundle.feature_rows(newer, now_ms)
    if state is not None:
        rows = np.concatenate((state.tensors[RECENT_FEATURES], rows))
    return bundle.features[rows[max(len(rows) - bundle.manifest.M, 0) :]]


def user_rate(bundle: Bundle, state: InterestState | None, newer: Behaviors) -> F32 | None:
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


def _count(bundle: Bundle, behaviors: Behaviors) -> U32:
    """u32[2]: positive behaviors, and behaviors that count."""
    rates = bundle.manifest.rates
    assert rates is not None
    actions = bundle.action_rows(behaviors["action"])
    kinds = rates.kinds(("", *bundle.manifest.actions))
    return np.array([np.count_nonzero(kind[actions]) for kind in kinds], np.uint32)
