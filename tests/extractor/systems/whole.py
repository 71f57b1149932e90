"""A second system, shaped like TWIN: it keeps no state, reads the whole sequence, is never due."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from extractor.explanation import Explanation
from extractor.state import InterestState, Layout
from extractor.system import Candidates, NamedPart, UserHistory, common_feed, one_by_one
from extractor.systems.encode import EncodeSystem
from infra.arrays import Array
from infra.store import Behaviors, StoredSequence
from models.bundle import Bundle
from models.features import EMPTY_HISTORY


class WholeSystem:
    """Attends to every behavior by itself, on the graph of an ENCODE bundle."""

    reads: Final = "sequence"
    keeps_state = False
    newest: Final = 10_000
    measures: Final = ()

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.digest = bundle.digest
        self.layout = Layout({})

    def warm(self) -> None:
        """Nothing is compiled."""

    def extract(
        self,
        sequence: StoredSequence,
        previous: InterestState | None = None,
    ) -> InterestState:
        return InterestState(
            bundle=self._bundle.digest,
            version=sequence.version,
            last_time_ms=0,
            recent=np.zeros(0, np.uint64),
            history=EMPTY_HISTORY,
            tensors={},
        )

    def extract_many(
        self, sequences: Sequence[StoredSequence], previous: Sequence[InterestState | None]
    ) -> Iterator[InterestState]:
        return one_by_one(self.extract, sequences, previous)

    def feed(
        self, history: UserHistory | None, candidates: Candidates, now_ms: int
    ) -> dict[str, Array]:
        bundle = self._bundle
        keys = np.zeros(0, np.uint64) if history is None else history.newer["item"].copy()
        interests = bundle.embeddings[bundle.rows(keys)]
        sizes = np.ones(len(keys), np.float32)
        if not len(keys):
            interests, sizes = np.zeros((1, bundle.manifest.d), np.float32), np.zeros(1, np.float32)
        feed: dict[str, Array] = {"interests": interests, "sizes": sizes}
        return feed | common_feed(bundle, history, candidates, now_ms)

    def measure(
        self, history: UserHistory, behaviors: Behaviors, candidates: Candidates, now_ms: int
    ) -> dict[str, float]:
        return {}

    def explain(
        self, history: UserHistory, behaviors: Behaviors, candidates: Candidates, now_ms: int
    ) -> Explanation:
        return EncodeSystem(self._bundle).explain(history, behaviors, candidates, now_ms)

    def describe(
        self, state: InterestState, sequence: StoredSequence, most: int
    ) -> list[NamedPart]:
        return []

    def summarize(self, state: InterestState) -> dict[str, Any]:
        return {}
