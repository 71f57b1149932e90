"""CTRs of candidates for one user or several, in arrays: what is asked, and what is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from infra.arrays import F32, U64, Bools
from infra.errors import RequestError
from infra.settings import UnknownItems
from scorer.messages import AsOf, HistoryKind, RankAnswer, RankRequest, ranked_items

Candidates: TypeAlias = Sequence[Sequence[str]] | U64
"""A row of B item ids for each of N users, or their keys u64[N, B] (`infra.behaviors.item_key`)."""


@dataclass(frozen=True, slots=True)
class Scores:
    """CTRs in the order in which the candidates were asked for."""

    model: str
    version: str
    ctrs: F32
    """f32[N, B]."""
    unknown: Bools
    """bool[N, B]: whether the bundle does not know the candidate."""
    newer: int
    """Behaviors newer than the users' interests, which counted one by one."""
    degraded: bool = False
    """Whether the store did not answer, so that whatever a user did counted for nothing."""
    history: HistoryKind | None = None
    """What the user was scored with; None: there are several."""
    as_of: AsOf | None = None
    """What the user's interests cover; None: there are none, or several users."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question for scores, checked."""

    users: Sequence[str]
    ids: Sequence[Sequence[str]] | None
    """None: given as keys."""
    keys: U64 | None
    """u64[N, B]; None: given as ids."""
    times_ms: Sequence[int]
    """One for all, or one for each; empty: now."""
    unknown_items: UnknownItems | None

    @property
    def shape(self) -> tuple[int, int]:
        """N and B."""
        if self.keys is not None:
            return self.keys.shape[0], self.keys.shape[1]
        assert self.ids is not None
        return len(self.ids), len(self.ids[0]) if self.ids else 0

    @classmethod
    def of(cls, request: RankRequest) -> Asked:
        """What a request for a ranking asks, apart from how it is ranked."""
        times_ms = [] if request.time is None else [request.time]
        return cls([request.user], [request.candidates], None, times_ms, request.unknown_items)

    @classmethod
    def checked(
        cls,
        users: Sequence[str],
        candidates: Candidates,
        times_ms: Sequence[int],
        unknown_items: UnknownItems | None,
    ) -> Asked:
        """A question whose parts belong together.

        Raises:
            RequestError: they do not.
        """
        if isinstance(users, str):
            raise RequestError("user", "user is one text, expected a list of users")
        ids, keys = None, None
        if isinstance(candidates, np.ndarray):
            if candidates.dtype != np.uint64 or candidates.ndim != 2:
                raise RequestError("candidates", "candidates are no array u64[N, B] of item keys")
            keys = candidates
        else:
            ids = candidates
            if any(isinstance(row, str) or len(row) != len(ids[0]) for row in ids):
                raise RequestError(
                    "candidates", "candidates are no lists of ids, as long for every user"
                )
        if len(candidates) != len(users):
            raise RequestError(
                "candidates", f"candidates have {len(candidates)} rows for {len(users)} users"
            )
        return cls(users, ids, keys, times_ms, unknown_items)


def ranking_of(request: RankRequest, scores: Scores) -> RankAnswer:
    """The ranking that a scorer would have made of the scores of its one user."""
    unknown = (request.candidates[place] for place in np.flatnonzero(scores.unknown[0]).tolist())
    answer = RankAnswer(
        user=request.user,
        model=scores.model,
        version=scores.version,
        history=scores.history or "none",
        items=ranked_items(request.candidates, scores.ctrs[0], request.top_k),
        unknown_items=list(dict.fromkeys(unknown)),
        newer=scores.newer,
        degraded=scores.degraded,
    )
    if scores.as_of is not None:
        answer.as_of = scores.as_of
    return answer


def scores_of(candidates: Sequence[str], answer: RankAnswer) -> Scores:
    """The scores of which a scorer has made a ranking of all candidates."""
    ctrs = {line.item: line.ctr for line in answer.items}
    unknown = set(answer.unknown_items)
    return Scores(
        answer.model,
        answer.version,
        np.array([[ctrs[item] for item in candidates]], np.float32),
        np.array([[item in unknown for item in candidates]], np.bool_),
        answer.newer,
        answer.degraded,
        answer.history,
        answer.as_of or None,
    )
