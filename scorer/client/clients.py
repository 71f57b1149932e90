"""The clients themselves, blocking and with asyncio."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from infra.settings import UnknownItems
from scorer.client.address import Address, Protocol, Tls, shown
from scorer.client.conversation import Conversations, Steps
from scorer.client.errors import ScorerError
from scorer.client.exchange import AsyncWay, Form, Way
from scorer.client.http import AsyncHttpWay, HttpWay
from scorer.client.kserve import Binary
from scorer.client.rank_v1 import RankV1
from scorer.client.retries import NO_RETRIES, Retries
from scorer.client.scores import Asked, Candidates, Scores
from scorer.messages import Outcome, OutcomesAnswer, OutcomesRequest, RankAnswer, RankRequest

TIMEOUT_S: Final = 5.0
"""Default for a whole request, connecting included."""

Answer = TypeVar("Answer")
Ways = TypeVar("Ways", Way, AsyncWay)


class _Client(ABC, Generic[Ways]):
    """What both clients share: the questions."""

    def __init__(
        self,
        url: str,
        timeout_s: float = TIMEOUT_S,
        retries: Retries = NO_RETRIES,
        *,
        protocol: Protocol | None = None,
        model: str | None = None,
        key: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: http://HOST:PORT, or grpc://HOST:PORT; https and grpcs are the same with TLS.
            timeout_s: for a whole request, with all its retries.
            retries: whether and when to ask again.
            protocol: "json" (`/v1/rank`) or "binary" over HTTP, "grpc" over gRPC; None: what the
                URL says, over HTTP "json".
            model: whose rankings are wanted, by name; None: of the one that the scorer has. JSON
                does not ask for it.
            key: the API key, or token, to ask with; None: none.
            tls: whom to trust and what to show over TLS; None: as the system has it.

        Raises:
            ScorerError: one of these cannot be used.
        """
        address = Address.of(url, protocol)
        self._way: Ways = self._opened(address, shown(key), tls or Tls(), timeout_s)
        self._form = _form(address.protocol)
        self._talks = Conversations(url, self._form, timeout_s, retries, model)

    @abstractmethod
    def _opened(self, address: Address, shown: dict[str, str], tls: Tls, timeout_s: float) -> Ways:
        """A way to the scorer."""

    def _rank(self, request: RankRequest) -> Steps[RankAnswer]:
        form = self._form
        return self._talks.ask(
            lambda model: form.rank(request, model), lambda reply: form.ranking(request, reply)
        )

    def _score(
        self,
        users: Sequence[str],
        candidates: Candidates,
        time_ms: int | Sequence[int] | None,
        unknown_items: UnknownItems | None,
    ) -> Steps[Scores]:
        times_ms = [] if time_ms is None else [time_ms] if isinstance(time_ms, int) else time_ms
        asked, form = Asked.checked(users, candidates, times_ms, unknown_items), self._form
        return self._talks.ask(
            lambda model: form.score(asked, model), lambda reply: form.scores(asked, reply)
        )

    def _tell(self, outcomes: Sequence[Outcome], version: str | None) -> Steps[OutcomesAnswer]:
        call = self._form.outcomes(OutcomesRequest(list(outcomes), version))
        return self._talks.ask(lambda _: call, self._form.counted)


class RankClient(_Client[Way]):
    """Asks a scorer for rankings, blocking. May be used from several threads.

    with RankClient("http://127.0.0.1:8080") as client:
        ranking = client.rank("17850", ["85123A", "22423"], top_k=1)
        print(ranking.items[0].item, ranking.items[0].ctr)

    with RankClient("http://127.0.0.1:8080", protocol="binary") as client:
        print(client.score(["17850", "13047"], [["85123A", "22423"], ["22423", "84879"]]).ctrs)
    """

    def rank(
        self,
        user: str,
        candidates: Sequence[str],
        top_k: int | None = None,
        time_ms: int | None = None,
        unknown_items: UnknownItems | None = None,
        explain: bool | int = False,
    ) -> RankAnswer:
        """Rank the candidates, by falling CTR.

        Args:
            user: user id; of an unknown one nothing is known.
            candidates: item ids.
            top_k: how many of the highest; None: all.
            time_ms: the moment for which to score, ms since epoch; None: now.
            unknown_items: what becomes of candidates that the bundle does not know; None: what the
                scorer's settings say.
            explain: whether to tell why the highest are the highest, or of how many of them; goes
                with protocol "json".

        Raises:
            RequestError: the scorer refused the request; names the field.
            ScorerUnavailable: it cannot be reached, is overloaded or not ready.
            ScorerError: it failed.
        """
        request = RankRequest(user, list(candidates), top_k, time_ms, unknown_items, explain)
        return self._take(self._rank(request))

    def score(
        self,
        users: Sequence[str],
        candidates: Candidates,
        time_ms: int | Sequence[int] | None = None,
        unknown_items: UnknownItems | None = None,
    ) -> Scores:
        """CTRs of candidates for one user or several, in the candidates' order.

        Args:
            users: N user ids; protocol "json" takes one.
            candidates: a row of B item ids for each, or their keys u64[N, B]
                (`infra.behaviors.item_key`); protocol "json" takes ids.
            time_ms: the moment for which to score, ms since epoch, one for all or one for each;
                None: now.
            unknown_items: as for `rank`.

        Raises:
            RequestError: the scorer refused the request, or it has no form; names the field.
            ScorerUnavailable: it cannot be reached, is overloaded or not ready.
            ScorerError: it failed.
        """
        return self._take(self._score(users, candidates, time_ms, unknown_items))

    def tell(self, outcomes: Sequence[Outcome], version: str | None = None) -> OutcomesAnswer:
        """Tell what became of items that were shown, for the metrics of calibration; goes with
        protocol "json".

        Args:
            outcomes: of all items that were shown, with the CTRs that they were ranked by, each
                once; at most 1,000.
            version: of the bundle that the ranking named; None: not known.

        Raises:
            RequestError: the scorer refused the request, or it has no form; names the field.
            ScorerUnavailable: it cannot be reached, or is not ready.
            ScorerError: it failed.
        """
        return self._take(self._tell(outcomes, version))

    def close(self) -> None:
        """Close the connections that are open."""
        self._way.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _opened(self, address: Address, shown: dict[str, str], tls: Tls, timeout_s: float) -> Way:
        if address.protocol == "grpc":
            from scorer.client.grpc import GrpcWay

            return GrpcWay(address, shown, tls, timeout_s)
        return HttpWay(address, shown, tls, timeout_s)

    def _take(self, steps: Steps[Answer]) -> Answer:
        try:
            step = next(steps)
            while True:
                reply = None
                if isinstance(step, tuple):
                    try:
                        reply = self._way.exchange(*step)
                    except ScorerError as error:
                        step = steps.throw(error)
                        continue
                else:
                    time.sleep(step)
                step = steps.send(reply)
        except StopIteration as done:
            answer: Answer = done.value
            return answer


class AsyncRankClient(_Client[AsyncWay]):
    """Asks a scorer for rankings, with asyncio; as `RankClient` otherwise. One event loop's."""

    async def rank(
        self,
        user: str,
        candidates: Sequence[str],
        top_k: int | None = None,
        time_ms: int | None = None,
        unknown_items: UnknownItems | None = None,
        explain: bool | int = False,
    ) -> RankAnswer:
        """Rank the candidates; arguments, result and errors are those of `RankClient.rank`."""
        request = RankRequest(user, list(candidates), top_k, time_ms, unknown_items, explain)
        return await self._take(self._rank(request))

    async def score(
        self,
        users: Sequence[str],
        candidates: Candidates,
        time_ms: int | Sequence[int] | None = None,
        unknown_items: UnknownItems | None = None,
    ) -> Scores:
        """CTRs of candidates; arguments, result and errors are those of `RankClient.score`."""
        return await self._take(self._score(users, candidates, time_ms, unknown_items))

    async def tell(self, outcomes: Sequence[Outcome], version: str | None = None) -> OutcomesAnswer:
        """Tell outcomes; arguments, result and errors are those of `RankClient.tell`."""
        return await self._take(self._tell(outcomes, version))

    async def close(self) -> None:
        """Close the connections that are open."""
        await self._way.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _opened(
        self, address: Address, shown: dict[str, str], tls: Tls, timeout_s: float
    ) -> AsyncWay:
        if address.protocol == "grpc":
            from scorer.client.grpc import AsyncGrpcWay

            return AsyncGrpcWay(address, shown, tls, timeout_s)
        return AsyncHttpWay(address, shown, tls, timeout_s)

    async def _take(self, steps: Steps[Answer]) -> Answer:
        try:
            step = next(steps)
            while True:
                reply = None
                if isinstance(step, tuple):
                    try:
                        reply = await self._way.exchange(*step)
                    except ScorerError as error:
                        step = steps.throw(error)
                        continue
                else:
                    await asyncio.sleep(step)
                step = steps.send(reply)
        except StopIteration as done:
            answer: Answer = done.value
            return answer


def _form(protocol: Protocol) -> Form:
    if protocol == "grpc":
        # 19 MB, which those who speak HTTP need not load.
        from scorer.client.grpc import Messages

        return Messages()
    return Binary() if protocol == "binary" else RankV1()
