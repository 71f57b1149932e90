"""A bundle's golden sequences, repeated by its system: the whole way from behaviors to CTRs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from extractor.system import Candidates, System, UserHistory
from infra.arrays import U8, U64
from infra.behaviors import BEHAVIOR, item_key
from infra.store import StoredSequence, Version
from models.bundle import (
    SEQUENCES,
    Bundle,
    GoldenChecks,
    GoldenSequence,
    cannot_be_run,
    ctr_difference,
    make_session,
)

EPOCH: Final = 1
"""When the records of golden users were created."""


def check_sequences(bundle: Bundle, system: System) -> GoldenChecks:
    """Repeat the golden sequences as the services would: what a state covers is extracted, stored
    and read again, newer behaviors are fed beside it, and the scorer's graph is run.

    Raises:
        BundleIncompatible: a CTR differs from the trained network's by more than GOLDEN_TOLERANCE:
            the manifest, or this version, does not do what the training did.
    """
    session = make_session(bundle.scorer_model)
    differences = {}
    for golden in bundle.sequences:
        keys = _keys(golden.candidates)
        history = _history(golden, bundle, system)
        feed = system.feed(history, Candidates(keys, bundle.rows(keys)), golden.now_ms)
        try:
            (ctrs,) = session.run(None, feed)
        except Exception as error:  # onnxruntime raises its own and plain exceptions alike
            raise cannot_be_run(bundle.path, error) from error
        differences[golden.name] = ctr_difference(ctrs, golden.ctr, bundle.manifest.corrected_for)
    return GoldenChecks.of(differences, bundle.path, SEQUENCES)


def _history(golden: GoldenSequence, bundle: Bundle, system: System) -> UserHistory | None:
    if not golden.items:
        return None
    behaviors = np.zeros(len(golden.items), BEHAVIOR)
    behaviors["item"] = _keys(golden.items)
    behaviors["time"] = golden.times
    if golden.actions:
        behaviors["action"] = _codes(bundle)[golden.actions]
    if golden.dwells:
        behaviors["dwell"] = golden.dwells
    version = Version(EPOCH, golden.count)
    covered = len(behaviors) - golden.newer
    if not covered or not system.keeps_state:
        return UserHistory(version, None, behaviors)
    as_of = Version(EPOCH, golden.count - golden.newer)
    state = system.extract(StoredSequence(as_of, behaviors[:covered], {}))
    record = system.layout.encode(state)
    return UserHistory(version, system.layout.decode(record), behaviors[covered:])


def _codes(bundle: Bundle) -> U8:
    """u8[A + 1]: the code under which each of the bundle's actions is stored; 0 for unknown."""
    codes = np.zeros(len(bundle.manifest.actions) + 1, np.uint8)
    (known,) = np.nonzero(bundle.codes)
    known = known[bundle.codes[known] < len(codes)]
    codes[bundle.codes[known]] = known
    return codes


def _keys(items: Sequence[str]) -> U64:
    return np.array([item_key(item) for item in items], np.uint64)
