"""One user in words: the parts of their state named by their most typical items."""

from __future__ import annotations

from dataclasses import dataclass

from extractor.state import InterestState
from extractor.system import System
from infra.store import StoredSequence
from models.bundle import Bundle


@dataclass(frozen=True, slots=True)
class NamedInterest:
    """A part of a user's state as a person can read it: an interest of ENCODE's, say."""

    share: float
    """Share of the covered behaviors that belong to it."""
    items: list[str]
    """Titles of its most typical items, the most typical first."""


@dataclass(frozen=True, slots=True)
class Portrait:
    """One user, as the demo shows them."""

    user: str
    events: int
    interests: list[NamedInterest]
    ranked: list[tuple[str, float]]
    """Titles and CTRs, highest first."""


def name_interests(
    bundle: Bundle, system: System, sequence: StoredSequence, state: InterestState, most: int
) -> list[NamedInterest]:
    """The ``most`` largest parts of a user's state, each named by its most typical items."""
    return [
        NamedInterest(part.share, [title_of(bundle, row) for row in part.rows])
        for part in system.describe(state, sequence, most)
    ]


def title_of(bundle: Bundle, row: int) -> str:
    """What to call an item: its title, else its id."""
    return bundle.titles[row] or bundle.item_ids[row]
