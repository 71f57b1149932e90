"""What goes to a scorer and what comes back, before a protocol's meaning is read from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from scorer.client.scores import Asked, Scores
from scorer.messages import OutcomesAnswer, OutcomesRequest, RankAnswer, RankRequest


@dataclass(frozen=True, slots=True)
class Call:
    """A question as it is sent."""

    path: str
    """Of a URL, or the full name of a method of gRPC."""
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    """Besides those that every question has."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for a question."""

    status: int
    """As HTTP has it, of gRPC too."""
    body: bytes
    """Of an error over gRPC it is that of Open Inference over HTTP."""
    retry_after_s: float | None = None
    header_length: int | None = None
    """Of the JSON that bytes of tensors follow; None: none do."""


class Form(Protocol):
    """How a protocol writes questions and reads replies. It reads none but of status 200.

    Raises, of questions, `RequestError` where it has no form for one; of replies `ValueError` where
    it finds no answer in it.
    """

    names_model: bool
    """Whether questions name the model."""

    def rank(self, request: RankRequest, model: str) -> Call: ...

    def ranking(self, request: RankRequest, reply: Reply) -> RankAnswer: ...

    def score(self, asked: Asked, model: str) -> Call: ...

    def scores(self, asked: Asked, reply: Reply) -> Scores: ...

    def outcomes(self, request: OutcomesRequest) -> Call: ...

    def counted(self, reply: Reply) -> OutcomesAnswer: ...

    def index(self) -> Call:
        """Asks for the models that there are."""
        ...

    def indexed(self, reply: Reply) -> list[str]:
        """Their names."""
        ...


class Way(Protocol):
    """A way to a scorer, blocking: connections that stay open between questions."""

    def exchange(self, call: Call, deadline: float) -> Reply:
        """Ask, and wait for the reply until a moment of the monotonic clock.

        Raises:
            ScorerUnavailable: it cannot be reached, or has not answered in time.
            ScorerError: there is no TLS with it.
        """
        ...

    def close(self) -> None:
        """Close the connections that are open."""
        ...


class AsyncWay(Protocol):
    """The same with asyncio."""

    async def exchange(self, call: Call, deadline: float) -> Reply: ...

    async def close(self) -> None: ...


def left(deadline: float) -> float:
    """Seconds until the deadline; raises TimeoutError when there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds
