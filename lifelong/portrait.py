"""One user in words: interests named by their most typical items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from extractor.state import InterestState
from infra.store import StoredSequence
from models.bundle import Bundle

TYPICAL: Final = 3
"""Items that name an interest."""


@dataclass(frozen=True, slots=True)
class NamedInterest:
    """An interest as a person can read it."""

    share: float
    """Share of the clustered behaviors that belong to it."""
    items: list[str]
    """Titles of the items nearest to the cluster's center, the nearest first."""


@dataclass(frozen=True, slots=True)
class Portrait:
    """One user, as the demo shows them."""

    user: str
    events: int
    interests: list[NamedInterest]
    ranked: list[tuple[str, float]]
    """Titles and CTRs, highest first."""


def name_interests(
    bundle: Bundle, sequence: StoredSequence, state: InterestState, most: int
) -> list[NamedInterest]:
    """The ``most`` largest interests of a user, each named by its most typical items.

    A behavior belongs to the center with the largest cosine in the projected space (ENCODE,
    section 3.2.2), as in the clustering itself.
    """
    rows = np.unique(bundle.rows(np.ascontiguousarray(sequence.behaviors["item"])))
    rows = rows[rows > 0]
    occupied = np.flatnonzero(state.sizes)
    if not len(rows) or not len(occupied):
        return []
    projected = bundle.projected[rows]
    norms = np.linalg.norm(projected, axis=1, keepdims=True)
    cosines = projected / np.maximum(norms, 1e-12) @ state.centers[occupied].T
    member_of = occupied[np.argmax(cosines, axis=1)]
    nearness = cosines.max(axis=1)
    total = int(state.sizes.sum())
    named = []
    for cluster in occupied[np.argsort(-state.sizes[occupied], kind="stable")]:
        members = np.flatnonzero(member_of == cluster)
        typical = members[np.argsort(-nearness[members], kind="stable")][:TYPICAL]
        if len(typical):
            titles = [title_of(bundle, int(rows[i])) for i in typical]
            named.append(NamedInterest(int(state.sizes[cluster]) / total, titles))
    return named[:most]


def title_of(bundle: Bundle, row: int) -> str:
    """What to call an item: its title, else its id."""
    return bundle.titles[row] or bundle.item_ids[row]
