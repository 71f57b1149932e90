"""Bodies of ``POST /v1/rank`` and ``POST /v1/outcomes``, and of what is wrong, as the service and
its clients write and read them.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from infra.arrays import F32
from infra.settings import UnknownItems
from scorer.limits import Item, Time, User
from scorer.ranked import DIGITS, order_of

HistoryKind = Literal["interests", "sequence", "none"]
"""What a user was scored with: stored interests, interests extracted from the sequence within the
request, or nothing at all."""


EXPLAINED: Final = 10
"""Items that are explained where a request does not say how many."""

MAX_EXPLAINED: Final = 50
"""Items that are explained in one request, at most: each takes as long as some hundred candidates
and has some kilobytes."""


class RankRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a request: whom to rank what for."""

    user: User
    candidates: list[Item]
    """B item ids; one may occur several times."""
    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """How many of the highest to answer; None or more than B: all."""
    time: Time | None = None
    """The moment for which to score, ms since epoch; None: now."""
    unknown_items: UnknownItems | None = None
    """What becomes of candidates that the bundle does not know; None: what the setting
    ``scorer.unknown_items`` says."""
    explain: bool | Annotated[int, msgspec.Meta(ge=1, le=MAX_EXPLAINED)] = False
    """Whether to tell why the highest items are the highest: true, of ten, or of how many."""


class RankedItem(msgspec.Struct, gc=False):
    """A candidate and its CTR."""

    item: str
    ctr: float


class AsOf(msgspec.Struct):
    """What the user's interests cover."""

    epoch: int
    """When the user's record began, ms since epoch."""
    count: int
    """Behaviors ever applied, up to which the sequence was clustered."""


class ExplainedBehavior(msgspec.Struct):
    """A behavior of the user's that weighs in an item's CTR."""

    item: str | None
    """None: the bundle does not know it."""
    time: int
    """When, ms since epoch."""
    share: float
    """Of what it is told with: a part, or all that the item attended to."""
    newer: bool
    """Whether it is newer than the stored state."""


class ExplainedPart(msgspec.Struct):
    """What an item attended to: an interest (ENCODE), a bucket (SDIM) or a behavior (TWIN)."""

    kind: Literal["interest", "bucket", "behavior"]
    number: int
    """Which one of its kind."""
    size: int
    """Behaviors in it."""
    weights: list[float]
    """How much it counts for the item, one number for each head of the attention."""
    behaviors: list[ExplainedBehavior]
    """Those with the largest shares in it, as far as they are still kept."""


class ExplainedItem(msgspec.Struct):
    """Why an item got its CTR."""

    item: str
    ctr: float
    ctr_without_long_term: float
    """What it were if nothing but the recent behaviors were known of the user."""
    ctr_without_recent: float
    """What it were without the recent behaviors, the long-term part as it is."""
    parts: list[ExplainedPart] = []
    """What weighs most of what it attended to, the first most of all."""
    other_parts: float = 0.0
    """What all other parts weigh together."""
    behaviors: list[ExplainedBehavior] = []
    """The behaviors that weigh most, over all parts."""


class Explained(msgspec.Struct):
    """Why the highest items of a ranking are the highest."""

    items: list[ExplainedItem]
    newer: list[ExplainedBehavior] = []
    """The newest of the behaviors that the stored state does not cover, the last one first."""
    state_age_s: float | msgspec.UnsetType = msgspec.UNSET
    """Seconds from the newest behavior that the state covers to the moment for which was scored;
    left out where there is no state."""


class RankAnswer(msgspec.Struct):
    """Body of an answer: the candidates, highest CTR first, and what they were scored with."""

    user: str
    model: str
    version: str
    history: HistoryKind
    """none: nothing is known of the user, who was scored without history."""
    items: list[RankedItem]
    """Highest CTR first; equal ones in the order of the request."""
    unknown_items: list[str]
    """Distinct candidates that the bundle does not know; "last" gives them a CTR of 0."""
    newer: int
    """Behaviors newer than `as_of`, which counted one by one."""
    as_of: AsOf | msgspec.UnsetType = msgspec.UNSET
    """Left out where there is no history."""
    degraded: bool = False
    """Whether the store did not answer, so that whatever the user did counted for nothing."""
    explained: Explained | msgspec.UnsetType = msgspec.UNSET
    """Left out unless it was asked for."""


MAX_OUTCOMES: Final = 1000
"""Outcomes in a request, at most: they are counted in the event loop, which must not be kept."""


class Outcome(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What became of an item that was shown."""

    ctr: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """Its CTR, as the ranking had it."""
    positive: bool
    """Whether it came to what the bundle predicts: a click, say."""


class OutcomesRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a request that tells what became of items that were shown."""

    outcomes: Annotated[list[Outcome], msgspec.Meta(min_length=1, max_length=MAX_OUTCOMES)]
    """Of every item that was shown, those that came to nothing too, once each."""
    version: str | None = None
    """Of the bundle that gave the CTRs, as the ranking had it; None: not known."""


class OutcomesAnswer(msgspec.Struct):
    """Body of the answer: what was counted."""

    counted: int
    """Outcomes."""
    version: str
    """The one under which they are counted: that of the request, or "other", if it is neither of
    the bundle in service nor of the one before."""


class Problem(msgspec.Struct):
    """Body of an answer that is an error: problem details (RFC 9457)."""

    type: str
    """Path under which the scorer tells about this kind of problem; about:blank: the status says
    all."""
    title: str
    """The kind of problem, the same in all answers."""
    status: int
    """The HTTP status."""
    detail: str
    """What is wrong with this request, as one sentence."""
    instance: str | msgspec.UnsetType = msgspec.UNSET
    """The request's id, as in the header x-request-id."""
    field: str | msgspec.UnsetType = msgspec.UNSET
    """What of the request is wrong, as its sender wrote it; left out where that is nothing."""
    retry_after_s: int | msgspec.UnsetType = msgspec.UNSET
    """When to come again, as in the header Retry-After; left out where only a change helps."""


def ranked_items(candidates: list[str], ctrs: F32, top_k: int | None) -> list[RankedItem]:
    """The candidates by falling CTR, ties in their given order, at most ``top_k`` of them."""
    order = order_of(ctrs, top_k)
    rounded = np.round(ctrs[order].astype(np.float64), DIGITS)
    return list(map(RankedItem, map(candidates.__getitem__, order.tolist()), rounded.tolist()))
