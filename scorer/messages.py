"""Bodies of ``POST /v1/rank``, and of what is wrong, as the service and its clients write and read
them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from infra.settings import UnknownItems
from scorer.limits import Item, Time, User

HistoryKind = Literal["interests", "sequence", "none"]
"""What a user was scored with: stored interests, interests extracted from the sequence within the
request, or nothing at all."""


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
