"""The check: every outcome of a request against the oracle and the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from scorer.ranking import Ranking
from scorer.turns import HEARD
from tests.soak.asking import Answer, Asked
from tests.soak.ledger import Ledger
from tests.soak.oracle import NOTHING

TOLERANCE: Final = 1e-5
"""Of a CTR."""

RELOADED_S: Final = 30.0
"""Longest time from when a bundle is in its place until all processes have taken it up."""

SILENT_S: Final = 20.0
"""Longest time until whatever was asked is answered or refused, whatever its deadline."""

DEADLINE_S: Final = 2.0
"""As the setting says."""

HASTE_S: Final = 0.01
"""How much earlier a clock of the event loop's may ring than it should."""

SHOWN: Final = 20
"""Wrong outcomes that are told in full."""

Rank = Callable[[str, str, Asked], Ranking]
"""As `tests.soak.oracle.Oracle.rank`."""


@dataclass(frozen=True)
class Outcome:
    """What became of a request."""

    asked: Asked
    client: str
    """The protocol."""
    began: float
    ended: float
    answer: Answer | None = None
    """None: there was none."""
    lost: str = ""
    """Why."""


@dataclass
class Checked:
    """What all outcomes came to."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """By protocol and status or loss."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Right answers by what they were made with."""
    compared: int = 0
    """CTRs."""
    largest: float = 0.0
    """Largest difference of a CTR."""
    wrong: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def note(self, what: str, example: str) -> None:
        """Take note of something wrong."""
        self.wrong[what] += 1
        if self.wrong[what] <= SHOWN and len(self.examples) < 5 * SHOWN:
            self.examples.append(f"{what}: {example}")


class Check:
    """Judges outcomes, one after another."""

    def __init__(self, ledger: Ledger, rank: Rank) -> None:
        self.checked = Checked()
        self._ledger = ledger
        self._rank = rank

    def look(self, outcome: Outcome) -> None:
        """Judge an outcome."""
        asked, answer = outcome.asked, outcome.answer
        kind = "lost" if answer is None else str(answer.status)
        self.checked.outcomes[f"{outcome.client} {kind}"] += 1
        trouble = self._trouble(outcome)
        if trouble is not None:
            said = outcome.lost if answer is None else f"{answer.reason} {answer.detail}"
            self.checked.note(
                trouble,
                f"{asked.id} by {outcome.client}, {asked.form}, B = {len(asked.candidates)}, after"
                f" {outcome.ended - outcome.began:.3f} s at {outcome.began:.3f}: {kind} {said}",
            )

    def _trouble(self, outcome: Outcome) -> str | None:
        """What is wrong with an outcome; None: nothing."""
        answer, asked = outcome.answer, outcome.asked
        if answer is None:
            return self._trouble_of_loss(outcome)
        if answer.id != asked.id:
            return "an answer to another request"
        # A scorer that is started lets connections wait until it has loaded.
        down = self._ledger.is_down(outcome.began, outcome.began)
        if outcome.ended - outcome.began > SILENT_S and not down:
            return "an answer long after its deadline"
        if answer.status == 200:
            return self._trouble_of_answer(outcome, answer)
        if self._refused_rightly(outcome, answer):
            return None
        return f"a refusal that nothing explains, {answer.status} {answer.reason}".strip()

    def _trouble_of_loss(self, outcome: Outcome) -> str | None:
        began, ended = outcome.began, outcome.ended
        if outcome.lost == "silent" and not self._ledger.is_down(began, began):
            return "no answer, and a connection that stays open"
        if outcome.lost.startswith(("Doubled", "not understood")):
            return "more or other bytes than an answer"
        if self._ledger.killed(began, ended) or self._ledger.is_down(began, ended):
            return None
        return "a connection lost without a kill"

    def _refused_rightly(self, outcome: Outcome, answer: Answer) -> bool:
        asked, began, ended = outcome.asked, outcome.began, outcome.ended
        match answer.status, answer.reason:
            case 429, _:
                return True
            case (503, "deadline") | (408, "slow-body"):
                deadline_s = min(asked.timeout_s or DEADLINE_S, DEADLINE_S)
                # The scorer counts from when its socket had the request, which it guesses.
                return ended - began >= HEARD * deadline_s - HASTE_S
            case 503, "store":
                away = self._ledger.may_lack_store(began, ended)
                return away and "refuse" in self._ledger.refusing(began, ended)
            case 422, "unknown-items":
                return asked.policy == "refuse"
            case 404, "unknown-model":
                served = self._ledger.versions_at(began, ended, RELOADED_S)
                return asked.version is not None and served != {asked.version}
            case _:
                return False

    def _trouble_of_answer(self, outcome: Outcome, answer: Answer) -> str | None:
        asked, began, ended = outcome.asked, outcome.began, outcome.ended
        ledger = self._ledger
        if answer.version not in ledger.versions_at(began, ended, RELOADED_S):
            return "an answer of a bundle that is not in service"
        if asked.version is not None and answer.version != asked.version:
            return "an answer of another bundle than the request names"
        if answer.degraded:
            if "degrade" not in ledger.refusing(began, ended):
                return "a degraded answer of a scorer that is to refuse"
            if not ledger.may_lack_store(began, ended):
                return "a degraded answer while there was a store"
            stores = {NOTHING}
        elif ledger.lacks_store(began, ended):
            return "an answer that is not degraded though there is no store"
        else:
            stores = ledger.stores_at(began, ended)
        troubles = set()
        for store in stores:
            trouble = self._difference(asked, answer, self._rank(answer.version, store, asked))
            if trouble is None:
                kind = "degraded" if answer.degraded else answer.history
                self.checked.kinds[kind] += 1
                return None
            troubles.add(trouble)
        return max(troubles)

    def _difference(self, asked: Asked, answer: Answer, expected: Ranking) -> str | None:
        if answer.history != expected.history:
            return "history of another kind"
        if answer.ctrs is not None:
            if answer.unknown != int(expected.unknown.sum()):
                return "another number of unknown items"
            return self._compare(answer.ctrs, expected.ctrs)
        if answer.unknown != len(expected.unknown_items):
            return "another number of unknown items"
        return self._difference_of_ranking(asked, answer, expected)

    def _difference_of_ranking(self, asked: Asked, answer: Answer, expected: Ranking) -> str | None:
        right = dict(zip(asked.candidates, expected.ctrs.tolist(), strict=True))
        size = min(asked.top_k or len(asked.candidates), len(asked.candidates))
        if len(answer.ranked) != size:
            return "another number of items than asked for"
        times = Counter(asked.candidates)
        times.subtract(item for item, _ in answer.ranked)
        if min(times.values()) < 0:
            return "items that were not asked for, or too often"
        ctrs = np.array([ctr for _, ctr in answer.ranked])
        if (np.diff(ctrs) > 0).any():
            return "items that are not in order"
        left = max((right[item] for item in times.elements()), default=0.0)
        if size < len(asked.candidates) and left > ctrs[-1] + TOLERANCE:
            return "a top without what is higher"
        # Of whom few are answered, more may be explained.
        both = min(len(answer.explained), len(answer.ranked))
        if [item for item, _ in answer.explained[:both]] != [
            item for item, _ in answer.ranked[:both]
        ] or len(answer.explained) > asked.explain:
            return "an explanation of other items than the highest"
        told = answer.ranked + answer.explained
        return self._compare(
            np.array([ctr for _, ctr in told]), np.array([right[item] for item, _ in told])
        )

    def _compare(self, ctrs: np.ndarray, expected: np.ndarray) -> str | None:
        if ctrs.shape != expected.shape:
            return "another number of CTRs"
        apart = float(np.abs(ctrs - expected).max(initial=0.0))
        if not apart <= TOLERANCE:
            return "other CTRs"
        self.checked.compared += len(ctrs)
        self.checked.largest = max(self.checked.largest, apart)
        return None


def trouble_of_probe(
    ledger: Ledger, began: float, ended: float, status: int | None, said: str
) -> str | None:
    """What is wrong with the answer to a probe of readiness; None: nothing.

    Args:
        began, ended: when it was asked and answered.
        status: HTTP's; None: the connection was lost, or not made.
        said: the answer's body.
    """
    down = ledger.is_down(began, ended) or ledger.killed(began, ended)
    if status is None:
        return None if down else "a probe that was not answered"
    if any(span.began + 1.0 <= began and ended <= span.ended for span in ledger.leave):
        return "ready though it was told to stop" if status == 200 else None
    degrades = ledger.refusing(began, ended) == {"degrade"}
    if ledger.lacks_store(began, ended):
        if degrades:
            warns = status == 200 and "rankings are degraded" in said
            return None if warns else "a probe that does not tell that rankings are degraded"
        return "ready without a store" if status == 200 else None
    if status == 200:
        return None
    leaves = any(span.meets(began - 1.0, ended) for span in ledger.leave)
    explained = down or leaves or (not degrades and ledger.may_lack_store(began, ended))
    return None if explained else "not ready without a reason"
