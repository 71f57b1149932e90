"""Why the highest items of a ranking are the highest, in words and numbers of the request's user.

What is told of the long-term part is exact: what a candidate attended to, and how much
(`extractor.system.System.explain`). How much the long-term part and the recent behaviors weigh
against each other is within the scorer graph, so it is asked again without the one and the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from extractor.explanation import Explanation, Part
from extractor.system import Candidates, System, UserHistory
from infra.arrays import F32, I64, Array
from infra.errors import StoreError
from infra.store import Behaviors, Store
from models.bundle import LONG_TERM, Bundle
from scorer.messages import Explained, ExplainedBehavior, ExplainedItem, ExplainedPart
from scorer.sampling import Sample, behaviors_of

PARTS: Final = 5
"""Parts that are told of an item, those that weigh most."""

IN_PART: Final = 3
"""Behaviors that are told of a part, those with the largest shares."""

OVERALL: Final = 5
"""Behaviors that are told of an item, those that weigh most over all of its parts."""

NEWEST: Final = 10
"""Behaviors newer than the state that are told, the newest."""


class Scored(NamedTuple):
    """One request's ranking, as it came about."""

    user: str
    history: UserHistory | None
    """What was known of the user; None: nothing."""
    candidates: Candidates
    names: Sequence[str]
    """The candidates' ids."""
    ctrs: F32
    """f32[B], what they got."""
    now_ms: int


class Explainer:
    """Explains rankings of one store by one bundle. Thread-safe."""

    def __init__(
        self,
        store: Store,
        bundle: Bundle,
        system: System,
        run: Callable[[dict[str, Array]], F32],
    ) -> None:
        """Take what ranks.

        Args:
            run: the scorer graph: CTRs of what it is fed.
        """
        self._store = store
        self._bundle = bundle
        self._system = system
        self._run = run

    def explain(self, scored: Scored, most: int) -> Explained:
        """The ``most`` highest items of a ranking, explained.

        Raises:
            RequestError: the bundle's attention cannot be explained.
        """
        order = np.argsort(-scored.ctrs, kind="stable")[:most]
        few = Candidates(scored.candidates.keys[order], scored.candidates.rows[order])
        without_long_term, without_recent = self._without(scored, few)
        items = [
            ExplainedItem(
                item=scored.names[place],
                ctr=_rounded(scored.ctrs[place]),
                ctr_without_long_term=_rounded(without_long_term[i]),
                ctr_without_recent=_rounded(without_recent[i]),
            )
            for i, place in enumerate(order.tolist())
        ]
        history = scored.history
        if history is None:
            return Explained(items)
        behaviors = self._behaviors(scored.user, history, few)
        explanation = self._system.explain(history, behaviors, few, scored.now_ms)
        tell = _Teller(self._bundle, behaviors, len(history.newer), explanation)
        for i, item in enumerate(items):
            tell.parts(item, i)
        newer = range(len(behaviors) - len(history.newer), len(behaviors))
        told = Explained(items, newer=[tell.behavior(at, 1.0) for at in newer[::-1][:NEWEST]])
        if history.state is not None:
            told.state_age_s = max(0.0, (scored.now_ms - history.state.last_time_ms) / 1000)
        return told

    def _without(self, scored: Scored, few: Candidates) -> tuple[F32, F32]:
        """The CTRs without the long-term part, and without the recent behaviors."""
        feed = self._system.feed(scored.history, few, scored.now_ms)
        of_long_term = (LONG_TERM,) if LONG_TERM in feed else ("interests", "sizes")
        nothing = {name: np.zeros_like(feed[name]) for name in of_long_term}
        none_recent = {name: np.zeros_like(feed[name]) for name in ("recent", "recent_mask")}
        return self._run(feed | nothing), self._run(feed | none_recent)

    def _behaviors(self, user: str, history: UserHistory, few: Candidates) -> Behaviors:
        """What the history is made of, as far as the store still has it and answers."""
        try:
            found = behaviors_of(Sample(user, history, few, 0, 0.0), self._store)
        except StoreError:  # the ranking is there; it is explained with what is at hand
            found = None
        if found is None or len(found) < len(history.newer):
            return history.newer
        return found


class _Teller:
    """Puts places of behaviors into words."""

    def __init__(
        self, bundle: Bundle, behaviors: Behaviors, newer: int, explanation: Explanation
    ) -> None:
        self._bundle = bundle
        self._explanation = explanation
        sizes = [len(part.members) for part in explanation.parts]
        self._part_of = np.repeat(np.arange(len(sizes)), sizes)
        nobody, nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
        self._members = np.concatenate([nobody, *(one.members for one in explanation.parts)])
        self._shares = np.concatenate([nothing, *(one.shares for one in explanation.parts)])
        self._behaviors = behaviors
        self._rows = bundle.rows(np.ascontiguousarray(behaviors["item"]))
        self._older = len(behaviors) - newer

    def behavior(self, at: int, share: float) -> ExplainedBehavior:
        row = int(self._rows[at])
        return ExplainedBehavior(
            item=self._bundle.item_ids[row] if row else None,
            time=int(self._behaviors["time"][at]),
            share=_rounded(share),
            newer=at >= self._older,
        )

    def parts(self, item: ExplainedItem, of: int) -> None:
        """Note on an item what it attended to, the ``of``-th of those that are explained."""
        explanation = self._explanation
        heads = explanation.weights[of]
        weights = heads.mean(axis=1)
        order = np.argsort(-weights, kind="stable")[:PARTS]
        order = order[weights[order] > 0]
        item.parts = [self._part(explanation.parts[part], heads[part]) for part in order.tolist()]
        item.other_parts = _rounded(max(0.0, float(weights.sum() - weights[order].sum())))
        overall = np.bincount(
            self._members, weights[self._part_of] * self._shares, len(self._behaviors)
        ).astype(np.float32)
        item.behaviors = self._largest(np.arange(len(overall)), overall, OVERALL)

    def _part(self, part: Part, weights: F32) -> ExplainedPart:
        return ExplainedPart(
            kind=part.kind,
            number=part.number,
            size=part.size,
            weights=[_rounded(weight) for weight in weights],
            behaviors=self._largest(part.members, part.shares, IN_PART),
        )

    def _largest(self, places: I64, shares: F32, most: int) -> list[ExplainedBehavior]:
        order = np.argsort(-shares, kind="stable")[:most]
        return [self.behavior(int(places[i]), float(shares[i])) for i in order if shares[i] > 0]


def _rounded(value: float | np.floating) -> float:
    """As few digits as a float32 has."""
    return round(float(value), 9)
